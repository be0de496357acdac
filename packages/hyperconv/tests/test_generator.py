"""The generator network: its shapes, its start, its pooling, and what its config says about it."""

import json

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvError, HyperConvGenerator

SMALL = {"condition_dim": 12, "hidden_dim": 16, "grid": (5, 4), "output_dim": 16, "num_basis": 3}

VARIANTS = [
    {},
    {"num_hyperconv_blocks": 0},
    {"output_dim": 10, "num_basis": 1},
    {"block": "dual", "film": False},
    {"pooling": "attention", "activation_checkpointing": True},
    {"expander": "basis"},
    {"expander": "basis", "output_dim": 10},
    {"expander": "basis", "block": "dual"},
    {"expander": "broadcast"},
    {"expander": "basis", "pooling": "attention"},
    {"expander": "basis", "centering": "none", "film": False, "position_embedding": False},
    {"expander": "basis", "num_hyperconv_blocks": 0},
    {"expander": "basis", "kernel_size_w": 3, "activation_checkpointing": True},
]


def build(**options) -> HyperConvGenerator:
    torch.manual_seed(0)
    generator = HyperConvGenerator(GeneratorConfig(**{**SMALL, **options}))
    # The start is nearly zero by design; without it gone nothing below could tell a right answer from a wrong one.
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator.eval()


# Worked out by hand from the formulas of the layers.
COUNTS = [
    (5_896, 204_360),
    (1_317, 1_992),
    (5_066, 205_352),
    (5_432, 298_312),
    (5_913, 204_552),
    (5_590, 204_384),
    (5_304, 206_224),
    (7_270, 304_224),
    (4_579, 202_368),
    (5_607, 204_576),
    (3_814, 201_312),
    (1_972, 15_072),
    (11_734, 450_144),
]


@pytest.mark.parametrize(("options", "counts"), list(zip(VARIANTS, COUNTS, strict=True)), ids=str)
def test_parameters_and_operations_are_counted_also_without_weights(options, counts):
    for generator in (build(**options), HyperConvGenerator(GeneratorConfig(**{**SMALL, **options}), device="meta")):
        assert (generator.num_parameters(), generator.flops(num_prompts=6)) == counts


def test_what_4_million_values_cost():
    for expander, num_parameters in (("linear", 83_964_605), ("basis", 79_513_292)):
        large = HyperConvGenerator(GeneratorConfig(grid=(24, 483), expander=expander), device="meta")
        assert (large.num_parameters(), large.flops()) == (num_parameters, 135_689_816_064)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_order_of_the_prompts_does_not_matter_and_the_prompts_do(options):
    generator, condition_BPD = build(**options), torch.randn(2, 7, 12)
    tokens_BNW = generator(condition_BPD)
    assert tokens_BNW.shape == (2, 20, options.get("output_dim", 16))
    torch.testing.assert_close(generator(condition_BPD[:, torch.randperm(7)]), tokens_BNW)
    assert not torch.allclose(tokens_BNW[0], tokens_BNW[1], atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_masked_prompt_is_as_good_as_absent(pooling):
    generator, condition_BPD = build(pooling=pooling), torch.randn(2, 7, 12)
    mask_BP = torch.ones(2, 7, dtype=torch.bool)
    mask_BP[1, 4:] = False
    condition_BPD[1, 4:] = 1e30
    tokens_BNW = generator(condition_BPD, mask_BP)
    torch.testing.assert_close(tokens_BNW[1:], generator(condition_BPD[1:, :4]))
    torch.testing.assert_close(tokens_BNW[:1], generator(condition_BPD[:1]))


def test_conditions_are_centred_on_the_prompts_given_and_no_forward_pass_changes_that():
    seen_MD, condition_BPD = torch.randn(40, 12) * 5 + 2, torch.randn(2, 3, 12)
    generator, uncentred = build(expander="basis"), build(expander="basis", centering="none")
    uncentred.load_state_dict({name: x for name, x in generator.state_dict().items() if "centering" not in name})
    torch.testing.assert_close(generator(condition_BPD), uncentred(condition_BPD))  # until center_on is called
    generator.center_on(seen_MD)
    uncentred.center_on(seen_MD)
    mean_D = seen_MD.mean(0)
    expected = uncentred((condition_BPD - mean_D) / (seen_MD - mean_D).square().mean().sqrt())
    torch.testing.assert_close(generator(condition_BPD), expected)
    generator.train()(condition_BPD + 100)
    torch.testing.assert_close(generator(condition_BPD), expected)


def test_prompts_that_are_all_the_same_leave_the_spread_alone():
    generator = build()
    generator.center_on(torch.full((3, 12), 0.1))
    assert generator.condition_encoder.centering.square == 1
    assert generator(torch.zeros(1, 2, 12)).abs().max() < 1e3


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_start_is_near_the_mean_adapter_and_within_reach_of_every_part(options):
    torch.manual_seed(0)
    generator = HyperConvGenerator(GeneratorConfig(**{**SMALL, **options}))
    target_BNW = torch.randn(2, 20, generator.config.output_dim)
    condition_BPD = torch.randn(2, 3, 12)
    generator.center_on(condition_BPD.flatten(0, 1))
    assert generator(condition_BPD).abs().mean() < 0.2
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2, weight_decay=0)
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (generator(condition_BPD) - target_BNW).square().mean().backward()
        optimizer.step()
    still = [name for name, p in generator.named_parameters() if torch.equal(p, before[name])]
    # A softmax is the same whatever is added to all scores, so that rounding alone moves this one, or nothing does.
    assert set(still) <= {"condition_encoder.score.bias"}


def test_the_config_is_json_and_refuses_unknown_keys():
    config = GeneratorConfig(grid=(24, 8), num_basis=4)
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert GeneratorConfig().max_seq_len == 512
    assert GeneratorConfig.from_dict({"centering": "running"}) == GeneratorConfig()  # as version 0.1 wrote it
    with pytest.raises(HyperConvError, match="hiden_dim"):
        GeneratorConfig.from_dict({"hiden_dim": 3})
