"""A server that has every adapter loaded by a vLLM."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from loragen_infer import AdapterStore
from loragen_infer.vllm import VllmClient

pytest.importorskip("litserve")
from loragen_infer.serving.config import ServeConfig
from loragen_infer.serving.server import make_app
from starlette.testclient import TestClient

BODY = {"prompts": ["1 + 1", "2 + 3"]}


@pytest.fixture
def store(generator, tmp_path):
    return AdapterStore(tmp_path / "adapters", generator)


def test_what_is_made_or_found_is_loaded(store, vllm_server):
    with TestClient(make_app(store, ServeConfig(model="m"), VllmClient(vllm_server.url))) as client:
        made = client.post("/adapters", json=BODY).json()
        assert vllm_server.loaded == {f"loragen:{made['id']}": made["path"]}
        vllm_server.loaded.clear()  # as when it is started again
        found = client.post("/adapters", json=BODY).json()
    assert not found["is_new"]
    assert vllm_server.loaded == {f"loragen:{made['id']}": made["path"]}


def test_what_vllm_refuses_is_said_and_kept(store, vllm_server):
    vllm_server.answer = (500, {"error": {"message": "LoRA rank 32 is greater than max_lora_rank 16."}})
    with TestClient(make_app(store, ServeConfig(model="m"), VllmClient(vllm_server.url))) as client:
        answer = client.post("/adapters", json=BODY)
        assert answer.status_code == 502
        assert "LoRA rank 32 is greater than max_lora_rank 16" in answer.json()["detail"]
        assert store.find(store.id_of(BODY["prompts"])) is not None
        assert client.post("/adapters", json={"prompts": []}).status_code == 422


def test_the_adapters_of_a_batch_are_loaded_at_once(store, vllm_server):
    vllm_server.meeting = threading.Barrier(2)
    config = ServeConfig(model="m", batch_timeout=1.0, max_batch_size=2)
    with TestClient(make_app(store, config, VllmClient(vllm_server.url))) as client, ThreadPoolExecutor(2) as pool:
        bodies = [{"prompts": [f"{number} + 1"]} for number in range(2)]
        answers = list(pool.map(lambda body: client.post("/adapters", json=body), bodies))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert vllm_server.loaded == {f"loragen:{made['id']}": made["path"] for made in (one.json() for one in answers)}
