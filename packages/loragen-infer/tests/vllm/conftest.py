"""Stand-ins for vLLM: its plugin's modules with the signatures of release 0.33, and its HTTP endpoints for LoRA."""

import dataclasses
import json
import sys
import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import pytest


@dataclasses.dataclass
class LoRARequest:
    """The fields and checks of vLLM's."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False
    is_3d_lora_weight: bool = False

    def __post_init__(self):
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class Registry:
    def __init__(self):
        self.resolvers = {}

    def get_supported_resolvers(self):
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        assert isinstance(resolver, LoRAResolver)
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        return self.resolvers[resolver_name]


@pytest.fixture
def vllm(monkeypatch):
    """Modules of the names that vLLM has, for as long as the test runs; what is returned is its registry."""
    registry = Registry()
    content = {
        "vllm": {},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolver": LoRAResolver, "LoRAResolverRegistry": registry},
    }
    for name, members in content.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    # So that the resolver is defined on this stand-in, and not on that of an earlier test.
    monkeypatch.delitem(sys.modules, "loragen_infer.vllm.resolver", raising=False)
    yield registry
    sys.modules.pop("loragen_infer.vllm.resolver", None)


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(body)

    def _answer(self, body):
        state = self.server.state
        state.requests.append((self.path, body, self.headers.get("Authorization")))
        status, content = state.answer or self._serve(state, body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        if status == 307:
            self.send_header("Location", f"{state.url}/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self, state, body):
        def error(status, message):
            return status, {"error": {"message": message, "type": "Error", "param": None, "code": status}}

        if state.token is not None and self.headers.get("Authorization") != f"Bearer {state.token}":
            return 401, {"error": "Unauthorized"}
        if self.path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name} for name in ["base", *state.loaded]]}
        if not state.allows_updates:
            return 404, {"detail": "Not Found"}
        name = body["lora_name"]
        if self.path == "/v1/unload_lora_adapter":
            if name not in state.loaded:
                return error(404, f"The lora adapter '{name}' cannot be found.")
            del state.loaded[name]
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        assert self.path == "/v1/load_lora_adapter"
        if state.meeting is not None:
            state.meeting.wait(20)
        if name in state.loaded:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        state.loaded[name] = body["lora_path"]
        return 200, f"Success: LoRA adapter '{name}' added successfully."


@pytest.fixture
def vllm_server():
    """vLLM's endpoints on a port of this machine.

    ``answer`` is what it says to everything, if that is set, and at ``meeting``, a barrier, loads wait for each other.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    server.state = SimpleNamespace(
        url=url, loaded={}, requests=[], token=None, allows_updates=True, answer=None, meeting=None
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.state
    server.shutdown()
    server.server_close()
    thread.join()
