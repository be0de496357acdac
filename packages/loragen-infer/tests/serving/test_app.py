"""The server's application in this process: answers, limits, and whatever clients send."""

import asyncio
import errno
import io
import json
import os
import queue
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_tokenizer import read_adapter
from loragen_infer import AdapterStore, LoragenInferError
from loragen_infer.cli.main import main

pytest.importorskip("litserve")
from litserve.loops.base import _SENTINEL_VALUE, _StopLoopError
from loragen_infer.serving import guard
from loragen_infer.serving.api import make_api
from loragen_infer.serving.config import ServeConfig
from loragen_infer.serving.server import _Loop, make_app
from starlette.testclient import TestClient

LIMITS = {"max_prompts": 4, "max_prompt_characters": 50, "max_body_bytes": 2000}


@pytest.fixture(scope="module")
def store(generator, tmp_path_factory):
    return AdapterStore(tmp_path_factory.mktemp("served") / "adapters", generator, max_adapters=500)


@pytest.fixture(scope="module")
def client(store):
    with TestClient(make_app(store, ServeConfig(model="m", **LIMITS)), raise_server_exceptions=False) as client:
        yield client


def test_prompts_in_adapter_out(client, store, generator, tmp_path):
    answer = client.post("/adapters", json={"prompts": ["1 + 1", "2 + 3"], "scale": 2})
    made = answer.json()
    assert answer.status_code == 200
    assert made["id"] == made["fingerprint"] == store.id_of(["1 + 1", "2 + 3"], scale=2)
    assert made["is_new"]
    assert made["seconds"] > 0
    assert not client.post("/adapters", json={"prompts": ["1 + 1", "2 + 3"], "scale": 2}).json()["is_new"]
    content = client.get(f"/adapters/{made['id']}").content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
        archive.extractall(tmp_path)
    assert read_adapter(tmp_path).num_parameters == generator.bundle.layout.num_values
    weights = client.get(f"/adapters/{made['id']}", params={"format": "safetensors"}).content
    assert weights == (tmp_path / "adapter_model.safetensors").read_bytes()


def test_health_metrics_and_the_description_of_the_interface(client):
    assert client.get("/health").status_code == 200
    client.post("/adapters", json={"prompts": ["count me"]})
    assert 'loragen_requests_total{method="POST",path="/adapters",status="200"}' in client.get("/metrics").text
    schema = client.get("/openapi.json").json()
    assert {"/adapters", "/adapters/{adapter_id}", "/health", "/metrics"} <= set(schema["paths"])
    assert schema["components"]["schemas"]["AdapterRequest"]["properties"]["prompts"]["maxItems"] == 4


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{}", 422, "prompts: Field required"),
        (b"", 422, "Field required"),
        (b'{"prompts": []}', 422, "at least 1 item"),
        (b'{"prompts": ["a", "a", "a", "a", "a"]}', 422, "at most 4 items"),
        (b'{"prompts": [" "]}', 422, "Prompt 1 of 1 has no text"),
        (b'{"prompts": ["\\ud800"]}', 422, "prompts"),
        (b'{"prompts": "abc"}', 422, "valid list"),
        (b'{"prompts": ["a"], "scale": NaN}', 422, "finite"),
        (b'{"prompts": ["a"], "scale": 1e300}', 422, "would hold NaN or Inf"),
        (b'{"prompts": ["a"], "path": "/etc"}', 422, "path: Extra inputs"),
        (json.dumps({"prompts": ["x" * 51]}).encode(), 422, "at most 50 characters"),
        (b" " * 2001, 413, "The body is over 2,000 bytes"),
        (b"[" * 1900, 400, 'The body cannot be read as JSON; send {"prompts": ["\u2026"]}.'),
        (b'{"prompts": ["a",]}', 422, "cannot be read as JSON; send"),
        (b"{'prompts': ['a']}", 422, "(Expecting property name enclosed in double quotes, character 1)"),
    ],
)
def test_what_is_wrong_is_one_sentence(client, body, status, sentence):
    answer = client.post("/adapters", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize("wrong", ["%2e%2e%2fx", "0" * 15, "A" * 16, "0" * 17, "x%00", "%ff" * 16])
def test_an_id_that_is_none_finds_nothing(client, wrong):
    assert client.get(f"/adapters/{wrong}").status_code in (404, 422)
    assert client.get(f"/adapters/{'0' * 16}").status_code == 404
    assert client.get(f"/adapters/{'0' * 16}?format=exe").status_code == 422


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NEAR = st.fixed_dictionaries(
    {"prompts": JSON | st.lists(st.text(max_size=60), max_size=5)},
    optional={"scale": JSON | st.floats() | st.integers(), "id": JSON},
)
BODIES = st.binary(max_size=200) | JSON.map(json.dumps).map(str.encode) | NEAR.map(json.dumps).map(str.encode)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
def test_whatever_is_sent_is_answered_and_never_a_failure_of_the_server(client, body):
    answer = client.post("/adapters", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 413, 422), (body, answer.text)
    assert answer.status_code == 200 or isinstance(answer.json()["detail"], str)


def test_requests_at_once_are_made_together_and_one_bad_one_spoils_no_other(store, generator, monkeypatch):
    sizes, generate_many = [], generator.generate_many

    def counted(tasks, **options):
        sizes.append(len(tasks))
        return generate_many(tasks, **options)

    monkeypatch.setattr(generator, "generate_many", counted)
    config = ServeConfig(model="m", batch_timeout=0.5, max_batch_size=8)
    with TestClient(make_app(store, config)) as client, ThreadPoolExecutor(8) as pool:
        scales = [1e300 if number == 3 else 1.0 for number in range(8)]
        asked = [{"prompts": [f"together {number}"], "scale": scale} for number, scale in enumerate(scales)]
        answers = list(pool.map(lambda body: client.post("/adapters", json=body), asked))
    assert max(sizes) > 1
    assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200, 200, 200, 200]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")])
