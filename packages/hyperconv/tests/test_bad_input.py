"""Every argument that does not fit: the error names it, what it is, and what was expected."""

import pytest
import torch
from hyperconv import (
    DualHyperConvBlock,
    GeneratorConfig,
    HyperConv,
    HyperConvDecoder,
    HyperConvError,
    HyperConvGenerator,
    SequentialHyperConvBlock,
    num_basis_for,
)

CONFIG = {"condition_dim": 6, "hidden_dim": 8, "grid": (4, 3), "output_dim": 8, "num_basis": 2}


def nan_condition():
    condition_BPD = torch.zeros(2, 3, 6)
    condition_BPD[1, 2, 0] = torch.nan
    return condition_BPD


CONDITIONS = [
    (torch.zeros(3, 6), None, r"condition has shape \[3, 6\], expected \[B, P, D=6\] with"),
    (torch.zeros(2, 3, 5), None, r"condition has shape \[2, 3, 5\], expected \[B, P, D=6\]"),
    (torch.zeros(2, 0, 6), None, r"condition has shape \[2, 0, 6\], .* with B and P of at least 1"),
    (torch.zeros(0, 3, 6), None, r"condition has shape \[0, 3, 6\], .* with B and P of at least 1"),
    (torch.zeros(2, 3, 6, dtype=torch.long), None, "condition has dtype torch.int64, expected a floating-point"),
    (nan_condition(), None, r"condition of shape \[2, 3, 6\] holds 1 NaN or infinite values"),
    (torch.full((1, 1, 6), torch.inf), None, r"condition of shape \[1, 1, 6\] holds 6 NaN or infinite values"),
    (torch.zeros(2, 3, 6), torch.ones(2, 4, dtype=torch.bool), r"mask has shape \[2, 4\], expected \[2, 3\]"),
    (torch.zeros(2, 3, 6), torch.ones(2, 3, 6, dtype=torch.bool), r"mask has shape \[2, 3, 6\], expected \[2, 3\] for"),
    (torch.zeros(2, 3, 4, 6), None, r"condition has shape \[2, 3, 4, 6\], expected \[B, P, D=6\]"),
    (torch.zeros(2, 3, 6), torch.ones(2, 3), "mask has dtype torch.float32, expected torch.bool"),
    (
        torch.zeros(2, 1, 6),
        torch.tensor([[True], [False]]),
        r"mask of shape \[2, 1\] is all false in batch row\(s\) \[1\]",
    ),
]


@pytest.mark.parametrize(("condition", "mask", "message"), CONDITIONS)
def test_a_condition_or_mask_that_does_not_fit(condition, mask, message):
    generator = HyperConvGenerator(GeneratorConfig(**CONFIG))
    with pytest.raises(HyperConvError, match=message):
        generator(condition, mask)


INPUTS = [
    (torch.zeros(4, 3, 8), r"x has shape \[4, 3, 8\], expected \[B, L=4, H=3, W=8\]"),
    (torch.zeros(2, 4, 3, 9), r"x has shape \[2, 4, 3, 9\], expected \[B, L=4, H=3, W=8\]"),
    (torch.zeros(2, 5, 3, 8), r"x has shape \[2, 5, 3, 8\], expected \[B, L=4, H=3, W=8\]"),
    (torch.zeros(2, 4, 3, 8, dtype=torch.int32), "x has dtype torch.int32, expected a floating-point"),
]


@pytest.mark.parametrize("kind", [SequentialHyperConvBlock, DualHyperConvBlock])
@pytest.mark.parametrize(("x", "message"), INPUTS)
def test_a_grid_that_does_not_fit_a_block(kind, x, message):
    with pytest.raises(HyperConvError, match=message):
        kind((4, 3, 8), (4, 3, 8), 3)(x)
    with pytest.raises(HyperConvError, match=message):
        HyperConvDecoder([(4, 3, 8), (4, 3, 8)], 3)(x)


