"""The one exception of the package; a ValueError, since every case is an argument that does not fit."""

__all__ = ["HyperConvError"]


class HyperConvError(ValueError):
    """An argument does not fit: the message names it, its value or shape, and what was expected.

    >>> from hyperconv import HyperConv
    >>> HyperConv("W", 8, 8, kernel_size=2)
    Traceback (most recent call last):
        ...
    hyperconv.errors.HyperConvError: kernel_size is 2, expected an odd integer of at least 1 so that padding can \
keep the axes.
    """
