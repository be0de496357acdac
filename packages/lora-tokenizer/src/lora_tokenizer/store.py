"""A cache of tokenized checkpoints, shared by processes and safe against being killed at any moment.

In the folder of a store:

- `parts/<entry>.safetensors`: the tokens of one checkpoint, written as soon as they are made. Work that is done
survives.
- `sets/<set>.safetensors`: the tokens of all checkpoints of one request, in one file that can be mapped; its parts
go when
  it is there. `sets/<set>.json` is its manifest.
- `sources/<source>.json`: the content hash of a file as it was at a certain size and time, so that a file that has not
  changed is not read again.
- `locks/`: what keeps two processes from doing the same work.

An entry's name is a hash over the adapter's content, the layout's fingerprint and the library version, so what is
stale is never found. Every checksum is verified before a set is handed out; what fails is made again from its source.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.atomic import cannot_write, clear_leftovers, whole_file
from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.layout import TokenLayout
from lora_tokenizer.locks import file_lock
from lora_tokenizer.reading import read_adapter
from lora_tokenizer.safetensors_file import header_bytes, read_header
from lora_tokenizer.tensor_ranges import TensorRange
from lora_tokenizer.token_set import CHUNK_BYTES, Entry, Manifest, TokenSet, checksum, tensor_name
from lora_tokenizer.writing import CONFIG_NAME

VERSION = version("lora-tokenizer")
_CONTENT = re.compile(r"[0-9a-f]{64}")


def content_hash(adapter: LoraAdapter) -> str:
    """SHA-256 over an adapter's config, names, shapes, dtypes and values; the file they came in does not matter."""
    digest = hashlib.sha256(json.dumps(adapter.config.to_peft()).encode())
    for name, tensor in adapter.tensors.items():
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _name(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class TokenStore:
    """A cache of tokens in a folder.

    >>> import tempfile
    >>> from lora_tokenizer import AdapterConfig, LoraAdapter, write_adapter
    >>> names = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")
    >>> adapter = LoraAdapter(
    ...     config=AdapterConfig(r=1, lora_alpha=2, target_modules=("q",)),
    ...     tensors={names[0]: torch.ones(1, 3), names[1]: torch.ones(2, 1)},
    ... )
    >>> with tempfile.TemporaryDirectory() as root:
    ...     path = write_adapter(adapter, f"{root}/one")
    ...     tokens = TokenStore(f"{root}/store").get([path], TokenLayout.from_adapter(adapter, token_dim=4))
    ...     tokens[0].tolist()
    [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        """Where the store lives; it is made when something is first put there."""

    def get(
        self,
        paths: Sequence[str | Path],
        layout: TokenLayout,
        *,
        num_workers: int = 0,
        verify: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        **read_options: Any,
    ) -> TokenSet:
        """The tokens of the checkpoints at `paths`, in that order; those not in the store are read and encoded.

        Any number of processes may ask for the same or overlapping sets at once: they share the work.

        Args:
            paths: adapter folders or checkpoint files.
            layout: how to encode them.
            num_workers: processes to start for the encoding; 0 does it in this one.
            verify: check the checksum of every entry before handing out a set that was there already.
            on_progress: called with (checkpoints done, checkpoints in all).
            read_options: passed on to `read_adapter`.

        Raises:
            LoraTokenizerError: a checkpoint cannot be read or does not fit the layout (what was done before is
            kept), or
                the disk is full (nothing half-written is left).
        """
        sources = [Path(path).absolute() for path in paths]
        if not sources:
            raise LoraTokenizerError("no checkpoints are given to the token store")
        try:
            for name in ("parts", "sets", "sources", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                clear_leftovers(self.folder / name)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        builder = _Builder(self.folder, layout, read_options)
        contents = builder.build_all(sources, num_workers, on_progress)
        return builder.assemble(sources, contents, verify)


class _Builder:
    """One request to a store."""

    def __init__(self, folder: Path, layout: TokenLayout, read_options: dict[str, Any]) -> None:
        self.folder, self.layout, self.read_options = folder, layout, read_options
        self.options_text = json.dumps(read_options, sort_keys=True, default=repr)

    def build_all(
        self, sources: list[Path], num_workers: int, on_progress: Callable[[int, int], None] | None
    ) -> dict[Path, str]:
        """Make what is missing; gives the content hash of every source."""
        in_sets = self._keys_in_sets()
        contents: dict[Path, str] = {}

        def done(source: Path, content: str) -> None:
            contents[source] = content
            if on_progress is not None:
                on_progress(len(contents), len(set(sources)))

        missing = []
        for source in dict.fromkeys(sources):
            known = self._known_content(source)
            if known is not None and (self.key(known) in in_sets or self._part(self.key(known)).exists()):
                done(source, known)
            else:
                missing.append(source)
        if num_workers > 0 and len(missing) > 1:
            self._build_in_processes(missing, num_workers, done)
            return contents
        taken = []
        for source in missing:
            content = self.build(source, wait=False)
            if content is None:  # another process has it in hand
                taken.append(source)
            else:
                done(source, content)
        for source in taken:
            done(source, self.build(source) or "")
        return contents

    def _build_in_processes(self, missing: list[Path], num_workers: int, done: Callable[[Path, str], None]) -> None:
        arguments = [(self.folder, self.layout.to_json(), self.read_options, source) for source in missing]
        try:
            with ProcessPoolExecutor(min(num_workers, len(missing)), mp_context=get_context("spawn")) as pool:
                for source, content in zip(missing, pool.map(_build_one, arguments), strict=True):
                    done(source, content)
        except BrokenProcessPool as error:
            raise LoraTokenizerError(
                "a worker process of the token store was killed (memory?): run it again, what was done is kept"
            ) from error

    def key(self, content: str) -> str:
        """Name of the entry of an adapter with this content hash."""
        return _name(content, self.layout.fingerprint, VERSION)

    def _part(self, key: str) -> Path:
        return self.folder / "parts" / f"{key}.safetensors"

    def _source_record(self, source: Path) -> Path:
        return self.folder / "sources" / f"{_name(str(source), self.options_text, VERSION)}.json"

    def _sets(self) -> Iterator[tuple[Path, Manifest]]:
        """The finished sets of this layout and version."""
        for path in sorted((self.folder / "sets").glob("*.json")):
            manifest, file = Manifest.read(path), path.with_suffix(".safetensors")
            if manifest is None or (manifest.fingerprint, manifest.version) != (self.layout.fingerprint, VERSION):
                continue
            if file.is_file() and file.stat().st_size == manifest.num_bytes:
                yield file, manifest

    def _keys_in_sets(self) -> set[str]:
        return {entry.key for _, manifest in self._sets() for entry in manifest.entries}

    def _known_content(self, source: Path) -> str | None:
        try:
            record = json.loads(self._source_record(source).read_bytes())
            content = record["content"]
            return content if _CONTENT.fullmatch(content) and record["state"] == _state(source) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def build(self, source: Path, *, wait: bool = True, always: bool = False) -> str | None:
        """Make the part of one checkpoint and give its content hash; None if another process is at it."""
        record = self._source_record(source)
        with file_lock(self.folder / "locks" / f"{record.stem}.lock", wait=wait) as mine:
            if not mine:
                return None
            known = self._known_content(source)
            if known is not None and not always:
                key = self.key(known)
                if self._part(key).exists() or key in self._keys_in_sets():
                    return known  # another process finished it meanwhile
            state = _state(source)
            adapter = read_adapter(source, **self.read_options)
            content = content_hash(adapter)
            if always or not self._part(self.key(content)).exists():
                self._write_part(self.key(content), self.layout.encode(adapter))
            if state == _state(source):
                with whole_file(record) as temporary:
                    text = json.dumps({"path": str(source), "state": state, "content": content})
                    temporary.write_text(text, encoding="utf-8")
            return content

    def _write_part(self, key: str, tokens_NW: Tensor) -> None:
        raw = _raw(tokens_NW)
        header = header_bytes([("tokens", tokens_NW.dtype, tokens_NW.shape)], {"crc32": str(zlib.crc32(raw))})
        with whole_file(self._part(key)) as temporary, temporary.open("wb") as stream:
            stream.write(header)
            stream.write(raw)

    def assemble(self, sources: list[Path], contents: dict[Path, str], verify: bool) -> TokenSet:
        """The set file of these entries: the one that is there if it is whole, else a new one made of the parts."""
        keys = [self.key(contents[source]) for source in sources]
        file = self.folder / "sets" / f"{_name(*keys)}.safetensors"
        with file_lock(self.folder / "locks" / f"set-{file.stem}.lock"):
            found = self._open(file, keys, verify)
            if found is None:
                found = self._write_set(file, sources, contents)
            for key in keys:
                self._part(key).unlink(missing_ok=True)
        return found

    def _open(self, file: Path, keys: list[str], verify: bool) -> TokenSet | None:
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

    def _write_set(self, file: Path, sources: list[Path], contents: dict[Path, str]) -> TokenSet:
        places = [self._good_copy(source, contents[source]) for source in sources]
        tensors = [(tensor_name(index), place.dtype, place.shape) for index, (_, place, _) in enumerate(places)]
        layout = self.layout.to_json()
        with whole_file(file) as temporary:
            with temporary.open("wb") as stream:
                stream.write(header_bytes(tensors, {"format": "pt", "layout": layout, "lora_tokenizer": VERSION}))
                for path, place, _ in places:
                    _copy(path, place, stream)
            num_bytes = temporary.stat().st_size
        entries = tuple(
            Entry(self.key(contents[source]), contents[source], str(source), crc)
            for source, (_, _, crc) in zip(sources, places, strict=True)
        )
        manifest = Manifest(
            version=VERSION,
            fingerprint=self.layout.fingerprint,
            layout=layout,
            num_bytes=num_bytes,
            entries=entries,
        )
        with whole_file(file.with_suffix(".json")) as temporary:
            temporary.write_text(manifest.to_json(), encoding="utf-8")
        return TokenSet(file, manifest)

    def _good_copy(self, source: Path, content: str) -> tuple[Path, TensorRange, int]:
        """A file, place and checksum of an entry whose bytes are as they were written; made again if there is none."""
        key = self.key(content)
        for path, place, crc in self._copies(key):
            if checksum(path, place) == crc:
                return path, place, crc
        rebuilt = self.build(source, always=True)
        for path, place, crc in self._copies(key) if rebuilt == content else ():
            if checksum(path, place) == crc:
                return path, place, crc
        raise LoraTokenizerError(f"{source} changed while it was tokenized: run it again when it is no longer written")

    def _copies(self, key: str) -> Iterator[tuple[Path, TensorRange, int]]:
        """Everywhere the entry lies; a damaged file is no copy."""
        part = self._part(key)
        with contextlib.suppress(FileNotFoundError, LoraTokenizerError, KeyError, ValueError, TypeError):
            yield part, *_open_part(part)
        for file, manifest in self._sets():
            for index, entry in enumerate(manifest.entries):
                if entry.key == key:
                    with contextlib.suppress(LoraTokenizerError, KeyError):
                        yield file, TokenSet(file, manifest).ranges[tensor_name(index)], entry.crc32


def _open_part(part: Path) -> tuple[TensorRange, int]:
    descriptor = os.open(part, os.O_RDONLY)
    try:
        header = read_header(part, descriptor)
        return header.places["tokens"], int(header.metadata["crc32"])
    finally:
        os.close(descriptor)


def _build_one(arguments: tuple[Path, str, dict[str, Any], Path]) -> str:
    folder, layout, read_options, source = arguments
    torch.set_num_threads(1)
    content = _Builder(folder, TokenLayout.from_json(layout), read_options).build(source)
    return content or ""


def _state(source: Path) -> list[list[int | str]]:
    """Name, size, times and inode of the files that make up a source; any change makes it stale."""
    files = [source, source.parent / CONFIG_NAME]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.name.startswith("adapter_"))
    found = [(path.name, path.stat()) for path in files if path.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in found]


def _copy(path: Path, place: TensorRange, stream: BinaryIO) -> None:
    with path.open("rb", buffering=0) as source:
        source.seek(place.start)
        left = place.num_bytes
        while left:
            piece = source.read(min(CHUNK_BYTES, left))
            if not piece:
                raise LoraTokenizerError(f"{path} was cut short while it was read: run it again")
            stream.write(piece)
            left -= len(piece)
