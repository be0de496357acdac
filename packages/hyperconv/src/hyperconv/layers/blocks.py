"""The two blocks built of hyper-convolutions: decides their exact formulas, their norms and their residuals.

Legend: B batch, L layers, H tokens per layer, W values per token; a prime marks the size after the block.
"""

import abc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hyperconv.checks import AXES, Axis, GridShape, check_shape
from hyperconv.layers.conv import Factory, HyperConv, check_grid_input

__all__ = ["DualHyperConvBlock", "SequentialHyperConvBlock"]


class _HyperConvBlock(nn.Module, abc.ABC):
    """What both blocks share: how they are made, the norm and modulation before, Conv_L and the residual after."""

    norm: nn.LayerNorm
    conv_l: HyperConv

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
        factory: Factory = {"device": device, "dtype": dtype}

        def conv(axis: Axis) -> HyperConv:
            i = AXES.index(axis)
            length = kernel_size_w if axis == "W" and kernel_size_w is not None else kernel_size
            sizes = self.in_shape[i], self.out_shape[i], length
            return HyperConv(axis, *sizes, bias=axis == "L", allow_oversized_kernel=allow_oversized_kernel, **factory)

        self._make_parts(conv, factory)

    @abc.abstractmethod
    def _make_parts(self, conv: Callable[[Axis], HyperConv], factory: Factory) -> None:
        """Make the norm, the convolutions (`conv` knows their sizes) and what else the block learns."""

    @abc.abstractmethod
    def _mix(self, u_BLHW: Tensor) -> Tensor:
        """What lies between the norm and Conv_L, [B, L, H, W] to [B, L, H', W']."""

    def forward(self, x_BLHW: Tensor, scale_BW: Tensor | None = None, shift_BW: Tensor | None = None) -> Tensor:
        """[B, L, H, W] to [B, L', H', W'] in the dtype of the input."""
        check_grid_input(x_BLHW, self.in_shape)
        # Nested, so that inside conv_l nothing holds on to what came before.
        y: Tensor = self.conv_l(self._mix(modulate(self.norm(x_BLHW), scale_BW, shift_BW)))
        return x_BLHW + y if self.in_shape == self.out_shape else y


class SequentialHyperConvBlock(_HyperConvBlock):
    """`y = Conv_L(Conv_H(Conv_W(norm(x))))`, plus `x` where the shapes match.

    `norm` is a LayerNorm over W with an affine part; the convolutions have no bias except Conv_L.
    With `scale` and `shift` (both [B, W]) the normalised input is first taken to `u * (1 + scale) + shift`,
    which is how a condition reaches the block (feature-wise linear modulation, Perez et al. 2018).

    Args:
        in_shape: (L, H, W) before.
        out_shape: (L, H, W) after.
        kernel_size: odd length of all three kernels.
        kernel_size_w: another length for Conv_W, which holds most of the weights; None takes `kernel_size`.
        allow_oversized_kernel: accept axes shorter than the kernel.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        HyperConvError: sizes that are no positive integers, an even kernel or one longer than an axis,
            an input of another shape.

    >>> block = SequentialHyperConvBlock((4, 3, 8), (4, 5, 6), kernel_size=3)
    >>> block(torch.zeros(2, 4, 3, 8)).shape
    torch.Size([2, 4, 5, 6])
    """

    def _make_parts(self, conv: Callable[[Axis], HyperConv], factory: Factory) -> None:
        self.norm = nn.LayerNorm(self.in_shape[2], **factory)
        self.conv_w, self.conv_h, self.conv_l = conv("W"), conv("H"), conv("L")
        _check_kernels(self.in_shape, self.conv_w, self.conv_h, self.conv_l)

    def _mix(self, u_BLHW: Tensor) -> Tensor:
        y: Tensor = self.conv_h(self.conv_w(u_BLHW))
        return y


class DualHyperConvBlock(_HyperConvBlock):
    """The block published for Drag-and-Drop LLMs (Liang et al. 2025, arXiv:2506.16406): two orders, one average.

    `u = LayerNorm over (H, W)`; `a = Conv_H1(Conv_W1(u))`; `b = tanh(Conv_W2(Conv_H2(u)))`;
    `z = (a + b + bias[H', W']) / 3`; `y = Conv_L(z)`; plus `x` where the shapes match.
    The W and H convolutions have no bias, Conv_L has one per layer.

    Args, shapes and errors are those of SequentialHyperConvBlock.

    >>> block = DualHyperConvBlock((4, 3, 8), (2, 5, 6), kernel_size=3)
    >>> block(torch.zeros(2, 4, 3, 8)).shape
    torch.Size([2, 2, 5, 6])
    """

    def _make_parts(self, conv: Callable[[Axis], HyperConv], factory: Factory) -> None:
        self.norm = nn.LayerNorm(self.in_shape[1:], **factory)
        self.conv_w1, self.conv_h1 = conv("W"), conv("H")
        self.conv_h2, self.conv_w2 = conv("H"), conv("W")
        self.bias = nn.Parameter(torch.empty(self.out_shape[1:], **factory))
        self.conv_l = conv("L")
        _check_kernels(self.in_shape, self.conv_w1, self.conv_h1, self.conv_l)
        _check_kernels(self.in_shape, self.conv_h2, self.conv_w2, self.conv_l)
        nn.init.uniform_(self.bias, -1.0 / self.bias.numel(), 1.0 / self.bias.numel())

    def _mix(self, u_BLHW: Tensor) -> Tensor:
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


def _check_kernels(shape: GridShape, *convs: HyperConv) -> None:
    # Found when the block is built rather than at its first batch; each conv still checks what it is given.
    sizes = dict(zip(AXES, shape, strict=True))
    for conv in convs:
        conv.check_sizes({axis: size for axis, size in sizes.items() if axis != conv.axis})
        sizes[conv.axis] = conv.out_size
