"""Pruning a store: what is kept stays, what is old or unasked for goes, and nothing that is in use."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, TokenStore, store_parts
from lora_tokenizer.locks import file_lock

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


def test_pruning_deletes_what_is_not_kept(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    assert store.prune() == 0
    kept, other = store.get(paths[:3], layout), store.get(paths, layout)
    first_of_other = other[0]
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"x")
    wider = TokenLayout.from_adapter(adapters[0], token_dim=16)
    with pytest.raises(LoraTokenizerError, match="bad"):
        store.get([paths[4], bad], wider)
    assert store.prune(unused_days=1) == 0
    before = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    freed = store.prune(keep=[kept])
    assert freed == before - sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    assert freed > layout.num_tokens * layout.token_dim * 4 * len(paths)
    assert sorted(path.stem for path in (store.folder / "sets").iterdir()) == [kept.path.stem] * 2
    assert torch.equal(first_of_other, layout.encode(adapters[0])), "what is mapped stays readable"
    with pytest.raises(LoraTokenizerError, match="build it again"):
        pickle.loads(pickle.dumps(other))[0]
    reads = count_reads(monkeypatch)
    assert_right(store.get(paths[:3], layout), adapters[:3], layout)
    assert reads == []
    assert_right(store.get(paths, layout), adapters, layout)
    assert reads == paths[3:]


def test_pruning_goes_by_the_last_use(zoo: Zoo, tmp_path: Path) -> None:
    paths, adapters, layout = zoo
    store = TokenStore(tmp_path / "store")
    used, unused = store.get(paths[:2], layout), store.get(paths[2:], layout)
    for path in store.folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    store.get(paths[:2], layout)
    assert store.prune(unused_days=30) > 0
    assert used.path.exists()
    assert not unused.path.exists()
    assert_right(store.get(paths, layout), adapters, layout)


def test_pruning_leaves_a_set_that_is_being_made(zoo: Zoo, tmp_path: Path) -> None:
    paths, _, layout = zoo
    store = TokenStore(tmp_path / "store")
    path = store.get(paths, layout).path
    with file_lock(store.folder / "locks" / f"{path.stem}.lock"):
        store.prune()
        assert path.exists()
    store.prune()
    assert not path.exists()
