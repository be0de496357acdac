"""Writing is whole or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer.io import atomic
from lora_tokenizer.io.atomic import atomic_file, atomic_folder, clear_leftovers, is_temporary
from safetensors.torch import save_file


class StoppedError(Exception):
    """What a test raises in the middle of writing."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_file(path: Path, text: str = "x", stop: bool = False) -> None:
    with atomic_file(path) as part:
        part.write_text(text)
        if stop:
            raise StoppedError


def write_folder(path: Path, text: str = "x", stop: bool = False, **options: Any) -> None:
    with atomic_folder(path, **options) as part:
        (part / "sub").mkdir()
        (part / "sub" / "x.txt").write_text(text)
        if stop:
            raise StoppedError


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that cannot exchange two names."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


def test_a_file_appears_with_its_content_and_makes_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "x.txt"
    with atomic_file(target) as part:
        part.write_text("whole")
        assert is_temporary(part)
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["x.txt"]


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_exception_leaves_nothing(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        write(tmp_path / "target", stop=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_what_the_system_refuses_is_an_oserror_and_leaves_nothing(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="too long"):
        write(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "x")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "target")
    assert names(tmp_path) == ["file"]


def test_a_name_of_any_length_that_the_file_system_takes(tmp_path: Path) -> None:
    write_file(tmp_path / ("ü" * 127))
    write_folder(tmp_path / ("x" * 255))
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(umask: int, file_mode: int, folder_mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file")
        write_folder(tmp_path / "folder")
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder_mode


def test_files_of_safetensors_are_not_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "x.safetensors") as part:
            save_file({"a": torch.ones(1)}, part)
        with atomic_folder(tmp_path / "folder") as part:
            save_file({"a": torch.ones(1)}, part / "x.safetensors")
            (part / "script").touch()
            (part / "script").chmod(0o700)
    finally:
        os.umask(before)
    for path, mode in (("x.safetensors", 0o644), ("folder/x.safetensors", 0o644), ("folder/script", 0o744)):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode


def test_a_device_or_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link", "folder"):
        with pytest.raises(OSError, match=name):
            write_file(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["folder", "link", "pipe"]


def test_a_folder_that_holds_something_is_replaced_only_if_asked(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    write_folder(target, "first")
    with pytest.raises(OSError, match="not empty"):
        write_folder(target, "second")
    assert (target / "sub" / "x.txt").read_text() == "first"
    (target / "more").write_text("x")
    write_folder(target, "second", replace=True)
    assert (target / "sub" / "x.txt").read_text() == "second"
    assert names(target) == ["sub"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_replacement_that_fails_leaves_the_old_folder(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    write_folder(target, "old")
    with pytest.raises(StoppedError):
        write_folder(target, "new", stop=True, replace=True)
    if not can_exchange:
        without_exchange(monkeypatch)
        rename = Path.rename

        def refuses_the_new(self: Path, to: Path) -> Path:
            if to == target and (self / "sub" / "x.txt").read_text() == "new":
                raise OSError(errno.EIO, "gone wrong")
            return rename(self, to)

        monkeypatch.setattr(Path, "rename", refuses_the_new)
        with pytest.raises(OSError, match="gone wrong"):
            write_folder(target, "new", replace=True)
    assert (target / "sub" / "x.txt").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_without_an_exchange_folders_and_links_are_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_exchange(monkeypatch)
    write_folder(tmp_path / "folder", "old")
    write_folder(tmp_path / "folder", "new", replace=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    write_folder(tmp_path / "link", "newer", replace=True)
    assert (tmp_path / "folder" / "sub" / "x.txt").read_text() == "new"
    assert (tmp_path / "link" / "sub" / "x.txt").read_text() == "newer"
    assert names(tmp_path) == ["folder", "link"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges names in one step")
def test_a_reader_always_finds_a_folder_that_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    write_folder(target)
    if not atomic._exchange(target, target):
        pytest.skip("the file system of the temporary folder cannot exchange names")
    missing, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                target.stat()
            except FileNotFoundError:
                missing.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(50):
        write_folder(target, str(number), replace=True)
    done.set()
    reader.join()
    assert not missing
    assert names(tmp_path) == ["folder"]


HANG = """
import sys, time
from pathlib import Path
from lora_tokenizer.io.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1])) as part:
    (part / "half").write_text("x")
    print("in the middle", flush=True)
    time.sleep(100)
"""


def test_what_a_killed_process_leaves_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with subprocess.Popen([sys.executable, "-c", HANG, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        clear_leftovers(tmp_path)
        assert len(names(tmp_path)) == 1, "its maker is alive"
        process.send_signal(signal.SIGKILL)
    other_host = tmp_path / ".x.tmp-elsewhere-1-ab"
    for path in (other_host, tmp_path / ".hidden", tmp_path / f".x.tmp-{socket.gethostname()}-x-ab"):
        path.write_text("x")
    with contextlib.suppress(StoppedError), atomic_file(tmp_path / "mine") as mine:
        clear_leftovers(tmp_path)
        assert mine.exists()
        raise StoppedError
    assert other_host.exists()
    assert len(names(tmp_path)) == 3


def test_what_another_container_writes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers may have one host name, and each knows the processes of its own namespace only."""
    monkeypatch.setattr(atomic, "_is_alive", lambda pid: False)
    with contextlib.suppress(StoppedError), atomic_file(tmp_path / "mine") as mine:
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "_pid_namespace", lambda: "4026532999")
            clear_leftovers(tmp_path)
            assert mine.exists()
            with contextlib.suppress(StoppedError), atomic_file(tmp_path / "theirs") as theirs:
                assert is_temporary(theirs)
                patch.undo()
                clear_leftovers(tmp_path)
                assert theirs.exists()
                assert not mine.exists()
                raise StoppedError
        raise StoppedError


KILLED_BETWEEN_RENAMES = """
import ctypes, os, signal, sys
from pathlib import Path
from lora_tokenizer.io.atomic import atomic_folder
ctypes.CDLL = lambda *_, **__: object()  # as where the system cannot exchange two names
target = Path(sys.argv[1])
def killed(self, to):
    if to == target:
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(self, to)
Path.rename = killed
with atomic_folder(target, replace=True) as part:
    (part / "x.txt").write_text("new")
"""


@pytest.mark.parametrize("name", ["folder", "a.tmp-b", "x" * 150])
def test_a_kill_between_two_renames_loses_neither_folder(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    write_folder(target, "old")
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(target)], check=False)
    assert not target.exists()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [name]
    assert (target / "sub" / "x.txt").read_text() == "old"


def test_a_folder_put_aside_goes_when_the_new_one_is_in_its_place(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    write_folder(target, "old")
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(target)], check=False)
    assert all(is_temporary(path) for path in tmp_path.iterdir())
    write_folder(target, "newer")
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["folder"]
    assert (target / "sub" / "x.txt").read_text() == "newer"
