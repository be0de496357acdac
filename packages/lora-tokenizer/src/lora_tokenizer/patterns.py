"""Matching PEFT's `rank_pattern` and `alpha_pattern` exactly as PEFT does, but safe for patterns from strangers.

PEFT takes the first key for which `re.match(rf"(.*\\.)?({key})$", module)` holds. Those keys are regular expressions
out of a downloaded file, and Python's engine can be made to run for years. So their length is capped, and so are the
ways in which k repetitions, PEFT's own in front among them, can share a name; no group is repeated or referred to.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from lora_tokenizer.errors import LoraTokenizerError

Value = TypeVar("Value")

MAX_PATTERNS = 4096
MAX_PATTERN_LENGTH = 256
MAX_REPETITIONS = 3
"""Of one pattern, and as many groups."""
MAX_WAYS = 10_000_000
"""Of matching one pattern with one name; some tenths of a second at worst."""
MAX_WAYS_IN_ALL = 4_000_000_000
"""Of matching all patterns with all modules of an adapter; some tens of seconds at worst."""

_REPEATED_GROUP = re.compile(r"\)[*+?{]|\\[1-9]|\(\?P[=>]")
_REPETITION = re.compile(r"(?<!\()[*+?{]")


@functools.lru_cache(maxsize=MAX_PATTERNS)
def _compile(pattern: str) -> tuple[re.Pattern[str], int]:
    """The pattern as PEFT matches it, and its number of repetitions."""
    num_repetitions = len(_REPETITION.findall(pattern))
    is_long = len(pattern) > MAX_PATTERN_LENGTH or max(num_repetitions, pattern.count("(")) > MAX_REPETITIONS
    if is_long or _REPEATED_GROUP.search(pattern):
        raise _too_slow(pattern)
    try:
        return re.compile(rf"(.*\.)?({pattern})$"), num_repetitions
    except (re.error, OverflowError, RecursionError) as error:
        raise LoraTokenizerError(
            f"the pattern {pattern[:80]!r} in rank_pattern or alpha_pattern is not a regular expression ({error})"
        ) from error


def _num_ways(num_repetitions: int, length: int) -> int:
    return math.comb(length + num_repetitions + 1, num_repetitions + 1)


def _too_slow(pattern: str) -> LoraTokenizerError:
    return LoraTokenizerError(
        f"the pattern {pattern[:80]!r} in rank_pattern or alpha_pattern is too long or repeats too much to be matched "
        f"safely: write the module names out"
    )


def check_patterns(patterns: Sequence[tuple[str, object]], modules: Collection[str] = ()) -> None:
    """Refuse patterns that are too many, not regular expressions, or too slow to be matched with all the modules."""
    if len(patterns) > MAX_PATTERNS:
        raise LoraTokenizerError(f"{len(patterns)} rank or alpha patterns are over the limit of {MAX_PATTERNS}")
    length = max(map(len, modules), default=0)
    ways = [_num_ways(_compile(pattern)[1], length) for pattern, _ in patterns]
    if max(ways, default=0) > MAX_WAYS or len(modules) * sum(ways) > MAX_WAYS_IN_ALL:
        raise _too_slow(patterns[ways.index(max(ways))][0])


def first_match(patterns: Iterable[tuple[str, Value]], module: str, default: Value) -> Value:
    """The value of the first pattern that matches `module`, else `default` (peft.utils.other.get_pattern_key).

    >>> first_match([(r"layers\\.1\\.q", 16)], "model.layers.1.q", 8), first_match([("k", 16)], "model.layers.1.q", 8)
    (16, 8)
    """
    for pattern, value in patterns:
        compiled, num_repetitions = _compile(pattern)
        if _num_ways(num_repetitions, len(module)) > MAX_WAYS:
            raise _too_slow(pattern)
        if compiled.match(module):
            return value
    return default
