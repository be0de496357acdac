"""The cache: what is unchanged is not read, a file is whole or not there, and processes share the work."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenCache, TokenLayout, TokenStats, cache, write_adapter

Zoo = tuple[list[Path], list[LoraAdapter], TokenLayout]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints that have been read."""
    found: list[Path] = []
    original = cache.read_adapter

    def counting(path: Path, **options: Any) -> LoraAdapter:
        found.append(path)
        return original(path, **options)

    monkeypatch.setattr(cache, "read_adapter", counting)
    return found


def assert_right(tokens: Any, adapters: list[LoraAdapter], layout: TokenLayout) -> None:
    assert len(tokens) == len(adapters)
    for index, adapter in enumerate(adapters):
        assert torch.equal(tokens[index], layout.encode(adapter))


def test_items_are_the_encoded_checkpoints_in_order(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    done: list[int] = []
    tokens = TokenCache(tmp_path / "cache").get(paths, layout, on_done=lambda: done.append(1))
    assert_right(tokens, adapters, layout)
    assert len(done) == 5
    assert [Path(entry["path"]) for entry in tokens.entries] == paths
    assert torch.equal(tokens[-1], tokens[4])
    assert TokenStats.from_tokens(tokens).count == 5
    assert_right(pickle.loads(pickle.dumps(tokens)), adapters, layout)
    tokens[0].zero_()
    assert_right(tokens, adapters, layout)


def test_a_second_request_reads_no_checkpoint(
    zoo: Zoo, tmp_path: Path, reads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    paths, adapters, layout = zoo
    TokenCache(tmp_path / "cache").get(paths, layout)
    reads.clear()
    with caplog.at_level(logging.INFO):
        assert_right(TokenCache(tmp_path / "cache").get(paths, layout), adapters, layout)
    assert reads == []
    assert "tokens of 5 checkpoints are in the cache" in caplog.text


def test_a_changed_checkpoint_or_another_way_of_reading_is_another_file(
    zoo: Zoo, tmp_path: Path, reads: list[Path], make_adapter: Any
) -> None:
    paths, adapters, layout = zoo
    store = TokenCache(tmp_path / "cache")
    first = store.get(paths, layout)
    wider = TokenLayout.from_adapter(adapters[0], token_dim=16)
    assert_right(store.get(paths, wider), adapters, wider)
    store.get(paths, layout, check_values=False)
    assert len(reads) == 15
    before = adapters[2]
    adapters[2] = make_adapter()
    write_adapter(adapters[2], paths[2], overwrite=True)
    assert_right(store.get(paths, layout), adapters, layout)
    assert_right(first, [*adapters[:2], before, *adapters[3:]], layout)


def test_a_checkpoint_of_the_same_size_and_time_but_other_content_is_read_again(zoo: Zoo, tmp_path: Path) -> None:
    paths, _, layout = zoo
    store = TokenCache(tmp_path / "cache")
    before = store.get(paths, layout)
    weights = paths[0] / "adapter_model.safetensors"
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1  # the lowest bits of an exponent
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not torch.equal(store.get(paths, layout)[0], before[0])


def test_settings_beside_bare_checkpoints_are_part_of_what_is_known(
    tmp_path: Path, make_adapter: Any, reads: list[Path]
) -> None:
    adapter = make_adapter()
    torch.save(dict(adapter.tensors), tmp_path / "x.ckpt")
    layout = TokenLayout.from_adapter(adapter, token_dim=8)
    for config, num_reads in (('{"r": 4, "lora_alpha": 8}', 1), (None, 1), ('{"r": 4, "lora_alpha": 8.0}', 2)):
        if config is not None:
            (tmp_path / "adapter_config.json").write_text(config)
        TokenCache(tmp_path / "cache").get([tmp_path / "x.ckpt"], layout)
        assert len(reads) == num_reads


@pytest.mark.parametrize("content", [b"", b"junk", b"[" * 100 + b"\xff" * 8, b"\0" * 8, b"{}" + b"\2" + b"\0" * 7])
def test_a_damaged_file_is_made_again(content: bytes, zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    store = TokenCache(tmp_path / "cache")
    store.get(paths, layout).file.write_bytes(content)
    assert_right(store.get(paths, layout), adapters, layout)


def test_what_cannot_be_used_is_raised_or_left_out_and_not_read_again(
    zoo: Zoo, tmp_path: Path, reads: list[Path], make_adapter: Any
) -> None:
    paths, adapters, layout = zoo
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not an adapter")
    other = write_adapter(make_adapter(r=2), tmp_path / "other")
    store = TokenCache(tmp_path / "cache")
    with pytest.raises(LoraTokenizerError, match=r"bad\.safetensors"):
        store.get([*paths, bad], layout)
    assert list(store.folder.glob("*.tokens")) == []
    for _ in range(2):
        left_out: dict[Path, str] = {}
        tokens = store.get([bad, *paths, other], layout, on_error=left_out.__setitem__)
        assert_right(tokens, adapters, layout)
        assert list(left_out) == [bad, other]
        assert left_out[other].startswith(f"{other}: tensor ")
        assert len(reads) == 13
    with pytest.raises(LoraTokenizerError, match=r"bad\.safetensors"):
        store.get([bad, *paths, other], layout)


BUILD = """
import sys, time
from pathlib import Path
from lora_tokenizer import TokenCache, TokenLayout, cache, find_adapters
root, pause = Path(sys.argv[1]), float(sys.argv[2])
read = cache.read_adapter
def slow(path, **options):
    time.sleep(pause)
    print(path.name, flush=True)
    return read(path, **options)
cache.read_adapter = slow
layout = TokenLayout.from_json((root / "layout.json").read_text())
tokens = TokenCache(root / "cache").get(find_adapters(root / "zoo"), layout)
print("sum", float(sum(t.double().sum() for t in tokens)), flush=True)
"""


def start(root: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(root), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_after_kill_9_the_file_is_made_as_if_nothing_had_happened(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    with start(tmp_path, 0.5) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "checkpoint-0\n"
        process.send_signal(signal.SIGKILL)
    folder = tmp_path / "cache"
    assert not list(folder.glob("*.tokens"))
    assert_right(TokenCache(folder).get(paths, layout), adapters, layout)
    assert not [path for path in folder.iterdir() if ".tmp-" in path.name]


def test_of_two_processes_one_reads(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    outputs = [process.communicate(timeout=100)[0] for process in [start(tmp_path, 0.1), start(tmp_path, 0.1)]]
    lines = [line for output in outputs for line in output.splitlines()]
    total = float(sum(layout.encode(a).double().sum() for a in adapters))
    assert [line for line in lines if line.startswith("sum")] == [f"sum {total}"] * 2, outputs
    assert sorted(line for line in lines if line.startswith("checkpoint")) == [path.name for path in paths]


FULL = """
import resource, signal, sys
from pathlib import Path
from lora_tokenizer import LoraTokenizerError, TokenCache, TokenLayout, find_adapters
root = Path(sys.argv[1])
layout = TokenLayout.from_json((root / "layout.json").read_text())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    TokenCache(root / "cache").get(find_adapters(root / "zoo"), layout)
except LoraTokenizerError as error:
    print(error)
"""


def test_a_full_disk_is_reported_with_nothing_half_written(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    (tmp_path / "layout.json").write_text(layout.to_json())
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    assert output.startswith("no space left to write"), output
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert_right(TokenCache(tmp_path / "cache").get(paths, layout), adapters, layout)


def test_what_the_system_refuses_is_one_sentence(zoo: Zoo, tmp_path: Path) -> None:
    paths, _, layout = zoo
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(LoraTokenizerError, match="cannot write"):
            TokenCache(folder).get(paths, layout)
    for source in ("x" * 5000, "a\0b", tmp_path / "nowhere"):
        with pytest.raises(LoraTokenizerError, match=r"read|exist"):
            TokenCache(tmp_path / "cache").get([source], layout)
    with pytest.raises(LoraTokenizerError, match="no checkpoints"):
        TokenCache(tmp_path / "cache").get([], layout)
