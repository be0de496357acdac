"""Writing things whole or not at all: a temporary name in the same folder, fsync, rename.

A temporary name tells which process on which machine made it, so that what a killed process left can be cleared away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from lora_tokenizer.errors import LoraTokenizerError

_MARK = ".tmp-"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_temporary(path: Path) -> bool:
    """Whether the name is one of an unfinished write."""
    return path.name.startswith(".") and _MARK in path.name


def temporary_beside(target: Path) -> Path:
    """A name for unfinished work in the folder of `target`."""
    host = socket.gethostname().replace("-", "_").replace(".", "_")[:40]
    return target.with_name(f".{target.name[:100]}{_MARK}{host}-{os.getpid()}-{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `target` when the block ends well and vanishes when it does not.

    Raises:
        LoraTokenizerError: the disk is full or the folder cannot be written.
    """
    temporary = temporary_beside(target)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        remove(temporary)


def cannot_write(target: Path, error: OSError) -> LoraTokenizerError:
    """The sentence for a failed write."""
    if error.errno in _NO_SPACE:
        return LoraTokenizerError(f"no space left to write {target} ({error.strerror}): free some and run it again")
    return LoraTokenizerError(f"cannot write {target}: {error.strerror or error}")


def clear_leftovers(folder: Path) -> None:
    """Remove the unfinished files of processes of this machine that are gone."""
    host = temporary_beside(folder / "x").name.split(_MARK)[1].split("-")[0]
    for path in folder.iterdir():
        if not is_temporary(path):
            continue
        owner, _, rest = path.name.split(_MARK)[-1].partition("-")
        pid = rest.split("-")[0]
        if owner == host and pid.isdigit() and not _is_alive(int(pid)):
            remove(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
