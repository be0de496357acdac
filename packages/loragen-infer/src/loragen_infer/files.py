"""Writing that appears whole or not at all, with this package's error and in the two formats that it writes.

How a file or folder appears whole is decided in :mod:`lora_tokenizer.io.atomic`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lora_tokenizer.io import atomic

from loragen_infer.errors import LoragenInferError

__all__ = ["atomic_file", "atomic_folder", "locked", "write_json", "write_jsonl"]


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends well it becomes ``path``, replacing what is there.

    Raises:
        LoragenInferError: The operating system refuses (permissions, a full disk); nothing is left behind.
    """
    with _reported(path), atomic.atomic_file(path) as part:
        yield part


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends well it becomes ``path``, which must be missing or empty.

    Raises:
        LoragenInferError: As :func:`atomic_file`, or ``path`` exists and is not an empty folder.
    """
    with _reported(path), atomic.atomic_folder(path) as part:
        yield part


@contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Make ``folder`` and hold it for this process alone; the system lets go of it when the process dies.

    Raises:
        LoragenInferError: Another process holds it, with ``taken`` for its message; or it cannot be written.
    """
    lock = FileLock(folder / ".lock")
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LoragenInferError(taken) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as an indented JSON file, whole or not at all."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` as a JSON-lines file, whole or not at all."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoragenInferError(
            f"{path} cannot be written: {error.strerror or error}; choose another place or free it."
        ) from error
