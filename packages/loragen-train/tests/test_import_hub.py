"""Adapters and data sets of the hub: from a cache as the hub's client lays it out, and from a server that speaks as the
hub does."""

import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from lora_tokenizer import find_adapters, write_adapter
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.importing import ImportConfig
from loragen_train.zoo.hub import fetch_adapters
from loragen_train.zoo.importing import import_zoo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def original(tmp_path, make) -> Path:
    return write_adapter(make.adapter(seed=0, base_model_name_or_path="lab/lm"), tmp_path / "original")


def put(cache: Path, repository: str, original: Path, names: tuple[str, ...] = FILES, revision: str = "main") -> Path:
    """Files of ``original`` as the hub's client keeps them of ``repository``."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (snapshot, root / "refs", root / "blobs"):
        folder.mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    for name in names:
        content = (original / name).read_bytes()
        (root / "blobs" / sha256(content).hexdigest()).write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", sha256(content).hexdigest()))
    return snapshot


def test_adapters_and_data_sets_of_the_hub_are_imported_offline(tmp_path, cache, original, make):
    pytest.importorskip("datasets")
    snapshot = put(cache, "lab/lm-r2-sums", original)
    tagged = put(cache, "lab/lm-r2-more", original, revision="v1")
    rows = [{"input": f"What is {n} + 1?", "output": [str(n + 1), "many"]} for n in range(12)]
    make.rows(tmp_path / "data" / "sums" / "train.jsonl", rows)
    (tmp_path / "tasks.csv").write_text(
        "name,adapter,revision,prompts,prompt_column\n"
        "sums,lab/lm-r2-sums,,hf:data/sums,input\n"
        "more,lab/lm-r2-more,v1,hf:data/sums,input\n"
    )
    words = ["--table", str(tmp_path / "tasks.csv"), "--output-dir", str(tmp_path / "zoo"), "--num-test", "4"]
    assert make.cli("import", *words, "--num-samples", "6") == 0
    zoo = ZooManifest.read(tmp_path / "zoo")
    assert zoo.base_model == "lab/lm"
    assert [task.adapters for task in zoo.tasks] == [[str(snapshot)], [str(tagged)]]
    task = zoo.task("sums")
    assert (task.sources, task.prompts.num_samples, task.test.num_samples) == (["hf:data/sums"], 6, 4)
    assert all(row["response"].isdigit() for row in make.read(zoo.samples(task.test)))


def test_test_samples_come_from_another_split_of_the_data_set(tmp_path, cache, original, make):
    """Adapters from elsewhere were most likely trained on all of the split that the prompts are of."""
    pytest.importorskip("datasets")
    put(cache, "lab/lm-r2-sums", original)
    for split, first in (("train", 0), ("test", 100)):
        rows = [{"input": f"What is {first + n} + 1?", "output": str(first + n + 1)} for n in range(8)]
        make.rows(tmp_path / "data" / "sums" / f"{split}.jsonl", rows)
    (tmp_path / "tasks.csv").write_text(
        "name,adapter,prompts,prompt_column,test,test_split\nsums,lab/lm-r2-sums,hf:data/sums,input,hf:data/sums,test\n"
    )
    words = ["--table", str(tmp_path / "tasks.csv"), "--output-dir", str(tmp_path / "zoo")]
    assert make.cli("import", *words) == 0
    zoo = ZooManifest.read(tmp_path / "zoo")
    (task,) = zoo.tasks
    assert {int(row["response"]) for row in make.read(zoo.samples(task.prompts))} == set(range(1, 9))
    assert {int(row["response"]) for row in make.read(zoo.samples(task.test))} == set(range(101, 109))


def test_other_adapters_of_a_repository_are_not_taken(tmp_path, cache, original, make):
    snapshot = put(cache, "lab/several", original)
    write_adapter(make.adapter(seed=1), snapshot / "checkpoint-1")
    make.rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    make.rows(tmp_path / "tasks.jsonl", [{"name": "one", "adapter": "lab/several", "prompts": "prompts.jsonl"}])
    zoo = import_zoo(ImportConfig(table=str(tmp_path / "tasks.jsonl"), output_dir=str(tmp_path / "zoo")))
    (listed,) = zoo.task("one").adapters
    assert find_adapters(listed) == [snapshot / "adapter_model.safetensors"]


def test_what_is_not_wholly_in_the_cache_is_one_sentence_each(tmp_path, cache, original, make):
    put(cache, "lab/begun", original, FILES[:1])
    put(cache, "lab/model", original, FILES[1:])
    make.rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    names = ("lab/begun", "lab/model", "lab/absent", "lab/not--valid")
    table = [{"name": name[4:], "adapter": name, "prompts": "prompts.jsonl"} for name in names]
    make.rows(tmp_path / "tasks.jsonl", table)
    with pytest.raises(LoragenTrainError) as caught:
        import_zoo(ImportConfig(table=str(tmp_path / "tasks.jsonl"), output_dir=str(tmp_path / "zoo")))
    said = str(caught.value).splitlines()
    part = "is no LoRA adapter, or not wholly in the hub cache: it has no"
    assert said[1:] == [
        f"begun: lab/begun {part} adapter_model.safetensors.",
        f"model: lab/model {part} adapter_config.json.",
        "absent: lab/absent is neither a path nor wholly in the hub cache, and the hub cannot be reached, or "
        "HF_HUB_OFFLINE forbids it; allow it, or give a folder.",
        "not--valid: 'lab/not--valid' is neither a path nor a valid name of the hub; correct it.",
    ]


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs; ``files`` are those of ``lab/adapter``, its only repository."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/lab/adapter/revision/main"):
            self._answer(json.dumps({"id": "lab/adapter", "sha": COMMIT}).encode())
        elif path.startswith("/api/models/lab/adapter/revision/"):
            self._answer(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/api/models/lab/adapter/tree/{COMMIT}"):
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": sha256(content).hexdigest()[:40]}
                for name, content in self.files.items()
            ]
            self._answer(json.dumps(listed).encode())
        elif path == f"/lab/adapter/resolve/{COMMIT}/{name}":
            tag = f'"{sha256(self.files[name]).hexdigest()[:40]}"'
            self._answer(self.files[name], headers={"ETag": tag, "X-Repo-Commit": COMMIT})
        else:
            self._answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(original, cache, monkeypatch):
    """A server with an adapter, among files that nobody should download."""
    others = {"optimizer.pt": b"x", "train.py": b"raise SystemExit", "checkpoint-1/adapter_model.safetensors": b"x"}
    files = {name: (original / name).read_bytes() for name in FILES} | others
    handler = type("Hub", (_Hub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def test_only_the_files_of_an_adapter_are_downloaded_and_only_once(hub, original):
    folders, problems = fetch_adapters([("lab/adapter", None)] * 3, num_workers=2)
    assert problems == {}
    folder = folders[("lab/adapter", None)]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: (original / name).read_bytes() for name in FILES
    }
    assert {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line} == set(FILES)
    hub.asked.clear()
    assert fetch_adapters([("lab/adapter", None)], num_workers=1)[0] == folders
    assert not [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]


def test_what_the_hub_does_not_have_is_one_sentence(hub):
    wanted = [("lab/absent", None), ("lab/adapter", "v9")]
    folders, problems = fetch_adapters(wanted, num_workers=2)
    assert folders == {}
    assert problems[wanted[0]].startswith("lab/absent is neither a path nor a repository of the hub that you may read;")
    assert problems[wanted[1]] == "lab/adapter has no revision 'v9' on the hub; correct it."


def test_a_hub_that_cannot_be_reached_is_one_sentence(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    _, problems = fetch_adapters([("lab/adapter", None)], num_workers=1)
    assert "the hub cannot be reached" in problems[("lab/adapter", None)]
