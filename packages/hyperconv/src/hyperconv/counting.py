"""Parameters and floating-point operations of a generator, from its config alone.

Legend: K num_basis, C hidden_dim, D condition_dim, L layers, H tokens per layer, W output_dim, k kernel size.
"""

from hyperconv.config import GeneratorConfig
from hyperconv.layers.blocks import Block, GridShape

__all__ = ["block_flops", "block_parameters", "generator_flops", "generator_parameters"]


def block_parameters(
    block: Block, in_shape: GridShape, out_shape: GridShape, kernel_size: int, kernel_size_w: int | None = None
) -> int:
    """Learned numbers of one block.

    >>> block_parameters("sequential", (4, 3, 8), (4, 3, 8), 3)
    821
    """
    (l_in, h_in, w_in), (l_out, h_out, w_out) = in_shape, out_shape
    k2, k2_w = kernel_size**2, (kernel_size_w or kernel_size) ** 2
    width_and_height = w_in * w_out * k2_w + h_in * h_out * k2
    conv_l = l_in * l_out * k2 + l_out
    if block == "sequential":
        return 2 * w_in + width_and_height + conv_l
    return 2 * h_in * w_in + 2 * width_and_height + h_out * w_out + conv_l


def block_flops(
    block: Block, in_shape: GridShape, out_shape: GridShape, kernel_size: int, kernel_size_w: int | None = None
) -> int:
    """Operations of the convolutions of one block for one grid, two per multiply-add, padding included.

    >>> block_flops("sequential", (4, 3, 8), (4, 3, 8), 1)
    2880
    """
    (l_in, h_in, w_in), (l_out, h_out, w_out) = in_shape, out_shape
    k2, k2_w = kernel_size**2, (kernel_size_w or kernel_size) ** 2
    width_first = l_in * h_in * w_in * w_out * k2_w + l_in * w_out * h_in * h_out * k2
    height_first = l_in * w_in * h_in * h_out * k2 + l_in * h_out * w_in * w_out * k2_w
    conv_l = h_out * w_out * l_in * l_out * k2
    return 2 * (width_first + conv_l + (height_first if block == "dual" else 0))


def generator_parameters(config: GeneratorConfig) -> int:
    """Learned numbers of the network that `config` describes."""
    (L, H), C, W = config.grid, config.hidden_dim, config.output_dim
    total = (config.condition_dim + 1) * C + 2 * C + (C + 1) * C
    if config.pooling == "attention":
        total += C + 1
    if config.position_embedding:
        total += (L + H) * C
    if config.expander == "basis":
        total += (C + 1) * config.num_basis + config.num_basis * L * H * W
        total += (W + 1) * C if C != W else 0
    blocks = config.num_hyperconv_blocks
    shape = config.hidden_shape
    total += blocks * block_parameters(config.block, shape, shape, config.kernel_size, config.kernel_size_w)
    if config.film:
        total += blocks * 2 * C * (C + 1)
    return total + 2 * C + (C + 1) * W + 1


def generator_flops(config: GeneratorConfig, num_prompts: int) -> int:
    """Operations of one forward pass for one adapter; see GeneratorConfig.flops."""
    (L, H), C, W = config.grid, config.hidden_dim, config.output_dim
    tokens = L * H
    multiply_adds = num_prompts * config.condition_dim * C + C * C
    if config.pooling == "attention":
        multiply_adds += num_prompts * C
    if config.expander == "basis":
        multiply_adds += C * config.num_basis + config.num_basis * tokens * W
        multiply_adds += tokens * W * C if C != W else 0
    if config.film:
        multiply_adds += config.num_hyperconv_blocks * 2 * C * C
    multiply_adds += tokens * C * W
    shape = config.hidden_shape
    per_block = block_flops(config.block, shape, shape, config.kernel_size, config.kernel_size_w)
    return 2 * multiply_adds + config.num_hyperconv_blocks * per_block
