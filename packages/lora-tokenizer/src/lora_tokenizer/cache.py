"""Tokens of many checkpoints in one file, so that a start that finds them unchanged reads none of them again.

The file's name is a hash over all that its content follows from: layout, way of reading, and of every checkpoint the
path and each file's size, times and inode, so a file never changes. It holds the tokens one after the other, an index
in JSON, and the index's length in 8 bytes; it appears whole or not at all, and of two processes one makes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lora_tokenizer.adapter import DTYPES, dtype_name
from lora_tokenizer.errors import LoraTokenizerError, writing
from lora_tokenizer.io.atomic import atomic_file, clear_leftovers
from lora_tokenizer.io.reading import BIN_NAME, read_adapter
from lora_tokenizer.io.writing import CONFIG_NAME, WEIGHTS_NAME
from lora_tokenizer.layout.layout import TokenLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenSet:
    """Tokens `[N, W]` of every checkpoint of a set, in the order asked for, without those that were left out.

    Items are private maps of their part of the file: values are loaded when touched, and writing does not reach it.
    """

    file: Path
    """The cache file."""
    entries: list[dict[str, Any]]
    """Of each checkpoint `path`, `content` (SHA-256 over its tokens), `start`, `dtype` and `shape`."""

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        entry = self.entries[index]
        dtype, (num, width) = DTYPES[entry["dtype"]], entry["shape"]
        raw = np.memmap(self.file, np.uint8, "c", entry["start"], num * width * dtype.itemsize)
        return torch.from_numpy(raw).view(dtype).view(num, width)


class TokenCache:
    """A folder with one file for every set of checkpoints that was asked for; it may be removed at any time."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()

    def get(
        self,
        paths: Sequence[str | Path],
        layout: TokenLayout,
        *,
        on_done: Callable[[], None] = lambda: None,
        on_error: Callable[[Path, str], None] | None = None,
        **read_options: Any,
    ) -> TokenSet:
        """The tokens of the checkpoints at `paths`, read (with `read_options`) and encoded where they are not there.

        Args:
            paths: adapter folders or checkpoint files.
            layout: how to encode them.
            on_done: called after each checkpoint.
            on_error: called with a checkpoint that cannot be read or does not fit the layout, and the reason; where it
                returns, the checkpoint is left out. Without it a LoraTokenizerError is raised.

        Raises:
            LoraTokenizerError: see `on_error`; or the disk is full, with nothing half-written left.
        """
        if not paths:
            raise LoraTokenizerError("no checkpoints are given to the token cache")
        sources = [Path(path).absolute() for path in paths]
        states = [[str(source), *_state(source)] for source in sources]
        key = json.dumps([version("lora-tokenizer"), layout.fingerprint, read_options, states], default=repr)
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.tokens"

        def report(entry: dict[str, Any]) -> None:
            if "error" in entry:
                if on_error is None:
                    raise LoraTokenizerError(entry["error"])
                on_error(Path(entry["path"]), entry["error"])
            on_done()

        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock")):
                entries = _read_index(file, len(sources))
                if entries is None:
                    clear_leftovers(self.folder)
                    with atomic_file(file) as temporary, temporary.open("wb") as stream:
                        entries = []
                        for source in sources:
                            entries.append(_write_tokens(stream, source, layout, read_options))
                            report(entries[-1])
                        index = json.dumps(entries).encode()
                        stream.write(index + len(index).to_bytes(8, "little"))
                else:
                    logger.info("The tokens of %d checkpoints are in the cache: %s", len(sources), file)
                    for entry in entries:
                        report(entry)
        return TokenSet(file, [entry for entry in entries if "error" not in entry])


def _state(source: Path) -> Iterator[list[int] | None]:
    """Size, times and inode of the files that a checkpoint may consist of; reading it will say what is wrong."""
    for file in (source, source.parent / CONFIG_NAME, *(source / n for n in (CONFIG_NAME, WEIGHTS_NAME, BIN_NAME))):
        try:
            stat = file.stat()
            yield [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        except (OSError, ValueError):
            yield None


def _write_tokens(stream: BinaryIO, source: Path, layout: TokenLayout, options: dict[str, Any]) -> dict[str, Any]:
    try:
        tokens_NW = layout.encode(read_adapter(source, **options))
    except LoraTokenizerError as error:
        return {"path": str(source), "error": f"{source}: {str(error).removeprefix(f'{source}: ')}"}
    raw, start = tokens_NW.contiguous().view(torch.uint8).numpy().data, stream.tell()
    stream.write(raw)
    entry = {"path": str(source), "start": start, "dtype": dtype_name(tokens_NW.dtype), "shape": list(tokens_NW.shape)}
    return {**entry, "content": hashlib.sha256(raw).hexdigest()}


def _read_index(file: Path, num_entries: int) -> list[dict[str, Any]] | None:
    """The index of a cache file; None where that is missing or damaged."""
    try:
        with file.open("rb") as stream:
            end = stream.seek(-8, 2)
            stream.seek(end - int.from_bytes(stream.read(8), "little"))
            entries = json.loads(stream.read()[:-8])
            return entries if isinstance(entries, list) and len(entries) == num_entries else None
    except (OSError, ValueError, OverflowError):
        return None
