"""A chain of HyperConv blocks: decides how shapes follow each other and what is recomputed to save memory."""

import itertools
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyperconv.checks import Block, GridShape, check_shape
from hyperconv.errors import HyperConvError
from hyperconv.layers.blocks import DualHyperConvBlock, SequentialHyperConvBlock
from hyperconv.layers.conv import check_grid_input

__all__ = ["HyperConvDecoder"]


class HyperConvDecoder(nn.Module):
    """Blocks that take a grid through `shapes`, from the first (L, H, W) to the last.

    Args:
        shapes: two or more (L, H, W); block i goes from shapes[i] to shapes[i + 1], any of the sizes may change.
        kernel_size: odd length of every kernel.
        block: "sequential" or "dual".
        kernel_size_w: another length for the W convolutions; None takes `kernel_size`.
        activation_checkpointing: while training keep only the inputs of the blocks and compute the rest twice.
        allow_oversized_kernel: accept axes shorter than the kernel.
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        HyperConvError: fewer than two shapes, or what the blocks refuse.

    >>> decoder = HyperConvDecoder(shapes=[(4, 3, 8), (4, 3, 8), (6, 5, 8)], kernel_size=3, block="dual")
    >>> decoder(torch.zeros(2, 4, 3, 8)).shape
    torch.Size([2, 6, 5, 8])
    """

    def __init__(
        self,
        shapes: Sequence[GridShape],
        kernel_size: int,
        block: Block = "sequential",
        *,
        kernel_size_w: int | None = None,
        activation_checkpointing: bool = False,
        allow_oversized_kernel: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(shapes) < 2:
            raise HyperConvError(f"shapes has {len(shapes)} entries, expected at least two (L, H, W).")
        self.shapes = [check_shape(f"shapes[{i}]", shape) for i, shape in enumerate(shapes)]
        self.activation_checkpointing = activation_checkpointing
        if block not in get_args(Block):
            raise HyperConvError(f"block is {block!r}, expected 'sequential' or 'dual'.")
        make_block = SequentialHyperConvBlock if block == "sequential" else DualHyperConvBlock
        self.blocks = nn.ModuleList(
            make_block(
                *pair,
                kernel_size,
                kernel_size_w=kernel_size_w,
                allow_oversized_kernel=allow_oversized_kernel,
                device=device,
                dtype=dtype,
            )
            for pair in itertools.pairwise(self.shapes)
        )

    def forward(self, x_BLHW: Tensor, modulation: Sequence[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """[B, *shapes[0]] to [B, *shapes[-1]]; `modulation` holds one (scale, shift), each [B, W], per block."""
        check_grid_input(x_BLHW, self.shapes[0])
        if modulation is not None and len(modulation) != len(self.blocks):
            raise HyperConvError(f"modulation has {len(modulation)} entries, expected {len(self.blocks)}, as blocks.")
        for i, block in enumerate(self.blocks):
            scale, shift = modulation[i] if modulation else (None, None)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BLHW = checkpoint(block, x_BLHW, scale, shift, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BLHW = block(x_BLHW, scale, shift)
        return x_BLHW
