"""The finished set file of a store, memory-mapped: tokens of many checkpoints, of which only the touched are loaded."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.safetensors_file import read_header
from lora_tokenizer.io.tensor_ranges import TensorRange
from lora_tokenizer.layout.layout import TokenLayout

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint of a set."""

    key: str
    """Hash over content, layout fingerprint and library version."""
    content: str
    """SHA-256 of the adapter's config and tensors."""
    source: str
    """Path it was read from."""
    crc32: int
    """Checksum of the token bytes."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a set file holds, kept beside it as JSON."""

    version: str
    """Library version that wrote it."""
    fingerprint: str
    """Fingerprint of the layout."""
    layout: str
    """The layout's JSON."""
    num_bytes: int
    """Size of the set file."""
    entries: tuple[Entry, ...]
    """Checkpoints in order; number i is the tensor `tensor_name(i)`."""

    def to_json(self) -> str:
        """JSON of all of it."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """The manifest at `path`, or None if it is missing or damaged."""
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            entries = tuple(Entry(**entry) for entry in content.pop("entries"))
            return cls(entries=entries, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def tensor_name(index: int) -> str:
    """Name of the tokens of checkpoint `index` in a set file."""
    return f"tokens.{index:06d}"


def pieces(path: Path, place: TensorRange) -> Iterator[bytes]:
    """One tensor's bytes, a few megabytes at a time; they end early where the file does or cannot be read."""
    left = place.num_bytes
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as stream:
        stream.seek(place.start)
        while left:
            piece = stream.read(min(CHUNK_BYTES, left))
            if not piece:
                return
            yield piece
            left -= len(piece)


def checksum(path: Path, place: TensorRange) -> int | None:
    """CRC-32 of one tensor's bytes; None if the file ends before them or cannot be read."""
    crc = count = 0
    for piece in pieces(path, place):
        crc = zlib.crc32(piece, crc)
        count += len(piece)
    return crc if count == place.num_bytes else None


class TokenSet(Sequence[Tensor]):
    """Tokens `[N, W]` of every checkpoint of a set, in the order asked for.

    Items are views of a private map of the file: reading one loads its pages only, and writing to one does not reach
    the file. A set can be pickled (to the workers of a DataLoader); each process maps the file for itself.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        """The set's .safetensors file."""
        self.manifest = manifest
        """What it holds."""

    @property
    def layout(self) -> TokenLayout:
        """Layout of the tokens."""
        return TokenLayout.from_json(self.manifest.layout)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Path that each checkpoint was read from."""
        return tuple(Path(entry.source) for entry in self.manifest.entries)

    @functools.cached_property
    def ranges(self) -> dict[str, TensorRange]:
        """Place of every tensor in the file."""
        descriptor = _open(self.path)
        try:
            return read_header(self.path, descriptor).places
        finally:
            os.close(descriptor)

    @functools.cached_property
    def _map(self) -> mmap.mmap:
        descriptor = _open(self.path)
        try:
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self.manifest.entries)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        place = self.ranges[tensor_name(range(len(self))[index])]
        count = place.num_bytes // place.dtype.itemsize
        return torch.frombuffer(self._map, dtype=place.dtype, count=count, offset=place.start).view(place.shape)

    def read(self, index: int) -> Tensor:
        """The tokens `[N, W]` of one checkpoint in memory of their own.

        Unlike an item's, their pages are not of the map, so that reading all of a large set, one after the other, takes
        the memory of one.
        """
        place = self.ranges[tensor_name(range(len(self))[index])]
        tokens_NW = torch.empty(place.shape, dtype=place.dtype)
        with self.path.open("rb") as stream:
            stream.seek(place.start)
            if stream.readinto(tokens_NW.view(torch.uint8).numpy().data) != place.num_bytes:
                raise LoraTokenizerError(f"the token set {self.path} ends early: build it again")
        return tokens_NW

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest}


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise LoraTokenizerError(f"cannot read the token set {path}: {error.strerror}: build it again") from error