def test_a_batch_that_memory_does_not_hold_is_made_one_by_one(store, generator, monkeypatch, error):
    sizes, generate_many = [], generator.generate_many

    def cramped(tasks, **options):
        sizes.append(len(tasks))
        if len(tasks) > 1 or "too large" in tasks[0]:
            raise error
        return generate_many(tasks, **options)

    monkeypatch.setattr(generator, "generate_many", cramped)
    config = ServeConfig(model="m", batch_timeout=0.5, max_batch_size=4)
    with TestClient(make_app(store, config)) as client, ThreadPoolExecutor(4) as pool:
        asked = ["too large", *(f"cramped by {error!r} {number}" for number in range(3))]
        answers = list(pool.map(lambda prompt: client.post("/adapters", json={"prompts": [prompt]}), asked))
    assert max(sizes) > 1
    assert [answer.status_code for answer in answers] == [503, 200, 200, 200]
    sentence = (
        "The adapter cannot be made now: there is not enough memory for it; send fewer prompts, or try again later."
    )
    assert answers[0].json() == {"detail": sentence}


def test_a_store_that_cannot_be_read_is_a_sentence(generator, tmp_path):
    store = AdapterStore(tmp_path / ("x" * 300), generator)
    with TestClient(make_app(store, ServeConfig(model="m")), raise_server_exceptions=False) as client:
        for answer in (client.get(f"/adapters/{'0' * 16}"), client.post("/adapters", json={"prompts": ["a"]})):
            assert answer.status_code == 503
            assert " is longer than the system takes; give a shorter one" in answer.json()["detail"]


def test_the_worker_takes_all_that_wait_and_waits_for_no_other(store):
    config = ServeConfig(model="m", max_batch_size=3)
    api, waiting = make_api(store, config), queue.Queue()
    for number in range(4):
        waiting.put((0, f"uid {number}", 0.0, number))
    waiting.put(_SENTINEL_VALUE)
    loop = _Loop()
    taken = loop.get_batch_requests(api, waiting, None)
    assert taken == ([(0, "uid 0", 0), (0, "uid 1", 1), (0, "uid 2", 2)], [])
    assert loop.get_batch_requests(api, waiting, None) == ([(0, "uid 3", 3)], [])
    with pytest.raises(_StopLoopError):
        loop.get_batch_requests(api, waiting, None)


def test_requests_can_be_made_one_by_one(store):
    with TestClient(make_app(store, ServeConfig(model="m", max_batch_size=1))) as client, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda n: client.post("/adapters", json={"prompts": [f"alone {n}"]}), range(4))
        assert [answer.status_code for answer in answers] == [200] * 4


