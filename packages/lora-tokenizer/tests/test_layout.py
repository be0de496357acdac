"""Layouts: lossless over everything an adapter can be, deterministic, and clear about what does not fit."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapter_strategies import DTYPES, adapters
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_tokenizer import (
    AdapterConfig,
    LoraAdapter,
    LoraTokenizerError,
    TokenLayout,
    read_adapter,
    same_bits,
    write_adapter,
)

QWEN = {
    "self_attn.q_proj": (896, 896),
    "self_attn.k_proj": (896, 128),
    "self_attn.v_proj": (896, 128),
    "self_attn.o_proj": (896, 896),
    "mlp.gate_proj": (896, 4864),
    "mlp.up_proj": (896, 4864),
    "mlp.down_proj": (4864, 896),
}
LLAMA = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 14336),
    "mlp.up_proj": (4096, 14336),
    "mlp.down_proj": (14336, 4096),
}


@settings(max_examples=300, deadline=None)
@given(adapters(), st.integers(1, 20), st.booleans(), st.randoms(use_true_random=False))
def test_nothing_is_lost_and_file_order_does_not_matter(
    adapter: LoraAdapter, token_dim: int, transpose_b: bool, rng: random.Random
) -> None:
    options: dict[str, Any] = {"token_dim": token_dim, "max_tokens": "auto", "transpose_b": transpose_b}
    layout = TokenLayout.from_adapter(adapter, **options)
    again = TokenLayout.from_json(layout.to_json())
    assert again == layout
    tokens = layout.encode(adapter)
    assert tokens.shape == (layout.num_tokens, token_dim)
    assert same_bits(again.decode(tokens), adapter)
    assert again.decode(tokens).config == adapter.config

    mask = layout.mask()
    assert int(mask.sum()) == adapter.num_parameters == layout.num_values
    assert not tokens[~mask].any()
    noisy = torch.where(mask, tokens, torch.ones_like(tokens))
    assert same_bits(layout.decode(noisy), adapter), "padding is ignored"
    batch = layout.tensors(torch.stack([torch.zeros_like(tokens), noisy]))
    assert list(batch) == [slot.name for slot in layout.slots]
    for name, tensor in adapter.tensors.items():
        assert torch.equal(batch[name][1].to(tensor.dtype), tensor)
        assert batch[name].dtype == tokens.dtype
        assert not batch[name][0].any()

    names = list(adapter.tensors)
    rng.shuffle(names)
    shuffled = LoraAdapter(config=adapter.config, tensors={name: adapter.tensors[name] for name in names})
    assert TokenLayout.from_adapter(shuffled, **options).fingerprint == layout.fingerprint


@settings(max_examples=60, deadline=None)
@given(adapters(), st.integers(1, 20), st.booleans())
def test_nothing_is_lost_through_tokens_and_files(
    tmp_path_factory: pytest.TempPathFactory, adapter: LoraAdapter, token_dim: int, transpose_b: bool
) -> None:
    options: dict[str, Any] = {"token_dim": token_dim, "max_tokens": "auto", "transpose_b": transpose_b}
    layout = TokenLayout.from_adapter(adapter, **options)
    folder = tmp_path_factory.mktemp("adapter")
    reread = read_adapter(write_adapter(layout.decode(layout.encode(adapter)), folder))
    assert same_bits(reread, adapter)
    assert reread.config == adapter.config
    assert [reread.scaling(module) for module in reread.modules] == [adapter.scaling(m) for m in adapter.modules]
    assert TokenLayout.from_adapter(reread, **options) == layout


def test_the_property_tests_draw_every_kind_of_adapter() -> None:
    seen: set[str] = set()

    @settings(max_examples=300, deadline=None, database=None)
    @given(adapters())
    def look(adapter: LoraAdapter) -> None:
        config = adapter.config
        ranks = {config.rank(module) for module in adapter.modules}
        alphas = {config.alpha(module) for module in adapter.modules}
        stacks = {module.partition(".")[0] for module in adapter.modules}
        kinds = {
            "ranks": len(ranks) > 1,
            "alphas": len(alphas) > 1,
            "layers": config.layers_to_transform is not None and config.layers_pattern is not None,
            "rslora": config.use_rslora,
            "dora": config.use_dora,
            "bias": config.lora_bias,
            "dtypes": len({tensor.dtype for tensor in adapter.tensors.values()}) == len(DTYPES),
            "one dtype": len({tensor.dtype for tensor in adapter.tensors.values()}) == 1,
            "encoder-decoder": {"encoder", "decoder"} <= stacks,
            "embedding": any("embedding" in name for name in adapter.tensors),
        }
        seen.update(name for name, is_there in kinds.items() if is_there)

    look()
    assert len(seen) == 10, seen


def meaning(adapter: LoraAdapter) -> Any:
    """What tokens of it would mean: tensors, and what the settings do to each module."""
    effects = [(adapter.config.rank(m), adapter.config.alpha(m), adapter.scaling(m)) for m in adapter.modules]
    shapes = [(name, tensor.shape, tensor.dtype) for name, tensor in adapter.tensors.items()]
    return effects, adapter.config.fan_in_fan_out, shapes


@st.composite
def respelt(draw: st.DrawFn) -> tuple[LoraAdapter, LoraAdapter]:
    """An adapter and the same tensors under permuted patterns and settings that are spelt in another way."""
    adapter = draw(adapters())
    config = adapter.config
    alphas = draw(st.permutations(config.alpha_pattern))
    changed = replace(
        config,
        alpha_pattern=tuple((name, draw(st.sampled_from([alpha, float(alpha)]))) for name, alpha in alphas),
        lora_alpha=draw(st.sampled_from([config.lora_alpha, float(config.lora_alpha)])),
        target_modules=draw(st.sampled_from([config.target_modules, tuple(m[-1:] for m in config.target_modules)])),
    )
    return adapter, replace(adapter, config=changed)


@settings(max_examples=200, deadline=None)
@given(respelt())
def test_configs_that_act_differently_are_never_taken_for_equal(pair: tuple[LoraAdapter, LoraAdapter]) -> None:
    left, right = pair
    layouts = [TokenLayout.from_adapter(adapter, token_dim=7, max_tokens="auto") for adapter in pair]
    acts_alike = meaning(left) == meaning(right)
    assert (layouts[0].fingerprint == layouts[1].fingerprint) == acts_alike
    assert len({left.config, right.config}) == (1 if left.config == right.config else 2)
    assert acts_alike or left.config != right.config
    if acts_alike:
        decoded = layouts[0].decode(layouts[0].encode(right))
        assert [decoded.scaling(module) for module in decoded.modules] == [right.scaling(m) for m in right.modules]
    else:
        with pytest.raises(LoraTokenizerError, match="alpha"):
            layouts[0].encode(right)


def test_the_order_of_patterns_counts_as_the_first_match_does(make_adapter: Any) -> None:
    patterns = {"q_proj": 64, r".*self_attn\.q_proj": 1}
    strong = make_adapter(alpha_pattern=patterns)
    weak = make_adapter(alpha_pattern=dict(reversed(patterns.items())))
    module = strong.modules[0]
    assert (strong.scaling(module), weak.scaling(module)) == (16, 0.25)
    assert strong.config != weak.config
    layout = TokenLayout.from_adapter(weak, token_dim=8)
    with pytest.raises(LoraTokenizerError, match="alpha 64 where the layout has 1"):
        layout.encode(strong)
    again = TokenLayout.from_json(layout.to_json())
    assert again.config == weak.config
    assert again.config.alpha_pattern == ((r".*self_attn\.q_proj", 1), ("q_proj", 64))


def test_settings_that_are_spelt_differently_have_one_fingerprint(make_adapter: Any) -> None:
    spellings = [
        {"lora_alpha": 8},
        {"lora_alpha": 8.0},
        {"target_modules": ("self_attn.q_proj", "self_attn.v_proj")},
        {"lora_alpha": 1, "alpha_pattern": {"q_proj": 8, "v_proj": 8.0}},
        {"alpha_pattern": [["k_proj", 3]]},
        {"base_model_name_or_path": "a/b"},
        {"task_type": "CAUSAL_LM"},
    ]
    layouts = [TokenLayout.from_adapter(make_adapter(**spelling), token_dim=8) for spelling in spellings]
    assert len({layout.fingerprint for layout in layouts}) == 1


@settings(max_examples=100, deadline=None)
@given(adapters(), adapters())
def test_different_adapters_have_different_fingerprints(left: LoraAdapter, right: LoraAdapter) -> None:
    layouts = [TokenLayout.from_adapter(adapter, token_dim=7, max_tokens="auto") for adapter in (left, right)]
    assert (layouts[0].fingerprint == layouts[1].fingerprint) == (meaning(left) == meaning(right))


@pytest.mark.parametrize(
    ("num_layers", "dims", "r", "num_values", "grid", "padding"),
    [
        (24, QWEN, 8, 4_399_104, (24, 483, 384), 0.0118),
        (32, LLAMA, 16, 41_943_040, (32, 3419, 384), 0.0017),
        (30, {"q_proj": (576, 576), "v_proj": (576, 192)}, 4, 230_400, (30, 20, 384), 0.0),
    ],
    ids=["Qwen2.5-0.5B", "Llama-3.1-8B", "SmolLM2-135M"],
)
def test_padding_of_the_usual_bases(
    num_layers: int, dims: Any, r: int, num_values: int, grid: Any, padding: float, make_adapter: Any
) -> None:
    with torch.device("meta"):
        adapter = make_adapter(num_layers, dims, r)
    layout = TokenLayout.from_adapter(adapter, max_tokens="auto")
    assert adapter.num_parameters == num_values
    assert layout.grid == grid
    assert layout.padding == pytest.approx(padding, abs=1e-4)


def test_rows_are_layers_and_the_rest_follows(make_adapter: Any) -> None:
    tensors = dict(make_adapter(num_layers=11, dims={"q": (8, 8)}).tensors)
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.randn(4, 8)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.randn(40, 4)
    adapter = LoraAdapter(config=AdapterConfig(r=4, lora_alpha=8, target_modules=("q", "lm_head")), tensors=tensors)
    layout = TokenLayout.from_adapter(adapter, token_dim=8)
    assert layout.grid == (14, 8, 8)
    tokens_LHW = layout.encode(adapter).view(layout.grid)
    for layer in range(11):
        a = adapter.tensors[f"base_model.model.model.layers.{layer}.q.lora_A.weight"]
        assert torch.equal(tokens_LHW[layer, :4].flatten(), a.flatten())
    assert torch.equal(
        tokens_LHW[11, :4].flatten(), adapter.tensors["base_model.model.lm_head.lora_A.weight"].flatten()
    )


def test_names_that_count_alike_keep_their_order() -> None:
    names = [f"base_model.model.layers.{layer}.q.lora_{part}.weight" for layer in ("1", "01") for part in "AB"]
    config = AdapterConfig(r=2, lora_alpha=4, target_modules=("q",))
    layouts = [
        TokenLayout.from_adapter(
            LoraAdapter(config=config, tensors={name: torch.ones(2, 2) for name in order}), token_dim=2
        )
        for order in (names, names[::-1])
    ]
    assert layouts[0] == layouts[1]
    assert layouts[0].fingerprint == layouts[1].fingerprint


def test_over_the_budget_says_what_would_fit(make_adapter: Any) -> None:
    adapter = make_adapter(30, {"q_proj": (576, 576), "v_proj": (576, 192)}, 4)
    with pytest.raises(
        LoraTokenizerError, match=r"needs 600 .* max_tokens=600 or 'auto', or leave out the modules v_proj"
    ):
        TokenLayout.from_adapter(adapter)
    assert TokenLayout.from_adapter(adapter, max_tokens=600).num_tokens == 600
    for wrong in (0, -1, "all", True, 1.5):
        with pytest.raises(LoraTokenizerError, match="max_tokens"):
            TokenLayout.from_adapter(adapter, max_tokens=wrong)  # type: ignore[arg-type]  # what a user may pass
    with pytest.raises(LoraTokenizerError, match="token_dim"):
        TokenLayout.from_adapter(adapter, token_dim=0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_layers": 1}, r"lacks tensor 'base_model\.model\.model\.layers\.1\."),
        ({"num_layers": 3}, r"layers\.2\..* is not in the layout"),
        ({"r": 2}, "shape"),
        ({"lora_alpha": 16}, "alpha 16 where the layout has 8"),
        ({"alpha_pattern": {"v_proj": 1}}, "v_proj' has the alpha"),
        ({"use_rslora": True}, "scaling"),
        ({"dtype": torch.float64}, "would round"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_another_adapter_is_refused_by_its_first_difference(other: Any, message: str, make_adapter: Any) -> None:
    layout = TokenLayout.from_adapter(make_adapter(), token_dim=8)
    with pytest.raises(LoraTokenizerError, match=message):
        layout.encode(make_adapter(**other))


def test_what_need_not_be_the_same(make_adapter: Callable[..., LoraAdapter], caplog: pytest.LogCaptureFixture) -> None:
    layout = TokenLayout.from_adapter(make_adapter(), token_dim=8)
    half = make_adapter(dtype=torch.float16)
    assert layout.encode(half).dtype == torch.float16
    assert same_bits(half.to("float32"), half.to(torch.float32))
    for wrong in ("int8", torch.int8, "x"):
        with pytest.raises(LoraTokenizerError, match="is not a dtype for LoRA tensors"):
            half.to(wrong)
    assert same_bits(layout.decode(layout.encode(half)).to(torch.float16), half)
    with caplog.at_level(logging.WARNING):
        layout.encode(make_adapter(base_model_name_or_path="other/base-of-this-test"))
        layout.encode(make_adapter(target_modules=("self_attn.q_proj", "self_attn.v_proj")))
    assert [record.getMessage().count("other/base-of-this-test") for record in caplog.records] == [1]


def test_tokens_are_their_own(make_adapter: Any) -> None:
    adapter = make_adapter()
    layout = TokenLayout.from_adapter(adapter, token_dim=8)
    tokens = layout.encode(adapter)
    decoded = layout.decode(tokens)
    tokens.zero_()
    assert same_bits(decoded, adapter)
    for wrong in (tokens[:-1], tokens.view(-1), tokens.long()):
        with pytest.raises(LoraTokenizerError, match="do not fit the layout"):
            layout.decode(wrong)


def test_gradients_flow_through_decode(make_adapter: Any) -> None:
    layout = TokenLayout.from_adapter(make_adapter(), token_dim=7)
    tokens = torch.randn(layout.num_tokens, 7, requires_grad=True)
    sum(tensor.sum() for tensor in layout.decode(tokens).tensors.values()).backward()
    assert torch.equal(tokens.grad, layout.mask().float())


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("grid"),
        lambda c: c.update(format=99),
        lambda c: c.update(grid=[1, 1, 8]),
        lambda c: c.update(tensors=[]),
        lambda c: c["tensors"][0].__setitem__(1, [10**30, 4]),
        lambda c: c["tensors"][0].__setitem__(1, [4, -1]),
        lambda c: c["tensors"][0].__setitem__(2, "int8"),
        lambda c: c["tensors"].pop(),
        lambda c: c.update(token_dim=10**9),
        lambda c: c["config"].update(r="x"),
        lambda c: c["config"].update(surprise=1),
        lambda c: c["config"].update(lora_alpha=10**400),
        lambda c: c["config"].update(rank_pattern={"(": 3}),
    ],
)
def test_a_damaged_layout_is_an_error(change: Any, make_adapter: Any) -> None:
    content = json.loads(TokenLayout.from_adapter(make_adapter(), token_dim=8).to_json())
    change(content)
    with pytest.raises(LoraTokenizerError):
        TokenLayout.from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"format": 1}'])
def test_text_that_is_no_layout_is_an_error(text: str) -> None:
    with pytest.raises(LoraTokenizerError):
        TokenLayout.from_json(text)
