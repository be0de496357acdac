"""Matching PEFT's `rank_pattern` and `alpha_pattern` exactly as PEFT does, but safe for patterns from strangers.

PEFT takes the first key for which `re.match(rf"(.*\\.)?({key})$", module)` holds. Those keys are regular expressions
out of a downloaded file, and Python's engine can be made to run for years. It tries ways of matching until one fits, so
the number of ways bounds its time: k repetitions, PEFT's own in front among them, share a name of n characters in at
most C(n + k, k) ways, every `?` doubles that, and every group multiplies it by its alternatives. Keys with too many
ways are refused by name, and so are repeated groups and references to groups, whose ways have no such bound.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from lora_tokenizer.errors import LoraTokenizerError

Value = TypeVar("Value")

MAX_PATTERNS = 4096
MAX_PATTERN_LENGTH = 512
MAX_WAYS = 10_000_000
"""Of matching one pattern with one module name; some tenths of a second at worst."""
MAX_WAYS_IN_ALL = 4_000_000_000
"""Of matching all patterns with all modules of an adapter; some tens of seconds at worst."""

_ONE_CHARACTER = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # an escape or a class
_REPEATED_GROUP = re.compile(r"\)[*+?{]|\\[1-9]|\(\?P[=>]")


@functools.lru_cache(maxsize=MAX_PATTERNS)
def _compile(pattern: str) -> re.Pattern[str]:
    if len(pattern) > MAX_PATTERN_LENGTH or _REPEATED_GROUP.search(pattern):
        raise _too_slow(pattern)
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise LoraTokenizerError(
            f"the pattern {pattern[:80]!r} in rank_pattern or alpha_pattern is not a regular expression ({error})"
        ) from error


def _too_slow(pattern: str) -> LoraTokenizerError:
    return LoraTokenizerError(
        f"the pattern {pattern[:80]!r} in rank_pattern or alpha_pattern repeats too much to be matched safely; "
        f"write the module names out"
    )


@functools.lru_cache(maxsize=MAX_PATTERNS)
def _choices(pattern: str) -> tuple[int, int]:
    """Number of repetitions in a pattern, and of ways through its other choices."""
    text = _ONE_CHARACTER.sub("x", pattern).replace("(?", "(")
    ways, open_groups = 1, [1]
    for character in text:
        if character == "(":
            open_groups.append(1)
        elif character == "|":
            open_groups[-1] += 1
        elif character == "?":
            ways *= 2
        elif character == ")" and len(open_groups) > 1:
            ways *= open_groups.pop()
    return sum(text.count(mark) for mark in "*+{"), ways * math.prod(open_groups)


def count_ways(pattern: str, length: int) -> int:
    """Upper bound of the ways in which the engine may try to match a pattern with a name of so many characters.

    >>> count_ways("q_proj", 60), count_ways(r".*\\.layers\\.(0|1|2)\\..*", 60)
    (61, 119133)
    """
    repetitions, ways = _choices(pattern)
    return ways * math.comb(length + repetitions + 1, repetitions + 1)


def check_patterns(patterns: Mapping[str, object], modules: Collection[str] = ()) -> None:
    """Refuse patterns that are too many, not regular expressions, or too slow to be matched with all the modules."""
    if len(patterns) > MAX_PATTERNS:
        raise LoraTokenizerError(f"{len(patterns)} rank or alpha patterns are over the limit of {MAX_PATTERNS}")
    length = max(map(len, modules), default=0)
    for pattern in patterns:
        _compile(pattern)
        if count_ways(pattern, length) > MAX_WAYS:
            raise _too_slow(pattern)
    slowest = max(patterns, key=lambda pattern: count_ways(pattern, length), default="")
    if len(modules) * sum(count_ways(pattern, length) for pattern in patterns) > MAX_WAYS_IN_ALL:
        raise _too_slow(slowest)


def first_match(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """The value of the first pattern that matches `module`, else `default` (peft.utils.other.get_pattern_key).

    >>> first_match({r"layers\\.1\\.q": 16}, "model.layers.1.q", 8), first_match({"k": 16}, "model.layers.1.q", 8)
    (16, 8)
    """
    for pattern, value in patterns.items():
        compiled = _compile(pattern)
        if count_ways(pattern, len(module)) > MAX_WAYS:
            raise _too_slow(pattern)
        if compiled.match(module):
            return value
    return default
