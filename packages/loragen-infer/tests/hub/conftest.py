"""A stand-in of the model hub on this machine: its HTTP API as far as pushing and pulling one model need it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml

TOKEN = "hf_writer"


class Hub:
    """Repositories in memory: of each the branches, and of each of these the commits, newest last."""

    def __init__(self) -> None:
        self.repositories: dict[str, SimpleNamespace] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.stores_large_files = False
        self.outage: int | None = None
        self.breaks_off = False
        outer = self

        class Handler(_Handler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.commit_of(name, revision)[1]

    def commit_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        branches = self.repositories[name].branches
        commits = [commit for branch in branches.values() for commit in branch]
        return branches[revision][-1] if revision in branches else next(one for one in commits if one[0] == revision)

    def commit(self, name: str, branch: str, changes: dict[str, bytes]) -> str:
        commits = self.repositories[name].branches[branch]
        files = {**commits[-1][1], **changes}
        content = repr(sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items()))
        commits.append((hashlib.sha1(content.encode()).hexdigest(), files))
        return commits[-1][0]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_POST(self) -> None:
        self.answer(with_body=True)

    def do_PUT(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        status, headers, content = self.route([unquote(part) for part in path.strip("/").split("/")], body)
        if self.hub.outage is not None:
            status, headers, content = reply(self.hub.outage, {"error": "Not now"})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content[: len(content) // 2] if self.hub.breaks_off else content)
            self.close_connection = self.hub.breaks_off

    def route(self, parts: list[str], body: bytes):
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        match parts:
            case ["large", digest]:
                self.hub.large[digest] = body
                return 200, {}, b""
            case [owner, name, "resolve", revision, file]:
                return self.resolve(f"{owner}/{name}", revision, file, may_read_all=may_write)
            case ["api", "validate-yaml"]:
                head = json.loads(body)["content"].split("---\n")[1]
                assert isinstance(yaml.safe_load(head), dict)
                return reply(200, {"errors": [], "warnings": []})
        if not may_write:
            return reply(401, {"error": "Invalid username or password."})
        match parts:
            case ["api", "repos", "create"]:
                return self.create(json.loads(body))
            case ["api", "models", owner, name]:
                repository_id = f"{owner}/{name}"
                return reply(200, {"id": repository_id, "private": self.hub.repositories[repository_id].is_private})
            case ["api", "models", owner, name, "branch", branch]:
                branches = self.hub.repositories[f"{owner}/{name}"].branches
                if branch in branches:
                    return reply(409, {"error": "Reference already exists"})
                branches[branch] = list(branches["main"])
                return reply(200, {})
            case ["api", "models", owner, name, "preupload", _]:
                files = json.loads(body)["files"]
                kinds = ("lfs" if self.is_large(file["path"]) else "regular" for file in files)
                modes = [
                    {"path": file["path"], "uploadMode": kind, "shouldIgnore": False}
                    for file, kind in zip(files, kinds, strict=True)
                ]
                return reply(200, {"files": modes})
            case [_, repository, "info", "lfs", "objects", "batch"] if repository.endswith(".git"):
                objects = [
                    {**asked, "actions": {"upload": {"href": f"{self.hub.url}/large/{asked['oid']}", "header": {}}}}
                    for asked in json.loads(body)["objects"]
                ]
                return reply(200, {"transfer": "basic", "objects": objects})
            case ["api", "models", owner, name, "commit", branch]:
                return self.commit(f"{owner}/{name}", branch, [json.loads(line) for line in body.splitlines()])
        return reply(404, {"error": "Not Found"})

    def is_large(self, path: str) -> bool:
        return self.hub.stores_large_files and path.endswith(".safetensors")

    def create(self, asked):
        name = f"{asked['organization'] or 'ada'}/{asked['name']}"
        if name in self.hub.repositories:
            return reply(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        first = ("0" * 40, {".gitattributes": b""})
        is_private = asked.get("visibility") == "private"
        self.hub.repositories[name] = SimpleNamespace(is_private=is_private, branches={"main": [first]})
        return reply(200, {"url": f"{self.hub.url}/{name}"})

    def commit(self, name: str, branch: str, lines):
        if self.hub.refusal is not None:
            status, error = self.hub.refusal
            return reply(status, {"error": error})
        changes = {}
        for line in lines[1:]:
            value = line["value"]
            is_plain = line["key"] == "file"
            changes[value["path"]] = base64.b64decode(value["content"]) if is_plain else self.hub.large[value["oid"]]
        commit = self.hub.commit(name, branch, changes)
        self.hub.repositories[name].message = lines[0]["value"]["summary"]
        url = f"{self.hub.url}/{name}/commit/{commit}"
        return reply(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def resolve(self, name: str, revision: str, file: str, *, may_read_all: bool):
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.is_private and not may_read_all):
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        try:
            commit, files = self.hub.commit_of(name, revision)
        except StopIteration:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return 200, {"X-Repo-Commit": commit, "ETag": etag}, files[file]


def reply(status: int, content: object):
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running stand-in, which this process takes for the hub, with an empty cache."""
    server = Hub()
    constants = huggingface_hub.constants
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, which no HTTP server speaks
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()