MADE = [
    (lambda: HyperConv("W", 8, 8, 4), "kernel_size is 4, expected an odd integer"),
    (lambda: HyperConv("W", 8, 8, 3.0), "kernel_size is 3.0, expected an odd integer"),
    (lambda: HyperConv("T", 8, 8, 3), "axis is 'T', expected one of 'L', 'H', 'W'"),
    (lambda: HyperConv("W", 0, 8, 3), "in_size is 0, expected an integer of at least 1"),
    (lambda: HyperConv("W", 8, True, 3), "out_size is True, expected an integer of at least 1"),
    (lambda: SequentialHyperConvBlock((4, 3), (4, 3, 8), 3), r"in_shape is \(4, 3\), expected three sizes"),
    (lambda: DualHyperConvBlock((4, 3, 8), (4, 3, -1), 3), "W of out_shape is -1, expected"),
    (
        lambda: SequentialHyperConvBlock((4, 3, 8), (4, 3, 8), 5),
        "kernel_size of Conv_W is 5, longer than the axis L of",
    ),
    (
        lambda: DualHyperConvBlock((9, 9, 9), (9, 4, 9), 5),
        "kernel_size of Conv_L is 5, longer than the axis H of size 4",
    ),
    (lambda: HyperConvDecoder([(4, 3, 8)], 3), "shapes has 1 entries, expected at least two"),
    (lambda: HyperConvDecoder([(4, 3, 8)] * 2, 3, "triple"), "block is 'triple', expected 'sequential' or 'dual'"),
    (lambda: GeneratorConfig(grid=(4, 0)), "H of grid is 0, expected"),
    (lambda: GeneratorConfig(grid=(4, 3, 2)), r"grid is \(4, 3, 2\), expected two sizes"),
    (
        lambda: GeneratorConfig(grid=(4, 3), kernel_size=5),
        r"kernel_size is 5, longer than the axis L of size 4 that it slides over; expected at most 3\.$",
    ),
    (lambda: GeneratorConfig(kernel_size_w=2), "kernel_size_w is 2, expected an odd integer"),
    (lambda: GeneratorConfig(num_hyperconv_blocks=-1), "num_hyperconv_blocks is -1, expected"),
    (lambda: GeneratorConfig(pooling="max"), "pooling is 'max', expected 'mean' or 'attention'"),
    (lambda: GeneratorConfig(output_scale=float("nan")), "output_scale is nan, expected a finite number"),
    (lambda: GeneratorConfig(feature_scale=-1.0), "feature_scale is -1.0, expected a finite number greater than 0"),
    (lambda: GeneratorConfig(basis_gain=0), "basis_gain is 0, expected a finite number greater than 0"),
    (lambda: GeneratorConfig(expander="basis", num_basis=1), "num_basis is 1, expected an integer of at least 2"),
    (lambda: GeneratorConfig(num_basis=0), "num_basis is 0, expected an integer of at least 1"),
    (lambda: GeneratorConfig(expander="ridge"), "expander is 'ridge', expected 'linear' or 'basis' or 'broadcast'"),
    (lambda: num_basis_for(0, 100), "num_tasks is 0, expected"),
    (lambda: num_basis_for(3, 0), "values_per_basis is 0, expected"),
    (lambda: num_basis_for(3, 100, 0.5), "max_parameters is 0.5, expected"),
    (lambda: HyperConvGenerator(GeneratorConfig(**CONFIG)).flops(num_prompts=0), "num_prompts is 0, expected"),
]


@pytest.mark.parametrize(("make", "message"), MADE)
def test_sizes_and_names_that_do_not_fit(make, message):
    with pytest.raises(HyperConvError, match=message):
        make()


def test_a_kernel_longer_than_an_axis_of_the_input_is_refused_unless_asked_for():
    x_BLHW = torch.zeros(1, 2, 4, 8)
    message = "kernel_size of Conv_W is 3, longer than the axis L .* at most 1, or allow_oversized_kernel=True"
    with pytest.raises(HyperConvError, match=message):
        HyperConv("W", 8, 8, 3)(x_BLHW)
    assert HyperConv("W", 8, 8, 3, allow_oversized_kernel=True)(x_BLHW).shape == x_BLHW.shape


def test_embeddings_that_nothing_can_be_centred_on():
    generator = HyperConvGenerator(GeneratorConfig(**CONFIG))
    for embeddings_MD in (torch.zeros(0, 6), torch.zeros(2, 5), torch.zeros(6), torch.full((2, 6), torch.nan)):
        with pytest.raises(HyperConvError, match="embeddings"):
            generator.center_on(embeddings_MD)


def test_a_modulation_too_short_for_the_decoder():
    decoder = HyperConvDecoder([(4, 3, 8)] * 3, 3)
    with pytest.raises(HyperConvError, match="modulation has 1 entries, expected 2, as blocks"):
        decoder(torch.zeros(1, 4, 3, 8), [(torch.zeros(1, 8), torch.zeros(1, 8))])
