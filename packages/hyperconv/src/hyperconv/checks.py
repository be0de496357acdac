"""Decides what is refused, and in which words: every check of an argument lives here.

Checks that look only at shapes run always, also while a graph is traced, where they cost nothing.
Checks that look at values (NaN, an all-false mask) read the tensor back to the host, which a traced graph cannot do,
so `torch.compile` and `torch.export` skip them, and so do tensors without values (the meta device).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hyperconv.errors import HyperConvError

__all__ = [
    "AXES",
    "Axis",
    "check_condition",
    "check_grid_input",
    "check_kernel_fits",
    "check_kernel_size",
    "check_size",
]

Axis = Literal["L", "H", "W"]
AXES: tuple[Axis, Axis, Axis] = ("L", "H", "W")


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


def check_grid_input(name: str, x: Tensor, expected: Sequence[int | None]) -> None:
    """Raise HyperConvError unless `x` is [B, L, H, W] with the expected sizes (None: any size of at least 1)."""
    wanted = ", ".join(["B", *(a if s is None else f"{a}={s}" for a, s in zip(AXES, expected, strict=True))])
    if x.ndim != 4:
        raise HyperConvError(f"{name} has shape {list(x.shape)}, expected the 4 axes [{wanted}].")
    if any(size is not None and have != size for have, size in zip(x.shape[1:], expected, strict=True)):
        raise HyperConvError(f"{name} has shape {list(x.shape)}, expected [{wanted}].")
    if not x.is_floating_point():
        raise HyperConvError(f"{name} has dtype {x.dtype}, expected a floating-point tensor [{wanted}].")


def check_condition(condition: Tensor, mask: Tensor | None, condition_dim: int) -> None:
    """Raise HyperConvError unless `condition` is [B, P, D] or [B, P, T, D] with P, T of at least 1 and a fitting mask.

    The mask is boolean, [B, P] or (only with token states) [B, P, T]; each row b keeps at least one entry.
    """
    shape = list(condition.shape)
    wanted = f"[B, P, D={condition_dim}] or [B, P, T, D={condition_dim}]"
    if condition.ndim not in (3, 4) or condition.shape[-1] != condition_dim:
        raise HyperConvError(f"condition has shape {shape}, expected {wanted}.")
    if not condition.is_floating_point():
        raise HyperConvError(f"condition has dtype {condition.dtype}, expected a floating-point tensor {wanted}.")
    if any(size == 0 for size in condition.shape):
        raise HyperConvError(
            f"condition has shape {shape}, expected {wanted} with at least one entry along every axis."
        )
    if mask is not None:
        _check_mask_shape(condition, mask)
    if torch.compiler.is_compiling() or condition.is_meta:
        return
    if not bool(torch.isfinite(condition).all()):
        bad = int((~torch.isfinite(condition)).sum())
        raise HyperConvError(f"condition of shape {shape} holds {bad} NaN or infinite values, expected finite numbers.")
    if mask is not None and not bool(mask.flatten(1).any(dim=1).all()):
        rows = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        raise HyperConvError(
            f"mask of shape {list(mask.shape)} is all false in batch row(s) {rows}, expected at least one true per row."
        )


def _check_mask_shape(condition: Tensor, mask: Tensor) -> None:
    fitting = [list(condition.shape[:rank]) for rank in range(2, condition.ndim)]
    if list(mask.shape) not in fitting:
        wanted = " or ".join(map(str, fitting))
        raise HyperConvError(
            f"mask has shape {list(mask.shape)}, expected {wanted} for a condition of shape {list(condition.shape)}."
        )
    if mask.dtype != torch.bool:
        raise HyperConvError(f"mask has dtype {mask.dtype}, expected torch.bool (true marks a prompt that counts).")
