"""The one exception base of the package: every message is a sentence with the way out."""

__all__ = ["LoragenInferError", "reason_of"]


class LoragenInferError(Exception):
    """A user's input or environment prevents the work; the message says what, where, and the way out."""


def reason_of(error: Exception) -> str:
    """Return in one line what a library says of its failure.

    Example:
        >>> reason_of(RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"))
        'there is not enough memory for it'
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return "there is not enough memory for it"
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
