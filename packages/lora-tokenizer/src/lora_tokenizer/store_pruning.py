"""Deleting what is no longer wanted in a store, next to processes that use it.

A set is deleted under its lock, manifest first, so that nobody finds a manifest without its data. Parts and records of
sources need no lock: whoever misses one makes it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from pathlib import Path

from lora_tokenizer.locks import file_lock
from lora_tokenizer.token_set import Manifest

_SECONDS_PER_DAY = 86_400


def prune_store(folder: Path, keep: Collection[Path], unused_days: float) -> int:
    """Delete sets that are not in `keep` and were not asked for lately, and what belongs to no set; gives bytes freed.

    Raises:
        OSError: the system refuses.
    """
    since = time.time() - unused_days * _SECONDS_PER_DAY if unused_days > 0 else float("inf")
    freed = 0
    for name in sorted({path.stem for path in _files(folder / "sets")}):
        files = [folder / "sets" / f"{name}{ending}" for ending in (".json", ".safetensors")]
        with file_lock(folder / "locks" / f"{name}.lock", wait=False) as mine:
            if mine and files[1] not in keep and not _is_newer(files, since):
                freed += _delete(files)
    contents = {
        entry.content
        for path in (folder / "sets").glob("*.json")
        if (manifest := Manifest.read(path)) is not None
        for entry in manifest.entries
    }
    for record in _files(folder / "sources"):
        if _content_of(record) not in contents and not _is_newer([record], since):
            freed += _delete([record])
    for part in _files(folder / "parts"):
        if not _is_newer([part], since):
            freed += _delete([part])
    return freed


def _files(folder: Path) -> list[Path]:
    """Finished files; unfinished ones belong to a process or are cleared away with the next request."""
    return [path for path in folder.glob("[!.]*") if path.is_file()]


def _is_newer(files: list[Path], since: float) -> bool:
    return any(status.st_mtime > since for path in files if (status := _status(path)) is not None)


def _status(path: Path) -> os.stat_result | None:
    """None if another process has deleted it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    return None


def _content_of(record: Path) -> object:
    try:
        return json.loads(record.read_bytes())["content"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _delete(files: list[Path]) -> int:
    freed = 0
    for path in files:
        if (status := _status(path)) is not None:
            path.unlink(missing_ok=True)
            freed += status.st_size
    return freed
