"""Words that messages of both packages share."""

import difflib
from collections.abc import Iterable

__all__ = ["counted", "nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name most like ``name``, or nothing.

    Example:
        >>> nearest("bacth_size", ["batch_size", "seed"])
        "; did you mean 'batch_size'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def counted(number: int, noun: str) -> str:
    """Return ``number`` with its noun, in the plural where it needs one.

    Example:
        >>> counted(1, "task"), counted(1200, "task")
        ('1 task', '1,200 tasks')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
