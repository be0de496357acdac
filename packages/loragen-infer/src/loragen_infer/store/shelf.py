"""The folder of a store: which adapters are there, who may make one, and which go when it is full.

An adapter is the folder ``ID``; what the store needs besides lies under ``.store``. When an adapter was last used is
the time of its folder, which all processes see, as they do the bound, which is noted where somebody has set one. Locks
are files whose number does not grow: ids that begin alike share one.
"""

import json
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_tokenizer.io.atomic import clear_leftovers

from loragen_infer.errors import LoragenInferError
from loragen_infer.files import locked, reading, write_json, writing
from loragen_infer.generation.card import can_be_made_again, read_request_fingerprint

__all__ = ["DEFAULT_MAX_ADAPTERS", "Shelf", "StoredAdapter", "check_id"]

DEFAULT_MAX_ADAPTERS = 10_000
"""Most adapters of a store of which nobody has said otherwise."""

_ID = re.compile(r"[0-9a-f]{16}")
_OWN = ".store"


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter of a store."""

    id: str
    """The fingerprint of its request: sixteen hexadecimal digits."""
    path: Path
    """Its PEFT folder, which is complete."""
    is_new: bool
    """Whether this call made it."""
    seconds: float
    """What the call took."""


def check_id(adapter_id: str) -> str:
    """Return ``adapter_id``, or raise LoragenInferError if it is not sixteen hexadecimal digits."""
    if not isinstance(adapter_id, str) or not _ID.fullmatch(adapter_id):
        raise LoragenInferError(f"{repr(adapter_id)[:80]} is no id of an adapter; an id is 16 hexadecimal digits.")
    return adapter_id


class Shelf:
    """The adapters in ``folder``, at most ``max_adapters``; nothing is written before the first is made.

    Without ``max_adapters`` it is the bound that was last set for this folder.
    """

    def __init__(self, folder: Path, *, max_adapters: int | None) -> None:
        if max_adapters is not None and max_adapters < 1:
            raise LoragenInferError(f"max_adapters is {max_adapters}, where a number from 1 belongs.")
        self.folder = folder.absolute()
        self._own_bound = max_adapters
        self._room, self._room_lock = 0, threading.Lock()
        self._known: set[str] = set()
        self._making: set[str] = set()
        self._made = threading.Condition()

    @property
    def max_adapters(self) -> int:
        """The bound: its own, that of the folder, or the default."""
        if self._own_bound is not None:
            return self._own_bound
        noted = self._read(self._bound_file, "remove it").get("max_adapters")
        return noted if isinstance(noted, int) and noted > 0 else DEFAULT_MAX_ADAPTERS

    def __iter__(self) -> Iterator[str]:
        """Yield the ids of the adapters, sorted."""
        names = sorted(entry.name for entry in self._entries())
        return (name for name in names if self.find(name) is not None)

    def find(self, adapter_id: str) -> Path | None:
        """Return the folder of an adapter, or None if it is not there; not by way of a link."""
        path = self.folder / check_id(adapter_id)
        if not _is_folder(path):
            self._known.discard(adapter_id)
            return None
        if adapter_id not in self._known:
            if read_request_fingerprint(path) != adapter_id:  # a folder of this name by chance
                return None
            self._known.add(adapter_id)
        return path

    def use(self, adapter_id: str) -> Path | None:
        """As :meth:`find`, and remember that it was used now."""
        path = self.find(adapter_id)
        if path is not None:
            try:
                os.utime(path)
            except FileNotFoundError:  # just removed
                return None
            except OSError:  # of a folder that may only be read
                pass
        return path

    @contextmanager
    def making(self, ids: Iterable[str]) -> Iterator[None]:
        """Hold off all other threads and processes that would make one of ``ids``."""
        stripes = sorted({adapter_id[:3] for adapter_id in ids})  # sorted, so that no two wait for each other
        with self._made:  # of the threads here none waits for a file, which is looked at time and again
            self._made.wait_for(lambda: self._making.isdisjoint(stripes))
            self._making.update(stripes)
        try:
            with ExitStack() as stack:
                for stripe in stripes:
                    stack.enter_context(locked(self.folder / _OWN / "locks", None, name=stripe))
                yield
        finally:
            with self._made:
                self._making.difference_update(stripes)
                self._made.notify_all()

    def check_number(self, number: int) -> None:
        """Raise LoragenInferError if ``number`` adapters cannot all be there at once."""
        if number > 1 and number > self.max_adapters:
            raise LoragenInferError(
                f"{number:,} adapters are asked for at once, and the store {self.folder} keeps {self.max_adapters:,}; "
                "ask for fewer, or raise max_adapters."
            )

    def make_room(self, number: int, *, keep: Collection[str] = ()) -> None:
        """Remove those that were used least recently until ``number`` more have room; none that was tuned, or kept."""
        with self._room_lock:
            if self._room < number:
                with locked(self.folder / _OWN, None, name="room"), writing(self.folder):
                    self._note_bound()
                    self._room = self._cleared(number, keep)
            self._room -= number

    def keep_request(self, adapter_id: str, request: dict[str, Any]) -> None:
        """Keep what the adapter of this id is to be made from."""
        write_json(self._request_file(adapter_id), request)

    def read_request(self, adapter_id: str) -> dict[str, Any] | None:
        """Return what :meth:`keep_request` kept, or None."""
        return self._read(self._request_file(adapter_id), "remove it and register the prompts again") or None

    def _read(self, file: Path, way_out: str) -> dict[str, Any]:
        """What a JSON file of the store holds; nothing if it is not there."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise LoragenInferError(f"{file} cannot be read ({error}); {way_out}.") from error
        return content if isinstance(content, dict) else {}

    @property
    def _bound_file(self) -> Path:
        return self.folder / _OWN / "bound.json"

    def _note_bound(self) -> None:
        """Let the other processes know the own bound."""
        bound = self._own_bound
        if bound is not None and self._read(self._bound_file, "remove it").get("max_adapters") != bound:
            write_json(self._bound_file, {"max_adapters": bound})

    def _request_file(self, adapter_id: str) -> Path:
        return self.folder / _OWN / "requests" / f"{check_id(adapter_id)}.json"

    def _entries(self) -> list[os.DirEntry[str]]:
        with reading(self.folder), suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.folder) as entries:
            return [entry for entry in entries if _ID.fullmatch(entry.name)]
        return []

    def _cleared(self, number: int, keep: Collection[str]) -> int:
        """Clear away what killed processes left, remove adapters for ``number`` others, and return what has room.

        It makes room for more than that, since a look at the whole of a large folder takes time.
        """
        max_adapters = self.max_adapters
        stride = max(number, max_adapters // 64)
        removed = self.folder / _OWN / "removed"
        clear_leftovers(self.folder)
        shutil.rmtree(removed, ignore_errors=True)  # whoever was removing holds the lock or is gone
        used = []
        for entry in self._entries():
            with suppress(FileNotFoundError):
                used.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        free = max_adapters - len(used)
        for used_at, name in sorted(used):
            if free >= stride:
                break
            if name in keep:
                continue
            # The card is read anew: of an adapter that was found before it may have changed.
            if self.find(name) is None or not can_be_made_again(self.folder / name, name):
                continue
            if (self.folder / name).lstat().st_mtime_ns != used_at:
                continue  # whoever used it since then was told that it is there
            removed.mkdir(exist_ok=True)
            # Under its id it is whole or gone; what a reader has open by then stays readable.
            (self.folder / name).rename(removed / f"{name}-{secrets.token_hex(4)}")
            self._known.discard(name)
            free += 1
        shutil.rmtree(removed, ignore_errors=True)
        return max(min(free, stride), number)


def _is_folder(path: Path) -> bool:
    """Whether a folder is there, and not a link to one; raises LoragenInferError where the system does not say."""
    with reading(path), suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False
