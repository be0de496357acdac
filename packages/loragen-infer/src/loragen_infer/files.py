"""Writing that appears whole or not at all: a temporary name beside the target, fsync, rename."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loragen_infer.errors import LoragenInferError

__all__ = ["atomic_file", "atomic_folder", "write_json", "write_jsonl"]


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends well it becomes ``path``, replacing what is there.

    Raises:
        LoragenInferError: The operating system refuses (permissions, a full disk); nothing is left behind.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        part = Path(name)
        # mkstemp makes files that only their owner may read; what is published has the usual permissions.
        part.chmod(0o666 & ~_umask())
        try:
            yield part
            _fsync(part)
            part.replace(path)
            _fsync(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; when the block ends well it becomes ``path``, which must not exist yet.

    Raises:
        LoragenInferError: As :func:`atomic_file`, or ``path`` exists and is not an empty folder.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        part.chmod(0o777 & ~_umask())
        try:
            yield part
            for file in sorted(part.rglob("*")):
                _fsync(file)
            _fsync(part)
            part.replace(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
