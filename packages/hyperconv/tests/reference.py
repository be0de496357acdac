"""The definitions written down plainly: what every fast path must equal, and what the benchmarks compare with.

Legend: B batch, P prompts, D width of an embedding, L layers, H tokens per layer, W values per token.
The functions take the modules of this package for their parameters and compute with transposed copies, as the
published decoder does. They check nothing and know no activation checkpointing.
"""

from typing import cast

import torch
from hyperconv.layers.blocks import DualHyperConvBlock, SequentialHyperConvBlock
from hyperconv.layers.conv import HyperConv
from hyperconv.layers.decoder import HyperConvDecoder
from hyperconv.linear import LinearExpander
from torch import Tensor
from torch.nn.functional import conv2d, layer_norm

__all__ = ["decoder", "dual_block", "hyperconv", "linear_expander", "sequential_block"]


def hyperconv(conv: HyperConv, x_BLHW: Tensor) -> Tensor:
    """One hyper-convolution on a contiguous copy with the mixed axis as channels, [B, L, H, W] to the same."""
    axis = {"L": 1, "H": 2, "W": 3}[conv.axis]
    channels_first = x_BLHW.movedim(axis, 1).contiguous()
    y = conv2d(channels_first, conv.weight, conv.bias, padding=conv.kernel_size // 2)
    return y.movedim(1, axis).contiguous()


def sequential_block(
    module: SequentialHyperConvBlock, x_BLHW: Tensor, scale_BW: Tensor | None = None, shift_BW: Tensor | None = None
) -> Tensor:
    """`Conv_L(Conv_H(Conv_W(norm(x))))`, plus x where the shapes match."""
    u = _modulate(layer_norm(x_BLHW, x_BLHW.shape[-1:], module.norm.weight, module.norm.bias), scale_BW, shift_BW)
    y = hyperconv(module.conv_l, hyperconv(module.conv_h, hyperconv(module.conv_w, u)))
    return x_BLHW + y if x_BLHW.shape == y.shape else y


def dual_block(
    module: DualHyperConvBlock, x_BLHW: Tensor, scale_BW: Tensor | None = None, shift_BW: Tensor | None = None
) -> Tensor:
    """`Conv_L((Conv_H1(Conv_W1(u)) + tanh(Conv_W2(Conv_H2(u))) + bias) / 3)`, plus x where the shapes match."""
    u = _modulate(layer_norm(x_BLHW, x_BLHW.shape[-2:], module.norm.weight, module.norm.bias), scale_BW, shift_BW)
    a = hyperconv(module.conv_h1, hyperconv(module.conv_w1, u))
    b = torch.tanh(hyperconv(module.conv_w2, hyperconv(module.conv_h2, u)))
    y = hyperconv(module.conv_l, (a + b + module.bias) / 3)
    return x_BLHW + y if x_BLHW.shape == y.shape else y


def decoder(module: HyperConvDecoder, x_BLHW: Tensor) -> Tensor:
    """All blocks one after the other, [B, *shapes[0]] to [B, *shapes[-1]]."""
    for block in module.blocks:
        if isinstance(block, DualHyperConvBlock):
            x_BLHW = dual_block(block, x_BLHW)
        else:
            x_BLHW = sequential_block(cast(SequentialHyperConvBlock, block), x_BLHW)
    return x_BLHW


def linear_expander(module: LinearExpander, condition_BPD: Tensor, mask_BP: Tensor) -> Tensor:
    """Per task, `offset + strength · sum_k (w_k · (mean - center)) · basis_k`, with the mean of what the mask keeps."""
    rows = []
    for condition_PD, mask_P in zip(condition_BPD, mask_BP, strict=True):
        c_D = condition_PD[mask_P].mean(0) - module.center
        tokens_LHW: Tensor = module.offset
        for w_D, basis_LHW in zip(module.features.weight, module.basis, strict=True):
            tokens_LHW = tokens_LHW + module.strength * torch.dot(w_D, c_D) * basis_LHW
        rows.append(tokens_LHW)
    return torch.stack(rows)


def _modulate(u_BLHW: Tensor, scale_BW: Tensor | None, shift_BW: Tensor | None) -> Tensor:
    scaled = u_BLHW if scale_BW is None else u_BLHW * (1 + scale_BW[:, None, None, :])
    return scaled if shift_BW is None else scaled + shift_BW[:, None, None, :]
