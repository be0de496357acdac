"""One hyper-convolution: decides in which memory format each of the three axes is mixed.

Legend: B batch, L layers, H tokens per layer, W values per token; k kernel size.
A grid is stored [B, L, H, W]. Seen as [B, W, L, H] it is channels-last already, and seen as [B, L, H, W] it is
contiguous with L as channels, so mixing W and mixing L copy nothing; mixing H needs [B, H, L, W], which is a copy.
A kernel must have the memory format of its input or is copied at every call, so the kernel of Conv_W is channels-last.
Only a long one is not: on a CPU the backward pass of torch holds one more copy of a channels-last kernel, and from 5 by
5 on, kernels outweigh grids (of 16 by 32 tokens, say), so there the grid is copied instead.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from hyperconv.checks import AXES, Axis, check_kernel_fits, check_kernel_size, check_size
from hyperconv.errors import HyperConvError

__all__ = ["Factory", "HyperConv", "check_grid_input"]

_LONGEST_CHANNELS_LAST_KERNEL = 3


class Factory(TypedDict):
    """Where and how parameters are made, as the layers of torch take it."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class HyperConv(nn.Module):
    """A 2-D convolution over a grid [B, L, H, W] that mixes one axis as channels and slides over the other two.

    Conv_W slides over (L, H), Conv_H over (L, W), Conv_L over (H, W); stride 1, padding "same" with zeros.

    Args:
        axis: the axis that is mixed: "L", "H" or "W".
        in_size: length of that axis in the input.
        out_size: length of that axis in the output.
        kernel_size: odd length of the kernel along both axes it slides over.
        bias: add one learned number per entry of the output axis.
        allow_oversized_kernel: accept inputs whose other axes are shorter than the kernel (some published decoders).
        device: where the parameters are made.
        dtype: of the parameters.

    Shapes: input [B, L, H, W], output the same with `axis` replaced by `out_size`; the dtype is kept.
    Parameters: `weight` [out_size, in_size, k, k], its last two axes in the order L, H, W; `bias` [out_size].

    Raises:
        HyperConvError: an even kernel, a kernel longer than an axis, an input of another rank or size.

    >>> conv_w = HyperConv("W", 8, 6, kernel_size=3)
    >>> conv_w(torch.zeros(2, 5, 3, 8)).shape
    torch.Size([2, 5, 3, 6])
    """

    def __init__(
        self,
        axis: Axis,
        in_size: int,
        out_size: int,
        kernel_size: int,
        *,
        bias: bool = False,
        allow_oversized_kernel: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if axis not in AXES:
            raise HyperConvError(f"axis is {axis!r}, expected one of 'L', 'H', 'W'.")
        self.axis: Axis = axis
        self.in_size = check_size("in_size", in_size)
        self.out_size = check_size("out_size", out_size)
        self.kernel_size = check_kernel_size("kernel_size", kernel_size)
        self.allow_oversized_kernel = allow_oversized_kernel
        shape = (self.out_size, self.in_size, self.kernel_size, self.kernel_size)
        memory_format = torch.channels_last if self._is_channels_last else torch.contiguous_format
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype, memory_format=memory_format))
        self.bias = nn.Parameter(torch.empty(self.out_size, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew as `torch.nn.Conv2d` does: uniform in ±1/sqrt(in_size · k²)."""
        bound = 1.0 / math.sqrt(self.in_size * self.kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Say the axis and the sizes in `print(module)`."""
        return f"axis={self.axis!r}, {self.in_size} -> {self.out_size}, kernel_size={self.kernel_size}"

    def forward(self, x_BLHW: Tensor) -> Tensor:
        """Mix the axis; see the class for shapes and errors."""
        check_grid_input(x_BLHW, [self.in_size if axis == self.axis else None for axis in AXES])
        self.check_sizes({axis: x_BLHW.shape[1 + i] for i, axis in enumerate(AXES) if axis != self.axis})
        axis = AXES.index(self.axis) + 1
        x = x_BLHW.movedim(axis, 1)
        # conv2d would copy a grid in neither format too, but keep the original for backward and copy it there again.
        if not self._is_channels_last:
            x = x.contiguous()
        return nn.functional.conv2d(x, self.weight, self.bias, padding=self.kernel_size // 2).movedim(1, axis)

    @property
    def _is_channels_last(self) -> bool:
        """Whether the grid is convolved in the channels-last format, in which it lies when W is mixed."""
        return self.axis == "W" and self.kernel_size <= _LONGEST_CHANNELS_LAST_KERNEL

    def check_sizes(self, sizes: Mapping[Axis, int]) -> None:
        """Raise HyperConvError where the kernel is longer than one of `sizes`, the axes it slides over."""
        if not self.allow_oversized_kernel:
            way_out = ", or allow_oversized_kernel=True"
            check_kernel_fits(f"kernel_size of Conv_{self.axis}", self.kernel_size, sizes, way_out)


def check_grid_input(x: Tensor, expected: Sequence[int | None]) -> None:
    """Raise HyperConvError unless `x` is [B, L, H, W] with the expected sizes (None: any size of at least 1)."""
    wanted = ", ".join(["B", *(a if s is None else f"{a}={s}" for a, s in zip(AXES, expected, strict=True))])
    if x.ndim != 4 or any(s is not None and have != s for have, s in zip(x.shape[1:], expected, strict=True)):
        raise HyperConvError(f"x has shape {list(x.shape)}, expected [{wanted}].")
    if not x.is_floating_point():
        raise HyperConvError(f"x has dtype {x.dtype}, expected a floating-point tensor [{wanted}].")
