"""Making the parts of a store: one file per checkpoint, written as soon as its tokens are made, so that work that is
done survives, and shared out between processes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError, writing
from lora_tokenizer.io.atomic import atomic_file
from lora_tokenizer.io.reading import read_adapter
from lora_tokenizer.io.safetensors_file import header_bytes, read_header
from lora_tokenizer.io.tensor_ranges import TensorRange
from lora_tokenizer.layout.layout import TokenLayout
from lora_tokenizer.store_places import StorePlaces, content_hash, raw_bytes, state_of

OnProgress = Callable[[int, int], None]


def build_all(
    places: StorePlaces, sources: list[Path], num_workers: int, on_progress: OnProgress | None
) -> dict[Path, str]:
    """Make what is missing; gives the content hash of every source.

    Raises:
        LoraTokenizerError: a checkpoint cannot be read or does not fit the layout, the disk is full, or a worker died.
    """
    in_sets = places.keys_in_sets()
    contents: dict[Path, str] = {}

    def done(source: Path, content: str) -> None:
        contents[source] = content
        if on_progress is not None:
            on_progress(len(contents), len(set(sources)))

    missing = []
    for source in dict.fromkeys(sources):
        known = places.known_content(source)
        if known is not None and (places.key(known) in in_sets or places.part(places.key(known)).exists()):
            done(source, known)
        else:
            missing.append(source)
    if num_workers > 0 and len(missing) > 1:
        _build_in_processes(places, missing, num_workers, done)
        return contents
    taken = []
    for source in missing:
        content = build_unless_taken(places, source)
        if content is None:
            taken.append(source)
        else:
            done(source, content)
    for source in taken:
        done(source, build(places, source))
    return contents


def build(places: StorePlaces, source: Path, *, again: bool = False) -> str:
    """Make the part of one checkpoint and give its content hash; with `again`, even if it is there.

    If another process is at it, wait for that and take what it made.
    """
    with places.lock(places.record_file(source)):
        return _build_locked(places, source, again)


def build_unless_taken(places: StorePlaces, source: Path) -> str | None:
    """As `build`, but give None at once if another process is at it."""
    with places.lock(places.record_file(source), wait=False) as mine:
        return _build_locked(places, source, again=False) if mine else None


def _build_locked(places: StorePlaces, source: Path, again: bool) -> str:
    known = places.known_content(source)
    if known is not None and not again and places.has(places.key(known)):
        return known  # another process finished it meanwhile
    state = state_of(source)
    adapter = read_adapter(source, **places.read_options)
    content = content_hash(adapter)
    part = places.part(places.key(content))
    if again or not part.exists():
        try:
            tokens_NW = places.layout.encode(adapter)
        except LoraTokenizerError as error:
            raise LoraTokenizerError(f"{source}: {error}") from error
        _write_part(part, tokens_NW)
    if state == state_of(source):
        places.record(source, state, content)
    return content


def _write_part(part: Path, tokens_NW: Tensor) -> None:
    raw = raw_bytes(tokens_NW)
    header = header_bytes([("tokens", tokens_NW.dtype, tokens_NW.shape)], {"crc32": str(zlib.crc32(raw))})
    with writing(part), atomic_file(part) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        stream.write(raw)


def open_part(part: Path) -> tuple[TensorRange, int]:
    """Place and checksum of the tokens in a part."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        header = read_header(part, descriptor)
        return header.places["tokens"], int(header.metadata["crc32"])
    finally:
        os.close(descriptor)


def _build_in_processes(
    places: StorePlaces, missing: list[Path], num_workers: int, done: Callable[[Path, str], None]
) -> None:
    arguments = [(places.folder, places.layout.to_json(), places.read_options, source) for source in missing]
    try:
        with ProcessPoolExecutor(min(num_workers, len(missing)), mp_context=get_context("spawn")) as pool:
            for source, content in zip(missing, pool.map(_build_one, arguments), strict=True):
                done(source, content)
    except BrokenProcessPool as error:
        raise LoraTokenizerError(
            "a worker process of the token store was killed (memory?): run it again, what was done is kept"
        ) from error


def _build_one(arguments: tuple[Path, str, dict[str, Any], Path]) -> str:
    folder, layout, read_options, source = arguments
    torch.set_num_threads(1)
    return build(StorePlaces(folder=folder, layout=TokenLayout.from_json(layout), read_options=read_options), source)
