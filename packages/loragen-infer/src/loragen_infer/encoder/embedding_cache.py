"""Prompt embeddings on disk, so that training and inference encode a prompt once: one SQLite file per encoder.

SQLite gives what several processes on one cache need: a transaction is whole or not there, also after a kill. A cache
is never worth failing for: where it cannot be used, one warning says so.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch

__all__ = ["EmbeddingCache"]

logger = logging.getLogger(__name__)


class EmbeddingCache:
    """What one encoder made of each prompt, in a file of ``folder`` that its ``identity`` names.

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
        found: dict[str, torch.Tensor] = {}

        def select(database: sqlite3.Connection) -> None:
            for prompt in prompts:
                row = database.execute("SELECT value FROM entries WHERE key = ?", [_key(prompt)]).fetchone()
                if row is not None:
                    found[prompt] = torch.frombuffer(bytearray(row[0]), dtype=torch.float32)

        self._try(select)
        return found

    def write(self, entries: Mapping[str, torch.Tensor]) -> None:
        """Keep ``entries``, float32 ``[D]`` per prompt, all of them or (where the disk refuses) none."""
        rows = [(_key(prompt), tensor.contiguous().numpy().tobytes()) for prompt, tensor in entries.items()]
        insert = "INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)"
        self._try(lambda database: database.executemany(insert, rows))

    def _try(self, action: Callable[[sqlite3.Connection], object]) -> None:
        if self._is_off:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # A connection per call: none is shared by threads or carried over a fork, which SQLite forbids.
            with closing(sqlite3.connect(self._file, timeout=60)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)")
                action(database)
        except (sqlite3.DatabaseError, OSError) as error:
            self._is_off = True
            logger.warning(
                "The embedding cache %s cannot be used (%s); going on without it. Remove it if it is damaged.",
                *(self._file, error),
            )


def _key(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode()).digest()