def test_a_full_queue_and_a_full_disk_have_their_own_codes(store, generator, monkeypatch):
    config = ServeConfig(model="m", max_queue=1, batch_timeout=0.3)
    with TestClient(make_app(store, config)) as client, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: client.post("/adapters", json={"prompts": [f"queue {n}"]}), range(4)))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"]
        assert "requests are open already" in refused.json()["detail"]

        def full(_descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            answer = client.post("/adapters", json={"prompts": ["no room"]})
        assert answer.status_code == 507
        assert "No space left on device" in answer.json()["detail"]
        assert not [path for path in store.folder.iterdir() if ".tmp-" in path.name]
        assert client.post("/adapters", json={"prompts": ["no room"]}).json()["is_new"]


def test_a_body_that_does_not_come_counts_as_open_and_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.1, raising=False)

    async def app(_scope, _receive, _send):
        raise AssertionError("nothing came")

    guarded = guard.RequestGuard(app, config=ServeConfig(model="m", max_queue=1), metrics=guard.Metrics())

    async def stalled():
        await asyncio.sleep(2)
        return {"type": "http.disconnect"}

    async def status() -> int:
        sent = []

        async def send(message):
            sent.append(message)

        await guarded({"type": "http", "method": "POST", "path": "/adapters", "headers": []}, stalled, send)
        return sent[0]["status"]

    async def two() -> list[int]:
        return await asyncio.gather(status(), status())

    assert asyncio.run(two()) == [408, 429]
    assert asyncio.run(status()) == 408  # the place in the queue was given back


def test_a_token_is_asked_for_by_all_that_tells_of_adapters(store):
    with TestClient(make_app(store, ServeConfig(model="m", token="secret"))) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/metrics", f"/adapters/{'0' * 16}"):
                assert client.get(path, headers=headers).status_code == 401
            answer = client.post("/adapters", json={"prompts": ["a"]}, headers=headers)
            assert answer.status_code == 401
        right = {"authorization": "Bearer secret"}
        assert client.post("/adapters", json={"prompts": ["a"]}, headers=right).status_code == 200
    assert "secret" not in repr(ServeConfig(model="m", token="secret"))


def large(store, prompt):
    """An adapter of the store with three megabytes of weights, which would compress well."""
    made = store.get_or_create([prompt])
    (made.path / "adapter_model.safetensors").write_bytes(bytes(3 << 20))
    return made


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_an_adapter_is_sent_piece_by_piece_and_whole_also_if_it_is_removed_meanwhile(store, kind):
    app, made, pieces = make_app(store, ServeConfig(model="m")), large(store, f"in pieces as {kind}"), []
    asked = {"method": "GET", "path": f"/adapters/{made.id}", "query_string": f"format={kind}".encode(), "headers": []}

    async def receive():
        await asyncio.sleep(60)  # there is no body, and the client stays

    async def send(message):
        pieces.append(message.get("body", b""))
        if len(pieces) == 2:
            shutil.rmtree(made.path)

    asyncio.run(app({"type": "http", **asked}, receive, send))
    assert max(map(len, pieces)) <= 1 << 18  # all that a client that takes nothing has the server hold
    content = b"".join(pieces)
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read("adapter_model.safetensors")
    assert content == bytes(3 << 20)


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_an_adapter_is_sent_as_it_is_to_a_client_that_takes_gzip(client, store, kind):
    made = large(store, f"without gzip as {kind}")
    answer = client.get(f"/adapters/{made.id}", params={"format": kind}, headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "identity"
    assert int(answer.headers["content-length"]) == len(answer.content) >= 3 << 20
    assert client.get("/openapi.json", headers={"accept-encoding": "gzip"}).headers["content-encoding"] == "gzip"


def test_an_adapter_that_cannot_be_read_is_a_sentence(client, store):
    made = store.get_or_create(["unreadable"])
    weights = made.path / "adapter_model.safetensors"
    weights.unlink()
    weights.mkdir()
    answer = client.get(f"/adapters/{made.id}", params={"format": "safetensors"})
    assert answer.status_code == 503
    assert answer.json()["detail"] == f"The adapter {made.id} cannot be read: Is a directory."


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70000},
        {"max_queue": 0},
        {"batch_timeout": -0.1},
        {"token": "a\nb"},
        {"token": " a"},
        {"token": ""},
        {"host": ""},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(LoragenInferError, match=next(iter(options)).replace("_", "-")):
        ServeConfig(model="m", **options)


@pytest.mark.parametrize(("option", "variable"), [([], ""), (["--token", ""], None), (["--token", ""], "secret")])
def test_an_empty_token_opens_no_server(monkeypatch, capsys, option, variable):
    """As where a shell or a container passes on a variable that nobody has set."""
    monkeypatch.delenv("LORAGEN_TOKEN", raising=False)
    if variable is not None:
        monkeypatch.setenv("LORAGEN_TOKEN", variable)
    monkeypatch.setattr("loragen_infer.serving.run.run_serve", lambda *_, **__: pytest.fail("it serves"))
    assert main(["serve", "--model", "m", *option]) == 2
    assert "The token (--token, or LORAGEN_TOKEN) is empty; give one, or unset it" in capsys.readouterr().err
