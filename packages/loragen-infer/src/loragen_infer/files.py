"""Writing that appears whole or not at all, with the error of this package."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lora_tokenizer.io import atomic
from safetensors import SafetensorError

from loragen_infer.errors import LoragenInferError, name_refused, reason_of

__all__ = [
    "TakenError",
    "atomic_file",
    "atomic_folder",
    "check_writable",
    "is_free",
    "locked",
    "reading",
    "save_torch",
    "write_json",
    "write_jsonl",
    "writing",
]


class TakenError(LoragenInferError):
    """Another process holds a lock."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends well it becomes ``path``, replacing what is there.

    What the system refuses (permissions, a full disk) is a LoragenInferError, and nothing is left behind.
    """
    with writing(path), atomic.atomic_file(path) as part:
        yield part


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As :func:`atomic_file` for a folder to fill; ``path`` must be missing or an empty folder."""
    with writing(path), atomic.atomic_folder(path) as part:
        yield part


def check_writable(folder: Path) -> None:
    """Find out before the work whether ``folder`` can be made; nothing is, so that nothing is left where it fails.

    Raises:
        LoragenInferError: It cannot.
    """
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    with writing(folder), tempfile.TemporaryFile(dir=place):
        pass


def is_free(path: Path) -> bool:
    """Return whether nothing is at ``path`` but maybe an empty folder."""
    return not any(path.iterdir()) if path.is_dir() else not os.path.lexists(path)


@contextmanager
def locked(folder: Path, taken: str | None, *, name: str = ".lock") -> Iterator[None]:
    """Make ``folder`` and hold its lock called ``name``; the system lets go of it when the process dies.

    Where another process holds it, that is an error with the message ``taken``; without a message it is waited for.

    Raises:
        TakenError: Another process holds it.
        LoragenInferError: The folder cannot be written to.
    """
    lock = FileLock(folder / name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if taken is None else 0)
        except Timeout as error:
            raise TakenError(taken or "") from error
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


def save_torch(content: object, path: Path) -> None:
    """``torch.save``, which calls a full disk a RuntimeError, with an OSError for it; not atomic by itself."""
    import torch

    try:
        with path.open("wb") as stream:  # the archive would hold the name of a path
            torch.save(content, stream)
    except RuntimeError as error:
        raise OSError(reason_of(error)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Make one sentence about ``path`` of what the system refuses in the block."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or reason_of(error)
        said = f"{path} cannot be read: {reason}; choose another place or let this process read it."
        raise LoragenInferError(name_refused(error, path) or said) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make one sentence about ``path`` of what the system refuses in the block."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        said = f"{path} cannot be written: {reason}; choose another place or free it."
        raise LoragenInferError(name_refused(error, path) or said) from error
