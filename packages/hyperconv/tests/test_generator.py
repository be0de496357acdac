"""The generator network: its shapes, its start, its pooling, and what its config says about it."""

import json

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvError, HyperConvGenerator
from torch.utils.flop_counter import FlopCounterMode

SMALL = {"condition_dim": 12, "hidden_dim": 16, "grid": (5, 4), "output_dim": 16, "num_basis": 3}

VARIANTS = [
    {},
    {"output_dim": 10},
    {"block": "dual"},
    {"expander": "broadcast"},
    {"pooling": "attention"},
    {"centering": "none", "film": False, "position_embedding": False},
    {"num_hyperconv_blocks": 0},
    {"kernel_size_w": 3, "activation_checkpointing": True},
]


def build(**options) -> HyperConvGenerator:
    torch.manual_seed(0)
    generator = HyperConvGenerator(GeneratorConfig(**{**SMALL, **options}))
    # The start is nearly zero by design; without it gone nothing below could tell a right answer from a wrong one.
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator.eval()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_config_counts_what_the_network_has_and_does(options):
    generator = build(**options)
    assert generator.config.num_parameters() == sum(p.numel() for p in generator.parameters())
    with FlopCounterMode(display=False) as counter:
        generator(torch.randn(1, 6, 12))
    assert generator.config.flops(num_prompts=6) == counter.get_total_flops()


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


def test_token_states_count_as_their_mean():
    generator, states_BPTD = build(), torch.randn(2, 3, 6, 12)
    torch.testing.assert_close(generator(states_BPTD), generator(states_BPTD.mean(2)))
    mask_BPT = torch.ones(2, 3, 6, dtype=torch.bool)
    mask_BPT[0, 1, 2:] = False
    mask_BPT[1, 2] = False
    expected_PD = torch.stack([states_BPTD[0, 0].mean(0), states_BPTD[0, 1, :2].mean(0), states_BPTD[0, 2].mean(0)])
    tokens_BNW = generator(states_BPTD, mask_BPT)
    torch.testing.assert_close(tokens_BNW[:1], generator(expected_PD[None]))
    torch.testing.assert_close(tokens_BNW[1:], generator(states_BPTD[1:, :2].mean(2)))
    mask_BP = mask_BPT.any(-1)
    torch.testing.assert_close(generator(states_BPTD, mask_BP)[1:], tokens_BNW[1:])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_of_token_states_and_the_order_of_prompts_do_not_matter(pooling, training):
    states_BPTD, mask_BPT = torch.randn(2, 4, 6, 12), torch.rand(2, 4, 6) < 0.6
    mask_BPT[..., 0] = True
    mask_BPT[1, 3] = False
    expected = build(pooling=pooling).train(training)(states_BPTD, mask_BPT)
    for padding in (0.0, 1e30):
        padded = torch.where(mask_BPT[..., None], states_BPTD, padding)
        torch.testing.assert_close(build(pooling=pooling).train(training)(padded, mask_BPT), expected)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = build(pooling=pooling).train(training)(states_BPTD[:, order], mask_BPT[:, order])
    torch.testing.assert_close(shuffled, expected)
    longer = torch.nn.functional.pad(states_BPTD, (0, 0, 0, 3)), torch.nn.functional.pad(mask_BPT, (0, 3))
    torch.testing.assert_close(build(pooling=pooling).train(training)(*longer), expected)
    # And what counts does count: one token state more changes the row it is in, alone while nothing is in training.
    more = mask_BPT.clone()
    more[0, 0] = ~more[0, 0]
    more[0, 0, 0] = True
    other = build(pooling=pooling).train(training)(states_BPTD, more)
    assert not torch.allclose(other[0], expected[0], atol=1e-4)
    assert training or torch.allclose(other[1], expected[1])


def test_the_start_is_near_the_mean_adapter_and_within_reach_of_every_part():
    torch.manual_seed(0)
    generator = HyperConvGenerator(GeneratorConfig(**SMALL))
    target_BNW = torch.randn(2, 20, 16)
    condition_BPD = torch.randn(2, 3, 12)
    assert generator(condition_BPD).abs().mean() < 0.2
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2, weight_decay=0)
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (generator(condition_BPD) - target_BNW).square().mean().backward()
        optimizer.step()
    still = [name for name, p in generator.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_the_config_is_json_and_refuses_unknown_keys():
    config = GeneratorConfig(grid=(24, 8), num_basis=4)
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert GeneratorConfig().max_seq_len == 512
    with pytest.raises(HyperConvError, match="hiden_dim"):
        GeneratorConfig.from_dict({"hiden_dim": 3})
