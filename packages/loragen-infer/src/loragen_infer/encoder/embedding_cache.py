"""Prompt embeddings on disk, so that training and inference encode a prompt once: one SQLite file per encoder.

SQLite gives what several processes on one cache need: a transaction is whole or not there, also after a kill. Every
entry carries a checksum; an entry that does not match is left out, so that its prompt is encoded again, and a file that
is no database any more is made anew. A cache is never worth failing for: where the disk refuses, one warning says so
and the work goes on without it.
"""

import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = ["EmbeddingCache"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER)"
_MAX_KEYS = 500  # variables in one statement; old builds of SQLite take 999
_WAIT_S = 60.0


class EmbeddingCache:
    """What one encoder made of each prompt.

    Args:
        folder: Where the file lies; made when the first entry is written.
        identity: Hexadecimal digits that no other encoder shares; part of the file's name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = EmbeddingCache(Path(folder), identity="0f")
        ...     cache.write({"hello": torch.tensor([0.5, 1.0])})
        ...     cache.read(["hello", "new"])
        {'hello': tensor([0.5000, 1.0000])}
    """

    def __init__(self, folder: Path, *, identity: str) -> None:
        self.identity = identity
        self._file = Path(folder) / f"embeddings-{identity}.sqlite"
        self._is_off = False

    def read(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the entries of those of ``prompts`` that have one: float32 ``[D]`` each."""
        if self._is_off or not self._file.is_file():
            return {}
        prompt_of_key = {_key(prompt): prompt for prompt in prompts}
        rows: list[tuple[Any, ...]] = []
        rows = self._with_database(lambda database: list(_select(database, list(prompt_of_key))), default=rows)
        found = {
            prompt_of_key[key]: torch.frombuffer(bytearray(value), dtype=torch.float32)
            for key, value, checksum in rows
            if isinstance(value, bytes) and _checksum(key, value) == checksum  # a column may be of any type
        }
        if len(found) < len(rows):
            damaged = len(rows) - len(found)
            logger.warning("%s holds %d damaged entries; their prompts are encoded again.", self._file, damaged)
        return found

    def write(self, entries: Mapping[str, torch.Tensor]) -> None:
        """Keep ``entries``, float32 ``[D]`` per prompt, all of them or (where the disk refuses) none."""
        if self._is_off or not entries:
            return
        values = {_key(prompt): tensor.contiguous().numpy().tobytes() for prompt, tensor in entries.items()}
        rows = [(key, value, _checksum(key, value)) for key, value in values.items()]
        insert = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)"
        self._with_database(lambda database: database.executemany(insert, rows) and None, default=None)

    def _with_database(self, action: Callable[[sqlite3.Connection], _Result], *, default: _Result) -> _Result:
        # A connection per call: none is shared by threads or carried over a fork, which SQLite forbids.
        for is_second_attempt in (False, True):
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with closing(sqlite3.connect(self._file, timeout=_WAIT_S)) as database, database:
                    database.execute(_SCHEMA)
                    return action(database)
            except (sqlite3.DatabaseError, OSError) as error:
                # Locked, read-only, a full disk; or, for the second time, no database.
                if is_second_attempt or isinstance(error, sqlite3.OperationalError | OSError):
                    self._is_off = True
                    logger.warning(
                        "The embedding cache %s cannot be used (%s); going on without it.", self._file, error
                    )
                    return default
                logger.warning("The embedding cache %s is damaged (%s) and made anew.", self._file, error)
                # The journal first: one that is left over would be played back into the new file.
                for path in (self._file.with_name(self._file.name + "-journal"), self._file):
                    path.unlink(missing_ok=True)
        return default


def _select(database: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(keys), _MAX_KEYS):
        some = keys[start : start + _MAX_KEYS]
        # Only question marks go into the text of the statement.
        query = f"SELECT key, value, checksum FROM entries WHERE key IN ({','.join('?' * len(some))})"  # noqa: S608
        yield from database.execute(query, some)


def _key(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode()).digest()


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))
