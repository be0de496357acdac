"""The store: what is there is found, killed work resumes, what is damaged is made again, processes share the work."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer import (
    LoraAdapter,
    LoraTokenizerError,
    TokenLayout,
    TokenStats,
    TokenStore,
    store_parts,
    store_places,
    store_sets,
    write_adapter,
)
from safetensors.torch import load_file

Zoo = tuple[list[Path], list[LoraAdapter], TokenLayout]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    reads: list[Path] = []
    original = store_parts.read_adapter

    def counting(path: Path, **options: Any) -> LoraAdapter:
        reads.append(path)
        return original(path, **options)

    monkeypatch.setattr(store_parts, "read_adapter", counting)
    return reads


def assert_right(tokens: Any, adapters: list[LoraAdapter], layout: TokenLayout) -> None:
    assert len(tokens) == len(adapters)
    for index, adapter in enumerate(adapters):
        assert torch.equal(tokens[index], layout.encode(adapter))


def test_items_are_the_encoded_checkpoints_in_order(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    seen: list[tuple[int, int]] = []
    tokens = TokenStore(tmp_path / "store").get(
        paths, layout, on_progress=lambda done, total: seen.append((done, total))
    )
    assert_right(tokens, adapters, layout)
    assert seen == [(i, 5) for i in range(1, 6)]
    assert tokens.layout == layout
    assert list(tokens.sources) == paths
    assert torch.equal(tokens[-1], tokens[4])
    assert len(tokens[1:3]) == 2
    assert all(torch.equal(tokens.read(index), tokens[index]) for index in range(-1, 5))
    with pytest.raises(IndexError):
        tokens[5]
    assert TokenStats.from_tokens(tokens).count == 5
    assert_right(pickle.loads(pickle.dumps(tokens)), adapters, layout)


def test_the_set_is_one_plain_safetensors_file_and_parts_are_gone(zoo: Zoo, tmp_path: Path) -> None:
    paths, _, layout = zoo
    store = TokenStore(tmp_path / "store")
    tokens = store.get(paths, layout)
    assert len(load_file(tokens.path)) == 5
    assert list((store.folder / "parts").iterdir()) == []
    assert [path.suffix for path in sorted((store.folder / "sets").iterdir())] == [".json", ".safetensors"]


def test_reading_a_set_that_was_cut_short_says_so(zoo: Zoo, tmp_path: Path) -> None:
    paths, _, layout = zoo
    tokens = TokenStore(tmp_path / "store").get(paths, layout)
    assert tokens.read(0).shape == (layout.num_tokens, layout.token_dim)
    os.truncate(tokens.path, tokens.path.stat().st_size - 1)
    with pytest.raises(LoraTokenizerError, match="ends early: build it again"):
        tokens.read(4)


def test_writing_to_an_item_does_not_reach_the_file(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    store.get(paths, layout)[0].zero_()
    assert_right(store.get(paths, layout), adapters, layout)


def test_a_second_request_reads_no_checkpoint(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    store.get(paths[:4], layout)
    reads = count_reads(monkeypatch)
    assert_right(store.get(paths[:4], layout), adapters[:4], layout)
    assert reads == []
    assert_right(store.get(paths, layout), adapters, layout)
    assert reads == [paths[4]]


def test_a_changed_checkpoint_is_read_again(zoo: Zoo, tmp_path: Path, make_adapter: Any, monkeypatch: Any) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    store.get(paths, layout)
    adapters[2] = make_adapter()
    write_adapter(adapters[2], paths[2], overwrite=True)
    reads = count_reads(monkeypatch)
    assert_right(store.get(paths, layout), adapters, layout)
    assert reads == [paths[2]]


def test_another_layout_or_version_is_another_entry(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    store.get(paths, layout)
    wider = TokenLayout.from_adapter(adapters[0], token_dim=16)
    assert_right(store.get(paths, wider), adapters, wider)
    reads = count_reads(monkeypatch)
    monkeypatch.setattr(store_places, "VERSION", "9.9.9")
    assert_right(store.get(paths, layout), adapters, layout)
    assert reads == paths


@pytest.mark.parametrize("where", ["data", "header", "cut", "manifest", "missing"])
def test_a_damaged_set_is_made_again(where: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    tokens = store.get(paths, layout)
    raw = bytearray(tokens.path.read_bytes())
    if where == "data":
        raw[-3] ^= 1
    elif where == "header":
        raw[20:40] = b"\0" * 20
    elif where == "cut":
        raw = raw[:-8]
    tokens.path.write_bytes(raw)
    if where == "manifest":
        tokens.path.with_suffix(".json").write_text("{")
    elif where == "missing":
        tokens.path.unlink()
    reads = count_reads(monkeypatch)
    assert_right(store.get(paths, layout), adapters, layout)
    assert reads == ([paths[4]] if where == "data" else paths)


def test_a_damaged_record_of_a_source_is_made_again(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    store.get(paths, layout)
    for record in (store.folder / "sources").iterdir():
        content = json.loads(record.read_bytes())
        record.write_text(json.dumps(content | {"content": "\ud800"}))
    assert_right(store.get(paths, layout), adapters, layout)


def test_a_damaged_part_is_made_again(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not an adapter")
    with pytest.raises(LoraTokenizerError, match=r"bad\.safetensors"):
        store.get([*paths, bad], layout)
    parts = sorted((store.folder / "parts").iterdir())
    assert len(parts) == 5
    raw = bytearray(parts[0].read_bytes())
    raw[-1] ^= 1
    parts[0].write_bytes(raw)
    parts[1].write_bytes(b"")
    assert_right(store.get(paths, layout), adapters, layout)


BUILD = """
import sys, time
from pathlib import Path
import lora_tokenizer.store_parts as s
from lora_tokenizer import TokenLayout, TokenStore, find_adapters
root, pause = Path(sys.argv[1]), float(sys.argv[2])
read = s.read_adapter
def slow(path, **options):
    time.sleep(pause)
    print(path.name, flush=True)
    return read(path, **options)
