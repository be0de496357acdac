"""Reading a pickle stream without running code of it: every class or function in it becomes a name on paper.

`torch.load(weights_only=True)` keeps to a list of allowed classes and gives up on a Lightning checkpoint whose
hyper-parameters hold any other class. Here no class is looked up, imported or called: what the stream asks for is only
recorded, in an `Inert`.

This is `pickle.Unpickler` in its Python form, whose opcodes can be overridden. The form in C trusts its stream in what
no method can prevent: it makes room for whatever memo slot is named, and hashes whatever is a key, which takes for ever
with nested tuples that share parts and overflows the stack with deep ones.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from lora_tokenizer.errors import LoraTokenizerError

_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
_REFUSED = (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
"""Opcodes that torch.save never writes, and that would look up or call something."""


@dataclass(eq=False, slots=True, repr=False)  # a repr could unfold without bound
class Inert:
    """A class, function or object that the stream names, never resolved."""

    name: str
    """`module.qualname` of the class or function."""
    args: Any = None
    """What it would have been called with; None for the bare class or function."""
    state: Any = None
    """What BUILD would have set."""
    items: dict[Any, Any] | None = None
    """Items that would have been set on it (classes that derive from dict)."""
    elements: list[Any] | None = None
    """Elements that would have been added to it (classes that derive from list or set)."""


@dataclass(eq=False, slots=True, repr=False)
class Persistent:
    """What the stream refers to outside of itself; torch puts tensor storages there."""

    key: Any


class _RefusedError(ValueError):
    """A stream that asks for something torch.save never writes."""


def load(data: bytes, where: str) -> Any:
    """Read one pickle stream.

    Raises:
        LoraTokenizerError: the stream is damaged or uses an opcode that torch.save does not write.
    """
    try:
        return _InertUnpickler(io.BytesIO(data), encoding="bytes").load()
    except (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
        reason = error if isinstance(error, _RefusedError) else f"damaged ({type(error).__name__})"
        raise LoraTokenizerError(f"{where} holds a pickle stream that cannot be read: {reason}") from error
    except MemoryError:  # whose traceback would keep what has been unfolded
        raise LoraTokenizerError(f"{where} holds a pickle stream that unfolds to more than the memory holds") from None


_Unpickler: Any = pickle._Unpickler


class _InertUnpickler(_Unpickler):  # type: ignore[misc]  # the type stubs take it for the one in C
    dispatch: ClassVar = {code: do for code, do in _Unpickler.dispatch.items() if bytes([code]) not in _REFUSED}

    def __init__(self, stream: io.BytesIO, **options: Any) -> None:
        super().__init__(stream, **options)
        # Straight from the stream, which holds all there is: frames would only be copies of its parts.
        self.read, self.readline = stream.read, stream.readline

    def load(self) -> Any:
        """Go through the stream up to its end; as the base class, without its handling of frames."""
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        read, dispatch = self.read, self.dispatch
        while (code := read(1)) != pickle.STOP:
            dispatch[code[0]](self)
        return self.stack.pop()

    def find_class(self, module: str, name: str) -> Inert:
        return Inert(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Persistent:
        return Persistent(pid)

    def _frame(self) -> None:
        self.read(8)

    def _bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    def _call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Inert:
            raise _RefusedError("something that is not a class or function is called")
        self.append(Inert(function.name, args))

    def _call_with_keywords(self) -> None:
        keywords = self.stack.pop()
        self._call()
        self.stack[-1].state = keywords

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def _add(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.elements = target.elements or []
            target = target.elements
        if not isinstance(target, list):
            raise _RefusedError("elements are added to something that is not a list")
        target.extend(elements)

    def _set(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise _RefusedError("a mapping has a key without a value")
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items = target.items or {}
            target = target.items
        if not isinstance(target, dict):
            raise _RefusedError("items are set on something that is not a mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # other keys are kept apart by identity, for the time that hashing them may take
            target[key if isinstance(key, _PLAIN_KEYS) else Inert("key", key)] = value

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _frozenset(self) -> None:
        items = self.pop_mark()  # first, because it replaces the stack
        self.append(Inert("builtins.frozenset", (items,)))


_OWN: dict[bytes, Callable[[Any], None]] = {
    pickle.FRAME: _InertUnpickler._frame,
    pickle.BYTEARRAY8: _InertUnpickler._bytearray,
    pickle.REDUCE: _InertUnpickler._call,
    pickle.NEWOBJ: _InertUnpickler._call,
    pickle.NEWOBJ_EX: _InertUnpickler._call_with_keywords,
    pickle.BUILD: _InertUnpickler._build,
    pickle.APPEND: lambda u: u._add([u.stack.pop()]),
    pickle.APPENDS: lambda u: u._add(u.pop_mark()),
    pickle.ADDITEMS: lambda u: u._add(u.pop_mark()),
    pickle.EMPTY_SET: lambda u: u.append(Inert("builtins.set", ())),
    pickle.FROZENSET: _InertUnpickler._frozenset,
    pickle.SETITEM: _InertUnpickler._setitem,
    pickle.SETITEMS: lambda u: u._set(u.pop_mark()),
    pickle.DICT: _InertUnpickler._dict,
}
_InertUnpickler.dispatch.update({code[0]: handler for code, handler in _OWN.items()})
