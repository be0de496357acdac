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
    "Block",
    "GridShape",
    "check_condition",
    "check_embeddings",
    "check_grid_input",
    "check_kernel_fits",
    "check_kernel_size",
    "check_shape",
    "check_size",
]

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


def check_grid_input(x: Tensor, expected: Sequence[int | None]) -> None:
    """Raise HyperConvError unless `x` is [B, L, H, W] with the expected sizes (None: any size of at least 1)."""
    wanted = ", ".join(["B", *(a if s is None else f"{a}={s}" for a, s in zip(AXES, expected, strict=True))])
    if x.ndim != 4 or any(s is not None and have != s for have, s in zip(x.shape[1:], expected, strict=True)):
        raise HyperConvError(f"x has shape {list(x.shape)}, expected [{wanted}].")
    if not x.is_floating_point():
        raise HyperConvError(f"x has dtype {x.dtype}, expected a floating-point tensor [{wanted}].")


def check_shape(name: str, shape: object) -> GridShape:
    """Return `shape` as a tuple (L, H, W) of positive integers; raise HyperConvError otherwise."""
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise HyperConvError(f"{name} is {shape!r}, expected three sizes (L, H, W).")
    L, H, W = (check_size(f"{axis} of {name}", size) for axis, size in zip(AXES, shape, strict=True))
    return L, H, W


def check_condition(condition: Tensor, mask: Tensor | None, condition_dim: int) -> None:
    """Raise HyperConvError unless `condition` is finite [B, P, D] and `mask` boolean [B, P] with a true in each row."""
    shape = list(condition.shape)
    wanted = f"[B, P, D={condition_dim}]"
    if condition.ndim != 3 or condition.shape[-1] != condition_dim or condition.numel() == 0:
        raise HyperConvError(f"condition has shape {shape}, expected {wanted} with B and P of at least 1.")
    if not condition.is_floating_point():
        raise HyperConvError(f"condition has dtype {condition.dtype}, expected a floating-point tensor {wanted}.")
    if mask is not None and list(mask.shape) != shape[:2]:
        raise HyperConvError(
            f"mask has shape {list(mask.shape)}, expected {shape[:2]} for a condition of shape {shape}."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise HyperConvError(f"mask has dtype {mask.dtype}, expected torch.bool (true marks a prompt that counts).")
    if torch.compiler.is_compiling() or condition.is_meta:
        return
    if not bool(torch.isfinite(condition).all()):
        bad = int((~torch.isfinite(condition)).sum())
        raise HyperConvError(f"condition of shape {shape} holds {bad} NaN or infinite values, expected finite numbers.")
    if mask is not None and not bool(mask.any(dim=1).all()):
        rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
        raise HyperConvError(
            f"mask of shape {shape[:2]} is all false in batch row(s) {rows}, expected at least one true per row."
        )


def check_embeddings(embeddings: Tensor, condition_dim: int) -> None:
    """Raise HyperConvError unless `embeddings` is finite [M, D] with M of at least 1."""
    fits = embeddings.ndim == 2 and embeddings.shape[1] == condition_dim and embeddings.numel() > 0
    if not fits or not bool(torch.isfinite(embeddings).all()):
        what = f"shape {list(embeddings.shape)}" + (" and NaN or infinite values" if fits else "")
        raise HyperConvError(f"embeddings have {what}, expected finite numbers [M, D={condition_dim}], M at least 1.")
