"""Writing that appears whole or not at all: a temporary name in the same folder, fsync, rename.

A temporary name tells which process on which machine, or in which container, made it, so that what a killed process
left can be cleared away (`clear_leftovers`). What the system refuses comes out as the OSError it is; callers make their
own sentence of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<kind>tmp|old)-(?P<host>[^-]*)-(?P<pid>[^-]*)-[0-9a-f]+", re.DOTALL)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_OWN_MACHINE = str(0xEFFFFFFC)  # Linux's PROC_PID_INIT_INO, the namespace of all that runs in no container


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """An empty temporary file to write to, which becomes `target` when the block ends well, replacing what is there.

    Missing folders are made. The file gets at least the permissions of an ordinary new one, even if a library in the
    block made it for its owner only, as safetensors does.

    Raises:
        OSError: the system refuses, or `target` is a folder, a device or a pipe, which no file must take the place of.
    """
    _refuse_special(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(target)
    temporary.touch(exist_ok=False)
    permissions = temporary.stat().st_mode & 0o666  # those that the umask leaves
    try:
        yield temporary
        temporary.chmod(temporary.stat().st_mode | permissions)
        _sync(temporary)
        _refuse_special(target)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty temporary folder to fill, which becomes `target` when the block ends well; permissions as `atomic_file`.

    `target` must be missing or empty, or, with `replace`, anything: it is then exchanged for the new folder and
    removed, on Linux in one step. Where the system cannot do that, the old folder is renamed aside and the new one into
    its place; after a kill between the two there is no `target` until `clear_leftovers` puts the old folder back.

    Raises:
        OSError: as `atomic_file`, or `target` holds something and `replace` is off.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(target)
    temporary.mkdir()
    permissions = temporary.stat().st_mode & 0o666
    try:
        yield temporary
        _finish(temporary, permissions)
        if replace and os.path.lexists(target):
            _swap(temporary, target)
        else:
            temporary.replace(target)
        _sync(target.parent)
    finally:
        _remove(temporary)


def is_temporary(path: Path) -> bool:
    """Whether the name is one of an unfinished write."""
    return _TEMPORARY.fullmatch(path.name) is not None


def clear_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are gone have left unfinished in `folder`.

    A folder that was put aside for a new one, which did not come to its place, is put back.
    """
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or found["host"] != _host() or not found["pid"].isdigit() or _is_alive(int(found["pid"])):
            continue
        if found["kind"] == "old" and not os.path.lexists(folder / found["name"]):
            path.rename(folder / found["name"])
        else:
            _remove(path)


def _temporary_beside(target: Path, kind: str = "tmp") -> Path:
    """A name in the folder of `target`, for unfinished work short enough for any file system, else with its own."""
    name = target.name if kind == "old" else target.name[:40]
    return target.with_name(f".{name}.{kind}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _host() -> str:
    """The machine, and of a container its process namespace too: a pid means another process in each."""
    name = socket.gethostname().replace("-", "_").replace(".", "_")[:40]
    namespace = _pid_namespace()
    return name if namespace in (None, _OWN_MACHINE) else f"{name}_{namespace}"


def _pid_namespace() -> str | None:
    with contextlib.suppress(OSError):  # of a system that is not Linux, or has no /proc
        return Path("/proc/self/ns/pid").readlink().name.removeprefix("pid:[").removesuffix("]")
    return None


def _finish(folder: Path | str, permissions: int) -> None:
    """Give everything in a folder at least these permissions, and flush it and the folder to the disk."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                continue
            mode = entry.stat().st_mode
            if permissions & ~mode:
                Path(entry.path).chmod(mode | permissions)
            if entry.is_dir():
                _finish(entry.path, permissions)
            else:
                _sync(entry.path)
    _sync(folder)


def _sync(path: Path | str) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_special(target: Path) -> None:
    """A rename would take the place of a device as readily as that of a file, and /dev/null would be gone."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "there is a device or a pipe and not a file", str(target))


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` in the place of `target`; what was there is removed here, or by the caller as `temporary`."""
    if _exchange(temporary, target):
        return
    aside = _temporary_beside(target, "old")
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    _remove(aside)


def _exchange(left: Path, right: Path) -> bool:
    """Exchange two names in one step (Linux `renameat2`); False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(right))


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError, OverflowError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