s.read_adapter = slow
layout = TokenLayout.from_json((root / "layout.json").read_text())
print("ready", flush=True)
tokens = TokenStore(root / "store").get(find_adapters(root / "zoo"), layout)
print("sum", float(sum(t.double().sum() for t in tokens)), flush=True)
"""


def start(root: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_work_resumes_without_losing_what_was_done(zoo: Zoo, tmp_path: Path, monkeypatch: Any) -> None:
    paths, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    process = start(tmp_path, 0.2)
    parts = tmp_path / "store" / "parts"
    deadline = time.monotonic() + 60
    while not parts.is_dir() or len([p for p in parts.iterdir() if p.name[0] != "."]) < 2:
        assert time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "store" / "sets").iterdir())
    done = len([p for p in parts.iterdir() if p.name[0] != "."])
    (parts / f".x.tmp-{'gone'}-1-ab").write_bytes(b"")
    reads = count_reads(monkeypatch)
    assert_right(TokenStore(tmp_path / "store").get(paths, layout), adapters, layout)
    assert 2 <= done < 5
    assert len(reads) <= 5 - done + 1


def test_processes_share_the_work(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    outputs = [process.communicate(timeout=100)[0] for process in [start(tmp_path, 0.3), start(tmp_path, 0.3)]]
    sums = [line for output in outputs for line in output.splitlines() if line.startswith("sum")]
    assert len(sums) == 2, outputs
    assert sums[0] == sums[1]
    assert float(sums[0].split()[1]) == float(sum(layout.encode(a).double().sum() for a in adapters))
    read = [line for output in outputs for line in output.splitlines() if line.startswith("checkpoint")]
    assert sorted(read) == sorted(path.name for path in paths), "each checkpoint is read once"


def test_worker_processes_build_the_same_set(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    assert_right(TokenStore(tmp_path / "store").get(paths, layout, num_workers=2), adapters, layout)


FULL = """
import resource, signal, sys
from pathlib import Path
from lora_tokenizer import LoraTokenizerError, TokenLayout, TokenStore, find_adapters
root = Path(sys.argv[1])
layout = TokenLayout.from_json((root / "layout.json").read_text())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    TokenStore(root / "store").get(find_adapters(root / "zoo"), layout)
except LoraTokenizerError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "folder"), [(400, "parts"), (4096, "sets")])
def test_a_full_disk_is_reported_with_nothing_half_written(zoo: Zoo, tmp_path: Path, limit: int, folder: str) -> None:
    paths, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    command = [sys.executable, "-c", FULL, str(tmp_path), str(limit)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert output.startswith("no space left to write"), output
    assert f"/{folder}/" in output
    assert list((tmp_path / "store" / folder).iterdir()) == []
    assert_right(TokenStore(tmp_path / "store").get(paths, layout), adapters, layout)


SMALL_DISK = """
import sys
from pathlib import Path
from lora_tokenizer import LoraTokenizerError, TokenLayout, TokenStore, find_adapters, write_adapter, read_adapter
root, disk = Path(sys.argv[1]), Path(sys.argv[2])
layout = TokenLayout.from_json((root / "layout.json").read_text())
paths = find_adapters(root / "zoo")
filler = disk / "filler"
room = int(sys.argv[3])
with filler.open("wb") as stream:
    stream.write(bytes((256 << 10) - room))
def everything():
    return sorted(str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file() and "locks" not in p.parts)
def attempt(what):
    try:
        what()
    except LoraTokenizerError as error:
        print(error)
    print(everything())
attempt(lambda: TokenStore(disk / "store").get(paths, layout))
attempt(lambda: write_adapter(read_adapter(paths[0]), disk / "adapter"))
filler.unlink()
tokens = TokenStore(disk / "store").get(paths, layout)
print(float(sum(t.double().sum() for t in tokens)))
"""


@pytest.mark.parametrize("room", [0, 4 << 10, 20 << 10, 44 << 10])
def test_a_disk_that_is_really_full(room: int, zoo: Zoo, tmp_path: Path) -> None:
    _, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=256k small {tmp_path}/disk"
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*shell, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no test mount a small disk")
    script = f'{mount} && exec "$0" -c "$1" {tmp_path} {tmp_path}/disk {room}'
    command = [*shell, script, sys.executable, SMALL_DISK]
    output = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout.splitlines()
    error, after_store, *others, total = output
    assert error.startswith(("no space left to write", "cannot write")), output
    assert ".tmp-" not in after_store
    assert ".tmp-" not in others[-1]
    assert ("adapter/" in others[-1]) == ("adapter/adapter_model.safetensors" in others[-1])
    assert float(total) == float(sum(layout.encode(a).double().sum() for a in adapters)), "with room it goes on"


def test_a_part_that_another_process_takes_away_is_found_in_its_set_or_made_again(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    original = store_sets._kind

    def other_process_wins(places: Any, source: Path, content: str, in_sets: Any) -> Any:
        kind = original(places, source, content, in_sets)
        if source == paths[-1]:  # all parts were seen, none is copied yet
            monkeypatch.setattr(store_sets, "_kind", original)
            store.get(paths[:3], layout)
            places.part(places.key(content)).unlink()
        return kind

    monkeypatch.setattr(store_sets, "_kind", other_process_wins)
    reads = count_reads(monkeypatch)
    assert_right(store.get(paths, layout), adapters, layout)
    assert reads == [*paths, paths[4]]


def test_a_source_that_changes_meanwhile_is_an_error(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_adapter: Any
) -> None:
    paths, _, layout = zoo
    original = store_sets._kind

    def changed(places: Any, source: Path, content: str, in_sets: Any) -> Any:
        kind = original(places, source, content, in_sets)
        write_adapter(make_adapter(), source, overwrite=True)
        places.part(places.key(content)).unlink()
        return kind

    monkeypatch.setattr(store_sets, "_kind", changed)
    with pytest.raises(LoraTokenizerError, match="checkpoint-0 changed while it was tokenized"):
        TokenStore(tmp_path / "store").get(paths, layout)
    assert list((tmp_path / "store" / "sets").iterdir()) == []


def test_a_file_system_without_locks(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    paths, adapters, layout = zoo
    assert_right(TokenStore(tmp_path / "store").get(paths, layout), adapters, layout)


def test_what_the_system_refuses_is_one_sentence(zoo: Zoo, tmp_path: Path) -> None:
    paths, _, layout = zoo
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(LoraTokenizerError, match="cannot write"):
            TokenStore(folder).get(paths, layout)
    for source in ("x" * 5000, "a\0b"):
        with pytest.raises(LoraTokenizerError, match=r"read|exist"):
            TokenStore(tmp_path / "store").get([source], layout)


def test_no_checkpoints_is_an_error(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(LoraTokenizerError, match="no checkpoints"):
        TokenStore(tmp_path / "store").get([], zoo[2])
    with pytest.raises(LoraTokenizerError, match="does not exist"):
        TokenStore(tmp_path / "store").get([tmp_path / "nowhere"], zoo[2])
