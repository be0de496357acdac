"""The two blocks built of hyper-convolutions: decides their exact formulas, their norms and their residuals.

Legend: B batch, L layers, H tokens per layer, W values per token; a prime marks the size after the block.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hyperconv.checks import AXES, check_grid_input, check_size
from hyperconv.conv import HyperConv
from hyperconv.errors import HyperConvError

__all__ = ["Block", "DualHyperConvBlock", "GridShape", "SequentialHyperConvBlock", "check_shape", "make_block"]

Block = Literal["sequential", "dual"]
GridShape = tuple[int, int, int]


def check_shape(name: str, shape: object) -> GridShape:
    """Return `shape` as a tuple (L, H, W) of positive integers; raise HyperConvError otherwise."""
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise HyperConvError(f"{name} is {shape!r}, expected three sizes (L, H, W).")
    L, H, W = (check_size(f"{axis} of {name}", size) for axis, size in zip(AXES, shape, strict=True))
    return L, H, W


class SequentialHyperConvBlock(nn.Module):
    """`y = Conv_L(Conv_H(Conv_W(norm(x))))`, plus `x` where the shapes match.

    `norm` is a LayerNorm over W with an affine part; the convolutions have no bias except Conv_L.
    With `scale` and `shift` (both [B, W]) the normalised input is first taken to `u * (1 + scale) + shift`,
    which is how a condition reaches the block (feature-wise linear modulation, Perez et al. 2018).

    Args:
        in_shape, out_shape: (L, H, W) before and after.
        kernel_size: odd length of all three kernels.
        kernel_size_w: another length for Conv_W, which holds most of the weights; None takes `kernel_size`.
        allow_oversized_kernel: accept axes shorter than the kernel.
        device, dtype: where and how the parameters are made.

    Raises:
        HyperConvError: sizes that are no positive integers, an even kernel or one longer than an axis,
            an input of another shape.

    >>> block = SequentialHyperConvBlock((4, 3, 8), (4, 5, 6), kernel_size=3)
    >>> block(torch.zeros(2, 4, 3, 8)).shape
    torch.Size([2, 4, 5, 6])
    """

    def __init__(
        self,
        in_shape: GridShape,
        out_shape: GridShape,
        kernel_size: int,
        *,
        kernel_size_w: int | None = None,
        allow_oversized_kernel: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = check_shape("in_shape", in_shape), check_shape("out_shape", out_shape)
        (l_in, h_in, w_in), (l_out, h_out, w_out) = self.in_shape, self.out_shape
        k_w = kernel_size if kernel_size_w is None else kernel_size_w
        free = allow_oversized_kernel
        self.norm = nn.LayerNorm(w_in, device=device, dtype=dtype)
        self.conv_w = HyperConv("W", w_in, w_out, k_w, allow_oversized_kernel=free, device=device, dtype=dtype)
        self.conv_h = HyperConv("H", h_in, h_out, kernel_size, allow_oversized_kernel=free, device=device, dtype=dtype)
        self.conv_l = HyperConv(
            "L", l_in, l_out, kernel_size, bias=True, allow_oversized_kernel=free, device=device, dtype=dtype
        )
        _check_block_kernels(self.conv_w, (l_in, h_in), self.conv_h, (l_in, w_out), self.conv_l, (h_out, w_out))

    def forward(self, x_BLHW: Tensor, scale_BW: Tensor | None = None, shift_BW: Tensor | None = None) -> Tensor:
        """[B, L, H, W] to [B, L', H', W'] in the dtype of the input."""
        check_grid_input("x", x_BLHW, self.in_shape)
        u = modulate(self.norm(x_BLHW), scale_BW, shift_BW)
        y: Tensor = self.conv_l(self.conv_h(self.conv_w(u)))
        return x_BLHW + y if self.in_shape == self.out_shape else y


class DualHyperConvBlock(nn.Module):
    """The block published for Drag-and-Drop LLMs (Liang et al. 2025, arXiv:2506.16406): two orders, one average.

    `u = LayerNorm over (H, W)`; `a = Conv_H1(Conv_W1(u))`; `b = tanh(Conv_W2(Conv_H2(u)))`;
    `z = (a + b + bias[H', W']) / 3`; `y = Conv_L(z)`; plus `x` where the shapes match.
    The W and H convolutions have no bias, Conv_L has one per layer.

    Args, shapes and errors are those of SequentialHyperConvBlock.

    >>> block = DualHyperConvBlock((4, 3, 8), (2, 5, 6), kernel_size=3)
    >>> block(torch.zeros(2, 4, 3, 8)).shape
    torch.Size([2, 2, 5, 6])
    """

    def __init__(
        self,
        in_shape: GridShape,
        out_shape: GridShape,
        kernel_size: int,
        *,
        kernel_size_w: int | None = None,
        allow_oversized_kernel: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = check_shape("in_shape", in_shape), check_shape("out_shape", out_shape)
        (l_in, h_in, w_in), (l_out, h_out, w_out) = self.in_shape, self.out_shape
        k_w = kernel_size if kernel_size_w is None else kernel_size_w
        free = allow_oversized_kernel
        self.norm = nn.LayerNorm((h_in, w_in), device=device, dtype=dtype)
        self.conv_w1 = HyperConv("W", w_in, w_out, k_w, allow_oversized_kernel=free, device=device, dtype=dtype)
        self.conv_h1 = HyperConv("H", h_in, h_out, kernel_size, allow_oversized_kernel=free, device=device, dtype=dtype)
        self.conv_h2 = HyperConv("H", h_in, h_out, kernel_size, allow_oversized_kernel=free, device=device, dtype=dtype)
        self.conv_w2 = HyperConv("W", w_in, w_out, k_w, allow_oversized_kernel=free, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.empty(h_out, w_out, device=device, dtype=dtype))
        self.conv_l = HyperConv(
            "L", l_in, l_out, kernel_size, bias=True, allow_oversized_kernel=free, device=device, dtype=dtype
        )
        _check_block_kernels(self.conv_w1, (l_in, h_in), self.conv_h1, (l_in, w_out), self.conv_l, (h_out, w_out))
        _check_block_kernels(self.conv_w2, (l_in, h_out), self.conv_h2, (l_in, w_in), self.conv_l, (h_out, w_out))
        nn.init.uniform_(self.bias, -1.0 / self.bias.numel(), 1.0 / self.bias.numel())

    def forward(self, x_BLHW: Tensor, scale_BW: Tensor | None = None, shift_BW: Tensor | None = None) -> Tensor:
        """[B, L, H, W] to [B, L', H', W'] in the dtype of the input."""
        check_grid_input("x", x_BLHW, self.in_shape)
        # Nested, so that inside conv_l nothing holds on to what the two branches needed.
        y: Tensor = self.conv_l(self._average(modulate(self.norm(x_BLHW), scale_BW, shift_BW)))
        return x_BLHW + y if self.in_shape == self.out_shape else y

    def _average(self, u_BLHW: Tensor) -> Tensor:
        a = self.conv_h1(self.conv_w1(u_BLHW))
        b = torch.tanh(self.conv_w2(self.conv_h2(u_BLHW)))
        z: Tensor = (a + b).add_(self.bias).div_(3)
        return z


def modulate(u_BLHW: Tensor, scale_BW: Tensor | None, shift_BW: Tensor | None) -> Tensor:
    """`u * (1 + scale) + shift`, scale and shift [B, W] spread over layers and tokens; None leaves a part out."""
    if scale_BW is not None:
        u_BLHW = u_BLHW * (1 + scale_BW[:, None, None, :])
    if shift_BW is not None:
        u_BLHW = u_BLHW + shift_BW[:, None, None, :]
    return u_BLHW


def make_block(
    block: Block,
    in_shape: GridShape,
    out_shape: GridShape,
    kernel_size: int,
    *,
    kernel_size_w: int | None = None,
    allow_oversized_kernel: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SequentialHyperConvBlock | DualHyperConvBlock:
    """Build the block of that name; raise HyperConvError for any other name."""
    if block not in get_args(Block):
        raise HyperConvError(f"block is {block!r}, expected 'sequential' or 'dual'.")
    kind = SequentialHyperConvBlock if block == "sequential" else DualHyperConvBlock
    return kind(
        in_shape,
        out_shape,
        kernel_size,
        kernel_size_w=kernel_size_w,
        allow_oversized_kernel=allow_oversized_kernel,
        device=device,
        dtype=dtype,
    )


def _check_block_kernels(
    conv_w: HyperConv,
    slides_w: tuple[int, int],
    conv_h: HyperConv,
    slides_h: tuple[int, int],
    conv_l: HyperConv,
    slides_l: tuple[int, int],
) -> None:
    # Found when the block is built rather than at its first batch; each conv still checks what it is given.
    for conv, sizes in ((conv_w, slides_w), (conv_h, slides_h), (conv_l, slides_l)):
        conv.check_sizes(dict(zip((axis for axis in AXES if axis != conv.axis), sizes, strict=True)))
