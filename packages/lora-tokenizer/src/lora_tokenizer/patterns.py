"""Matching PEFT's `rank_pattern` and `alpha_pattern` exactly as PEFT does, but safe for patterns from strangers.

PEFT takes the first key for which `re.match(rf"(.*\\.)?({key})$", module)` holds. Those keys are regular expressions
out of a downloaded file, and Python's engine can be made to run for years; keys that could are refused by name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TypeVar

from lora_tokenizer.errors import LoraTokenizerError

Value = TypeVar("Value")

MAX_PATTERNS = 4096
MAX_PATTERN_LENGTH = 512
_MAX_UNBOUNDED = 2
_UNBOUNDED = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+?{]|\\[1-9]|\(\?P[=>]")


@functools.lru_cache(maxsize=MAX_PATTERNS)
def _compile(pattern: str) -> re.Pattern[str]:
    too_slow = len(_UNBOUNDED.findall(pattern)) > _MAX_UNBOUNDED or _REPEATED_GROUP.search(pattern)
    if len(pattern) > MAX_PATTERN_LENGTH or too_slow:
        raise LoraTokenizerError(
            f"the pattern {pattern[:80]!r} in rank_pattern or alpha_pattern repeats too much to be matched safely; "
            f"write the module names out"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise LoraTokenizerError(
            f"the pattern {pattern[:80]!r} in rank_pattern or alpha_pattern is not a regular expression ({error})"
        ) from error


def check_patterns(patterns: Mapping[str, object]) -> None:
    """Refuse patterns that are too many, too slow or not regular expressions."""
    if len(patterns) > MAX_PATTERNS:
        raise LoraTokenizerError(f"{len(patterns)} rank or alpha patterns are over the limit of {MAX_PATTERNS}")
    for pattern in patterns:
        _compile(pattern)


def first_match(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """The value of the first pattern that matches `module`, else `default` (peft.utils.other.get_pattern_key).

    >>> first_match({r"layers\\.1\\.q": 16}, "model.layers.1.q", 8), first_match({"k": 16}, "model.layers.1.q", 8)
    (16, 8)
    """
    for pattern, value in patterns.items():
        if _compile(pattern).match(module):
            return value
    return default
