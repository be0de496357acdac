"""The one exception base of the package: every message is a sentence with the way out."""

import errno
import os

from lora_tokenizer.errors import NO_SPACE

__all__ = ["LoragenInferError", "is_out_of_memory", "is_out_of_space", "name_refused", "reason_of"]


class LoragenInferError(Exception):
    """A user's input or environment prevents the work; the message says what, where, and the way out."""


def reason_of(error: Exception) -> str:
    """Return in one line what a library says of its failure.

    Example:
        >>> reason_of(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"))
        'there is not enough memory for it'
    """
    if is_out_of_memory(error):
        return "there is not enough memory for it"
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, NumPy or torch, on the CPU or on a GPU, found no memory."""
    # torch has a class for GPUs only, and importing it for its name would take seconds.
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def is_out_of_space(error: BaseException) -> bool:
    """Return whether there is no room for what was to be written."""
    # Libraries that are not Python's say it in words only.
    return getattr(error, "errno", None) in NO_SPACE or os.strerror(errno.ENOSPC) in str(error)


def name_refused(error: BaseException, path: object) -> str | None:
    """Return the sentence about a name that the system finds too long, or None if that is not what is wrong.

    The name is ``path`` where ``error`` has none.

    Example:
        >>> name_refused(OSError(errno.ENAMETOOLONG, "File name too long"), "xxx")
        'The name xxx is longer than the system takes; give a shorter one.'
    """
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        name = getattr(error, "filename", None) or path
        return f"The name {name} is longer than the system takes; give a shorter one."
    return None
