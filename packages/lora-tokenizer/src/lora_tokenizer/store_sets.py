"""Putting the entries of one request together into one set file, of bytes whose checksums were verified."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from lora_tokenizer import store_places
from lora_tokenizer.errors import LoraTokenizerError, writing
from lora_tokenizer.io.atomic import atomic_file
from lora_tokenizer.io.safetensors_file import header_bytes
from lora_tokenizer.io.tensor_ranges import TensorRange
from lora_tokenizer.store_parts import build, open_part
from lora_tokenizer.store_places import StorePlaces
from lora_tokenizer.token_set import Entry, Manifest, TokenSet, checksum, pieces, tensor_name


@dataclass(frozen=True, slots=True)
class _Copy:
    """One place where the bytes of an entry should lie."""

    path: Path
    place: TensorRange
    crc: int


def assemble(places: StorePlaces, sources: list[Path], contents: dict[Path, str], verify: bool) -> TokenSet:
    """The set file of these entries: the one that is there if it is whole, else a new one made of the parts."""
    keys = [places.key(contents[source]) for source in sources]
    file = places.set_file(keys)
    with places.lock(file):
        found = _open_set(file, keys, verify)
        if found is None:
            found = _write_set(places, file, sources, contents)
        else:
            os.utime(file.with_suffix(".json"))  # pruning goes by when a set was last asked for
        for key in keys:
            places.part(key).unlink(missing_ok=True)
    return found


def _open_set(file: Path, keys: list[str], verify: bool) -> TokenSet | None:
    manifest = Manifest.read(file.with_suffix(".json"))
    if manifest is None or [entry.key for entry in manifest.entries] != keys or not file.is_file():
        return None
    found = TokenSet(file, manifest)
    try:
        ranges = found.ranges
    except LoraTokenizerError:
        return None
    for index, entry in enumerate(manifest.entries):
        place = ranges.get(tensor_name(index))
        if place is None or (verify and checksum(file, place) != entry.crc32):
            return None
    return found


def _write_set(places: StorePlaces, file: Path, sources: list[Path], contents: dict[Path, str]) -> TokenSet:
    in_sets = _copies_in_sets(places)
    tensors = []
    for index, source in enumerate(sources):
        dtype, shape = _kind(places, source, contents[source], in_sets)
        tensors.append((tensor_name(index), dtype, shape))
    layout = places.layout.to_json()
    entries = []
    with writing(file), atomic_file(file) as temporary:
        with temporary.open("wb") as stream:
            metadata = {"format": "pt", "layout": layout, "lora_tokenizer": store_places.VERSION}
            stream.write(header_bytes(tensors, metadata))
            for source in sources:
                crc = _append(places, source, contents[source], in_sets, stream)
                entries.append(Entry(places.key(contents[source]), contents[source], str(source), crc))
        num_bytes = temporary.stat().st_size
    manifest = Manifest(
        version=store_places.VERSION,
        fingerprint=places.layout.fingerprint,
        layout=layout,
        num_bytes=num_bytes,
        entries=tuple(entries),
    )
    with writing(file), atomic_file(file.with_suffix(".json")) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")
    return TokenSet(file, manifest)


def _copies_in_sets(places: StorePlaces) -> dict[str, list[_Copy]]:
    """Where the entries of finished sets lie; sets with a damaged header hold none."""
    copies: dict[str, list[_Copy]] = {}
    for file, manifest in places.sets():
        with contextlib.suppress(LoraTokenizerError):
            ranges = TokenSet(file, manifest).ranges
            for index, entry in enumerate(manifest.entries):
                if tensor_name(index) in ranges:
                    copies.setdefault(entry.key, []).append(_Copy(file, ranges[tensor_name(index)], entry.crc32))
    return copies


def _copies(places: StorePlaces, key: str, in_sets: dict[str, list[_Copy]]) -> Iterator[_Copy]:
    """Everywhere the entry lies, its part first; a part with a damaged header is no copy."""
    part = places.part(key)
    with contextlib.suppress(OSError, LoraTokenizerError, KeyError, ValueError, TypeError):
        yield _Copy(part, *open_part(part))
    yield from in_sets.get(key, ())


def _kind(
    places: StorePlaces, source: Path, content: str, in_sets: dict[str, list[_Copy]]
) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of an entry, which is made again if it is nowhere."""
    for attempt in range(2):
        for copy in _copies(places, places.key(content), in_sets):
            return copy.place.dtype, copy.place.shape
        if attempt == 0 and build(places, source, again=True) != content:
            break
    raise _changed(source)


def _append(places: StorePlaces, source: Path, content: str, in_sets: dict[str, list[_Copy]], stream: BinaryIO) -> int:
    """Append the bytes of an entry to the set file, checked while they are copied; gives their checksum.

    A copy may be damaged, or be taken away by a process that has just put it into a set of its own. So the sets are
    looked through once more, and at last the entry is made again.
    """
    start = stream.tell()
    for attempt in range(3):
        if attempt == 1:
            in_sets = _copies_in_sets(places)
        elif attempt == 2 and build(places, source, again=True) != content:
            break
        for copy in _copies(places, places.key(content), in_sets):
            if _copied(copy, stream):
                return copy.crc
            stream.seek(start)
            stream.truncate()
    raise _changed(source)


def _copied(copy: _Copy, stream: BinaryIO) -> bool:
    crc = count = 0
    for piece in pieces(copy.path, copy.place):
        stream.write(piece)
        crc = zlib.crc32(piece, crc)
        count += len(piece)
    return (crc, count) == (copy.crc, copy.place.num_bytes)


def _changed(source: Path) -> LoraTokenizerError:
    return LoraTokenizerError(f"{source} changed while it was tokenized: run it again when it is no longer written")
