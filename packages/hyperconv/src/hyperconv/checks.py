"""Decides which sizes and names are refused, and in which words; needs no torch, so that a config is made at once."""

from collections.abc import Mapping
from typing import Literal

from hyperconv.errors import HyperConvError

__all__ = ["AXES", "Axis", "Block", "GridShape", "check_kernel_fits", "check_kernel_size", "check_shape", "check_size"]

Axis = Literal["L", "H", "W"]
AXES: tuple[Axis, Axis, Axis] = ("L", "H", "W")
Block = Literal["sequential", "dual"]
GridShape = tuple[int, int, int]


def check_size(name: str, value: object, at_least: int = 1) -> int:
    """Return `value` when it is an integer of at least `at_least`; raise HyperConvError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise HyperConvError(f"{name} is {value!r}, expected an integer of at least {at_least}.")
    return value


def check_kernel_size(name: str, kernel_size: object) -> int:
    """Return `kernel_size` when it is odd and positive; raise HyperConvError otherwise."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise HyperConvError(
            f"{name} is {kernel_size!r}, expected an odd integer of at least 1 so that padding can keep the axes."
        )
    return kernel_size


def check_kernel_fits(name: str, kernel_size: int, sizes: Mapping[Axis, int], otherwise: str = "") -> None:
    """Raise HyperConvError where the kernel is longer than an axis it slides over.

    `sizes` takes axis letters to lengths; `otherwise` is another way out for the caller, such as ", or flag=True".
    """
    for axis, size in sizes.items():
        if kernel_size > size:
            raise HyperConvError(
                f"{name} is {kernel_size}, longer than the axis {axis} of size {size} that it slides over; "
                f"expected at most {size if size % 2 else size - 1}{otherwise}."
            )


def check_shape(name: str, shape: object) -> GridShape:
    """Return `shape` as a tuple (L, H, W) of positive integers; raise HyperConvError otherwise."""
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise HyperConvError(f"{name} is {shape!r}, expected three sizes (L, H, W).")
    L, H, W = (check_size(f"{axis} of {name}", size) for axis, size in zip(AXES, shape, strict=True))
    return L, H, W
