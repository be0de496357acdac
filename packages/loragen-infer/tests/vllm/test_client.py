"""Loading adapters into a running vLLM: what is sent, and one sentence for whatever comes back."""

import socket
import threading
from pathlib import Path

import pytest
from loragen_infer import LoragenInferError
from loragen_infer.store import StoredAdapter
from loragen_infer.vllm import VllmClient
from loragen_infer.vllm.client import VllmError

ID = "00000000000000ff"
NAME = f"loragen:{ID}"


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return StoredAdapter(id=ID, path=Path("adapters") / ID, is_new=True, seconds=0.0)


def test_an_adapter_is_loaded_once_and_unloaded_once(vllm_server, adapter, tmp_path):
    client = VllmClient(f"{vllm_server.url}/v1/")
    assert client.load(adapter) == NAME
    assert client.load(adapter) == NAME  # the second time vLLM says no, since it has it
    path = str(tmp_path / "adapters" / ID)
    assert vllm_server.requests[0] == ("/v1/load_lora_adapter", {"lora_name": NAME, "lora_path": path}, None)
    assert vllm_server.loaded == {NAME: path}
    assert client.served_models() == ["base", NAME]
    client.unload(ID)
    client.unload(ID)
    assert vllm_server.loaded == {}


def test_what_is_loaded_or_gone_already_is_known_without_the_list_of_all(vllm_server, adapter):
    client = VllmClient(vllm_server.url)
    vllm_server.loaded = {f"loragen:{number:016x}": "x" * 400 for number in range(1000)}
    client.load(adapter)
    client.unload("f" * 16)
    assert {path for path, _, _ in vllm_server.requests} == {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    vllm_server.answer = (400, {"error": {"message": "The lora adapter 'loragen:1' has already been loaded."}})
    with pytest.raises(LoragenInferError, match="does not load"):
        client.load(StoredAdapter(id="e" * 16, path=adapter.path, is_new=True, seconds=0.0))


def test_the_token_goes_along_and_nowhere_else(vllm_server, adapter):
    vllm_server.token = "secret"
    assert VllmClient(vllm_server.url, "secret").load(adapter) == NAME
    with pytest.raises(LoragenInferError, match=r"status 401: Unauthorized\); set VLLM_API_KEY"):
        VllmClient(vllm_server.url).load(adapter)
    vllm_server.answer = (307, "")
    vllm_server.requests.clear()
    with pytest.raises(LoragenInferError, match=r"status 307: no reason given"):
        VllmClient(vllm_server.url, "secret").load(adapter)
    assert [path for path, _, _ in vllm_server.requests] == ["/v1/load_lora_adapter"]


def test_a_vllm_that_lets_nobody_load_is_told_from_one_without_the_folder(vllm_server, adapter):
    client = VllmClient(vllm_server.url)
    vllm_server.allows_updates = False
    with pytest.raises(LoragenInferError, match="start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        client.load(adapter)
    message = f"Loading lora {NAME} failed: No adapter found for /adapters"
    vllm_server.answer = (404, {"error": {"message": message}})
    with pytest.raises(LoragenInferError, match=r"No adapter found for /adapters\); let it see the folder"):
        client.load(adapter)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, {"error": {"message": "LoRA rank 32 is greater than max_lora_rank 16."}}), "rank 32 is greater"),
        ((400, {"message": "of older\nreleases"}), "status 400: of older releases"),
        ((502, "<html>" + "x" * 10_000), "status 502: <html>x"),
        ((503, ""), "status 503: no reason given"),
        ((500, "[" * 100_000), "status 500"),
        ((500, {"error": None}), "status 500"),
    ],
)
def test_whatever_comes_back_is_one_sentence(vllm_server, adapter, answer, said):
    vllm_server.answer = answer
    client = VllmClient(vllm_server.url)
    for ask in (lambda: client.load(adapter), lambda: client.unload(ID), client.served_models):
        with pytest.raises(LoragenInferError) as caught:
            ask()
        sentence = str(caught.value)
        assert sentence.startswith(f"vLLM at {vllm_server.url} does not")
        assert said in sentence
        assert len(sentence) < 600
        assert "\n" not in sentence


def test_nobody_there(adapter):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LoragenInferError, match=r"cannot be reached \(.*refused\); start it"):
            VllmClient(url).load(adapter)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(LoragenInferError, match=r"cannot be reached \(timed out\)"):
            VllmClient(url, timeout=0.1).load(adapter)


@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
def test_an_answer_that_does_not_come_to_its_end(adapter, status):
    with socket.create_server(("127.0.0.1", 0)) as server:
        is_over = threading.Event()

        def answer_half() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 100\r\n\r\nhalf".encode())
                is_over.wait(60)

        thread = threading.Thread(target=answer_half)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(VllmError, match=r"cannot be reached \(timed out\)"):
            VllmClient(url, timeout=0.3).load(adapter)
        is_over.set()
        thread.join()


@pytest.mark.parametrize("url", ["", "localhost:8000", "file:///etc/passwd", "http://", "http://[::1", "http://a?b=c"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(LoragenInferError, match="address of vLLM is"):
        VllmClient(url)


def test_a_token_that_no_header_holds_is_refused_and_not_shown():
    with pytest.raises(LoragenInferError) as caught:
        VllmClient("http://localhost:8000", "secret\r\nX-Other: 1")
    assert "secret" not in str(caught.value)
