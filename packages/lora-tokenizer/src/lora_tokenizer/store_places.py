"""Names and places in a store: what an entry is called, which file it lies in, and what is known of a source.

An entry's name (its key) is a hash over the adapter's content, the layout's fingerprint and the library version, so
what is stale is never found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.errors import writing
from lora_tokenizer.io.atomic import atomic_file
from lora_tokenizer.io.writing import CONFIG_NAME
from lora_tokenizer.layout.layout import TokenLayout
from lora_tokenizer.locks import file_lock
from lora_tokenizer.token_set import Manifest

VERSION = version("lora-tokenizer")
FOLDERS = ("parts", "sets", "sources", "locks")
_CONTENT = re.compile(r"[0-9a-f]{64}")

State = list[list[int | str]]


@dataclass(frozen=True, kw_only=True)
class StorePlaces:
    """The files of one store as one request sees them."""

    folder: Path
    """The store."""
    layout: TokenLayout
    """Layout of the tokens asked for."""
    read_options: dict[str, Any]
    """How sources are read; the same file read in another way may hold another adapter."""

    def key(self, content: str) -> str:
        """Name of the entry of an adapter with this content hash."""
        return _name(content, self.layout.fingerprint, VERSION)

    def part(self, key: str) -> Path:
        """File of one entry that is in no set yet."""
        return self.folder / "parts" / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the entry is there, as a part or in a set; its bytes are not checked."""
        return self.part(key).exists() or key in self.keys_in_sets()

    def set_file(self, keys: Sequence[str]) -> Path:
        """File of the set of these entries in this order."""
        return self.folder / "sets" / f"{_name(*keys)}.safetensors"

    def sets(self) -> Iterator[tuple[Path, Manifest]]:
        """The finished sets of this layout and version."""
        for path in sorted((self.folder / "sets").glob("*.json")):
            manifest, file = Manifest.read(path), path.with_suffix(".safetensors")
            if manifest is None or (manifest.fingerprint, manifest.version) != (self.layout.fingerprint, VERSION):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process may prune the store
                if file.stat().st_size == manifest.num_bytes:
                    yield file, manifest

    def keys_in_sets(self) -> set[str]:
        """Names of all entries in finished sets."""
        return {entry.key for _, manifest in self.sets() for entry in manifest.entries}

    def lock(self, file: Path, *, wait: bool = True) -> contextlib.AbstractContextManager[bool]:
        """The lock on the making of a record or a set."""
        return file_lock(self.folder / "locks" / f"{file.stem}.lock", wait=wait)

    def record_file(self, source: Path) -> Path:
        """File that says what a source held."""
        options = json.dumps(self.read_options, sort_keys=True, default=repr)
        return self.folder / "sources" / f"{_name(str(source), options, VERSION)}.json"

    def known_content(self, source: Path) -> str | None:
        """Content hash of a source that has not changed since it was recorded, else None."""
        try:
            record = json.loads(self.record_file(source).read_bytes())
            content = record["content"]
            return content if _CONTENT.fullmatch(content) and record["state"] == state_of(source) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def record(self, source: Path, state: State, content: str) -> None:
        """Remember what a source held in this state."""
        file = self.record_file(source)
        with writing(file), atomic_file(file) as temporary:
            text = json.dumps({"path": str(source), "state": state, "content": content})
            temporary.write_text(text, encoding="utf-8")


def _name(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def content_hash(adapter: LoraAdapter) -> str:
    """SHA-256 over an adapter's config, names, shapes, dtypes and values; the file they came in does not matter."""
    digest = hashlib.sha256(json.dumps(adapter.config.to_peft()).encode())
    for name, tensor in adapter.tensors.items():
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as bytes, row-major, without a copy where they lie so."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def state_of(source: Path) -> State:
    """Name, size, times and inode of the files that make up a source; any change makes what is known of it stale."""
    try:
        files = [source, source.parent / CONFIG_NAME]
        if source.is_dir():
            files = sorted(path for path in source.iterdir() if path.name.startswith("adapter_"))
        found = [(path.name, path.stat()) for path in files if path.is_file()]
    except OSError:
        return []  # reading it will say what is wrong
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in found]
