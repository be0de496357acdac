"""A reader of pickle streams that cannot run code: every class or function in the stream becomes a name on paper.

`torch.load(weights_only=True)` keeps to a list of allowed classes and gives up on a Lightning checkpoint whose
hyper-parameters hold any other class. Here no class is ever looked up, imported or called: `REDUCE`, `NEWOBJ` and
`BUILD` only record what the stream asked for in an `Inert`. What the stream can cost is bounded by its length.

Opcodes: https://github.com/python/cpython/blob/3.11/Lib/pickletools.py. Those that torch.save and pickle protocols 2
to 5 write are read, the others are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_tokenizer.errors import LoraTokenizerError

_U16, _U32 = struct.Struct("<H").unpack_from, struct.Struct("<I").unpack_from
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


@dataclass(eq=False, slots=True)
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


@dataclass(eq=False, slots=True)
class Persistent:
    """What the stream refers to outside of itself; torch puts tensor storages there."""

    key: Any


class _RefusedError(ValueError):
    """A stream that asks for something torch.save never writes."""


def load(data: bytes, where: str) -> Any:
    """Read one pickle stream.

    Raises:
        LoraTokenizerError: the stream is damaged or uses an opcode that torch.save does not write.

    >>> import pickle, os
    >>> load(pickle.dumps({"a": [1, 2.5]}), "x")
    {'a': [1, 2.5]}
    >>> load(pickle.dumps(os.getcwd), "x").name
    'posix.getcwd'
    """
    try:
        return _Machine(data).run()
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        reason = error if isinstance(error, _RefusedError) else f"damaged ({type(error).__name__})"
        raise LoraTokenizerError(f"{where} holds a pickle stream that cannot be read: {reason}") from error
    except MemoryError as error:
        raise LoraTokenizerError(f"{where} holds a pickle stream that unfolds to more than the memory holds") from error


class _Machine:
    """The pickle machine: a stack, the stacks below open marks, and a memo."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Go through the stream up to its end.

        A checkpoint's stream has tens of thousands of opcodes, nearly all of them of the kinds that are dealt with
        in place here; for the others, `at` and `stack` are handed over to the table's handlers and back.
        """
        data, memo, stack, at = self.data, self.memo, self.stack, 0
        while True:
            opcode = data[at]
            at += 1
            if opcode == 0x72:  # LONG_BINPUT
                memo[_U32(data, at)[0]] = stack[-1]
                at += 4
            elif opcode == 0x68:  # BINGET
                stack.append(memo[data[at]])
                at += 1
            elif opcode == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif opcode == 0x28:  # MARK
                self.below.append(stack)
                stack = []
            elif opcode == 0x74:  # TUPLE
                items = tuple(stack)
                stack = self.below.pop()
                stack.append(items)
            elif opcode == 0x52:  # REDUCE
                args, function = stack.pop(), stack.pop()
                if type(function) is not Inert:
                    raise _RefusedError("something that is not a class or function is called")
                stack.append(Inert(function.name, args))
            elif opcode == 0x4D:  # BININT2
                stack.append(_U16(data, at)[0])
                at += 2
            elif opcode == 0x86:  # TUPLE2
                second, first = stack.pop(), stack.pop()
                stack.append((first, second))
            elif opcode == 0x6A:  # LONG_BINGET
                stack.append(memo[_U32(data, at)[0]])
                at += 4
            elif opcode == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif opcode == 0x51:  # BINPERSID
                stack.append(Persistent(stack.pop()))
            elif opcode == 0x2E:  # STOP
                return stack.pop()
            else:
                handler = _TABLE.get(opcode)
                if handler is None:
                    raise _RefusedError(f"opcode {opcode:#x} at byte {at - 1} is not one that torch.save writes")
                self.stack, self.at = stack, at
                handler(self)
                stack, at = self.stack, self.at

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise _RefusedError(f"it ends inside a value of {count} bytes at byte {self.at}")
        out = self.data[self.at : end]
        self.at = end
        return out

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        return self.take(end - self.at + 1)[:-1].decode("utf-8")


def _key(value: Any) -> Any:
    # Hashing nested tuples that share parts takes time without bound, so such keys are kept apart by identity.
    return value if isinstance(value, _PLAIN_KEYS) else Inert("key", value)


def _set_items(target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise _RefusedError("a mapping has a key without a value")
    if isinstance(target, Inert):
        target.items = target.items or {}
        target = target.items
    if not isinstance(target, dict):
        raise _RefusedError("items are set on something that is not a mapping")
    for index in range(0, len(items), 2):
        target[_key(items[index])] = items[index + 1]


def _add_elements(target: Any, items: list[Any]) -> None:
    if isinstance(target, Inert):
        target.elements = target.elements or []
        target = target.elements
    if not isinstance(target, list):
        raise _RefusedError("elements are added to something that is not a list")
    target.extend(items)


def _global(m: _Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(Inert(f"{module}.{name}"))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise _RefusedError("a class is named by something else than text")
    m.stack.append(Inert(f"{module}.{name}"))


def _newobj(m: _Machine) -> None:
    args, function = m.stack.pop(), m.stack.pop()
    if not isinstance(function, Inert):
        raise _RefusedError("something that is not a class is instantiated")
    m.stack.append(Inert(function.name, args))


def _newobj_ex(m: _Machine) -> None:
    keywords, args, cls = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.stack.append(Inert(cls.name, args, keywords))


def _build(m: _Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if isinstance(target, Inert):
        target.state = state


def _append(m: _Machine) -> None:
    value = m.stack.pop()
    _add_elements(m.stack[-1], [value])


def _appends(m: _Machine) -> None:
    items = m.pop_mark()
    _add_elements(m.stack[-1], items)


def _setitem(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m.stack[-1], [key, value])


def _setitems(m: _Machine) -> None:
    items = m.pop_mark()
    _set_items(m.stack[-1], items)


def _dict(m: _Machine) -> None:
    out: dict[Any, Any] = {}
    items = m.pop_mark()
    _set_items(out, items)
    m.stack.append(out)


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def handler(m: _Machine) -> None:
        if len(m.stack) < count:
            raise _RefusedError("a tuple lacks elements")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return handler


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    def handler(m: _Machine) -> None:
        value = make(m)  # first, because it may close a mark and so replace the stack
        m.stack.append(value)

    return handler


def _binput(m: _Machine) -> None:
    m.memo[m.number(1)] = m.stack[-1]


def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _skip(size: int) -> Callable[[_Machine], None]:
    def handler(m: _Machine) -> None:
        m.take(size)

    return handler


def _pop_mark(m: _Machine) -> None:
    m.pop_mark()


def _text(size: int) -> Callable[[_Machine], None]:
    return _push(lambda m: m.take(m.number(size)).decode("utf-8", "surrogatepass"))


def _bytes(size: int) -> Callable[[_Machine], None]:
    return _push(lambda m: m.take(m.number(size)))


# Every opcode but those that _Machine.run deals with in place.
_TABLE: dict[int, Callable[[_Machine], None]] = {
    ord("\x80"): _skip(1),  # PROTO
    ord("\x95"): _skip(8),  # FRAME
    ord("0"): lambda m: m.stack.__delitem__(-1),
    ord("1"): _pop_mark,
    ord("2"): _push(lambda m: m.stack[-1]),
    ord("N"): _push(lambda _: None),
    ord("\x88"): _push(lambda _: True),
    ord("\x89"): _push(lambda _: False),
    ord("J"): _push(lambda m: struct.unpack("<i", m.take(4))[0]),
    ord("\x8a"): _push(lambda m: int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    ord("G"): _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    ord("X"): _text(4),
    ord("\x8c"): _text(1),
    ord("\x8d"): _text(8),
    ord("B"): _bytes(4),
    ord("C"): _bytes(1),
    ord("\x8e"): _bytes(8),
    ord("\x96"): _bytes(8),
    ord("T"): _bytes(4),
    ord("U"): _bytes(1),
    ord("\x85"): _tuple_of(1),
    ord("\x87"): _tuple_of(3),
    ord("]"): _push(lambda _: []),
    ord("l"): _push(lambda m: m.pop_mark()),
    ord("a"): _append,
    ord("e"): _appends,
    ord("}"): _push(lambda _: {}),
    ord("d"): _dict,
    ord("s"): _setitem,
    ord("u"): _setitems,
    ord("\x8f"): _push(lambda _: Inert("builtins.set", ())),
    ord("\x90"): _appends,
    ord("\x91"): _push(lambda m: Inert("builtins.frozenset", (m.pop_mark(),))),
    ord("c"): _global,
    ord("\x93"): _stack_global,
    ord("\x81"): _newobj,
    ord("\x92"): _newobj_ex,
    ord("b"): _build,
    ord("q"): _binput,
    ord("\x94"): _memoize,
}
