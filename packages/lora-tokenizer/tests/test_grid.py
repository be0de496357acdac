"""The grid that a network sees: tokens that are pieces of rank components, and batches of them as tensors."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_strategies import adapters
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_tokenizer import (
    LoraAdapter,
    LoraTokenizerError,
    TokenCache,
    TokenLayout,
    TokenStats,
    canonical_form,
    check_round_trip,
    same_bits,
    write_adapter,
)
from lora_tokenizer.__main__ import main

Q, V = (f"base_model.model.model.layers.{{}}.self_attn.{name}.lora_{{}}.weight" for name in ("q_proj", "v_proj"))
SMOLLM = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (576, 192)}
OLD_LAYOUT = """{"format": 1, "token_dim": 4, "canonical": null, "grid": [1, 6, 4], "config": {"r": 2, "lora_alpha": 4,
"target_modules": ["q_proj"], "base_model_name_or_path": null, "revision": null, "task_type": null, "use_rslora": false,
"use_dora": false, "lora_bias": false, "fan_in_fan_out": false, "rank_pattern": {}, "alpha_pattern": {},
"layers_to_transform": null, "layers_pattern": null},
"tensors": [["base_model.model.layers.0.q_proj.lora_A.weight", [2, 6], "float32"],
["base_model.model.layers.0.q_proj.lora_B.weight", [5, 2], "float32"]]}"""


def test_the_height_axis_is_ordered_by_module_factor_and_rank_component(make_adapter: Any) -> None:
    adapter = make_adapter(2, {"self_attn.q_proj": (32, 64), "self_attn.v_proj": (32, 16)})
    layout = TokenLayout.from_adapter(adapter, token_dim="auto", transpose_b=True)
    assert layout.grid == (2, 4 * (2 + 4 + 2 + 1), 16)
    tokens_LHW = layout.encode(adapter).view(layout.grid)
    for layer in range(2):
        expected: list[torch.Tensor] = []
        for name in (Q, V):
            a_ri, b_or = (adapter.tensors[name.format(layer, part)] for part in "AB")
            for factor_rx in (a_ri, b_or.T):
                expected += [piece for row in factor_rx for piece in row.split(16)]
        assert torch.equal(tokens_LHW[layer], torch.stack(expected))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([16, 24, 100]).flatmap(lambda unit: adapters(unit=unit)))
def test_with_auto_no_token_holds_pieces_of_two_rows(adapter: LoraAdapter) -> None:
    layout = TokenLayout.from_adapter(adapter, token_dim="auto", max_tokens="auto", transpose_b=True)
    assert same_bits(layout.decode(layout.encode(adapter)), adapter)
    tensors, lengths, num_rows = {}, set(), 1
    for name, tensor in adapter.tensors.items():
        rows = torch.atleast_2d(tensor.T if "_B" in name and tensor.dim() == 2 else tensor)
        numbers = torch.arange(num_rows, num_rows + len(rows), dtype=torch.float64)[:, None].expand(rows.shape)
        num_rows += len(rows)
        tensors[name] = (numbers.T if "_B" in name else numbers).reshape(tensor.shape).contiguous()
        lengths |= {rows.shape[1]} if tensor.dim() == 2 else set()
    wide = replace(
        layout,
        packing=TokenLayout.from_adapter(
            LoraAdapter(config=adapter.config, tensors=tensors), token_dim="auto", max_tokens="auto", transpose_b=True
        ).packing,
    )
    tokens, mask = wide.encode(LoraAdapter(config=adapter.config, tensors=tensors)), layout.mask()
    for token, is_real in zip(tokens, mask, strict=True):
        assert len(set(token[is_real].tolist())) <= 1
    dividing = [width for width in range(1, 1025) if all(length % width == 0 for length in lengths)]
    assert layout.token_dim == max(dividing)


@pytest.mark.parametrize(
    ("dims", "width"),
    [
        (SMOLLM, 192),
        ({"q": (896, 896), "k": (896, 128), "up": (896, 4864)}, 128),
        ({"q": (4096, 4096), "v": (4096, 1024)}, 1024),
        ({"o": (4096, 4096)}, 1024),
        ({"o": (1408, 1408)}, 704),
    ],
    ids=["SmolLM2-135M", "Qwen2.5-0.5B", "Llama-3.1-8B", "over 1024", "2^7 * 11"],
)
def test_the_width_that_auto_takes(dims: Any, width: int, make_adapter: Any) -> None:
    with torch.device("meta"):
        adapter = make_adapter(2, dims)
    layout = TokenLayout.from_adapter(adapter, token_dim="auto", max_tokens="auto", transpose_b=True)
    assert layout.token_dim == width
    assert layout.padding == 0
    assert TokenLayout.from_json(layout.to_json()) == layout


def test_rows_without_a_common_width_fall_back_and_say_so(make_adapter: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plain = TokenLayout.from_adapter(make_adapter(dims=SMOLLM), token_dim="auto")
        odd = TokenLayout.from_adapter(make_adapter(dims={"q": (577, 1031)}), token_dim="auto", transpose_b=True)
    assert (plain.token_dim, odd.token_dim) == (384, 384)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "rows of 4, 576 values share no width" in messages[0]
    assert "with transpose_b the rows of B" in messages[0]
    assert "rows of 577, 1031 values share no width" in messages[1]
    assert "with transpose_b" not in messages[1]
    for wrong in ("Auto", "", None):
        with pytest.raises(LoraTokenizerError, match="token_dim"):
            TokenLayout.from_adapter(make_adapter(), token_dim=wrong)


def test_old_layouts_keep_their_fingerprint_and_transposed_ones_have_another_format(make_adapter: Any) -> None:
    old = TokenLayout.from_json(OLD_LAYOUT)
    assert not old.transpose_b
    assert old.fingerprint == "2ab319edb555d1956a88832d601058bc"
    assert json.loads(old.to_json()) == json.loads(OLD_LAYOUT)

    adapter = make_adapter()
    layout = TokenLayout.from_adapter(adapter, token_dim=8, transpose_b=True)
    content = json.loads(layout.to_json())
    assert (content["format"], content["transpose_b"]) == (2, True)
    assert TokenLayout.from_json(layout.to_json()) == layout
    assert layout.fingerprint != TokenLayout.from_adapter(adapter, token_dim=8).fingerprint
    for change in ({"format": 1}, {"transpose_b": False}, {"transpose_b": 1}, {"transpose_b": None}):
        with pytest.raises(LoraTokenizerError, match="do not go together"):
            TokenLayout.from_json(json.dumps(content | change))


def test_what_is_turned_back_is_row_major_whatever_the_way(make_adapter: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        adapter = make_adapter(dtype=dtype)
        layout = TokenLayout.from_adapter(adapter, token_dim=7, transpose_b=True)
        column_major = {name: tensor.T.contiguous().T for name, tensor in adapter.tensors.items()}
        tokens = layout.encode(replace(adapter, tensors=column_major))
        assert torch.equal(tokens, layout.encode(adapter))
        decoded = [
            layout.decode(tokens),
            layout.decode(tokens.clone().requires_grad_()),
            layout.decode(tokens.T.clone().T),
        ]
        tokens.zero_()
        for back in decoded:
            assert same_bits(back, adapter)
            assert all(tensor.is_contiguous() for tensor in back.tensors.values())


@pytest.mark.parametrize("transpose_b", [False, True])
def test_gradients_flow_from_adapters_and_to_them(transpose_b: bool, make_adapter: Any) -> None:
    adapter = make_adapter()
    layout = TokenLayout.from_adapter(adapter, token_dim=7, transpose_b=transpose_b)
    weights = {name: torch.randn_like(tensor) for name, tensor in adapter.tensors.items()}
    as_tokens = layout.encode(replace(adapter, tensors=weights))

    tokens = layout.encode(adapter).requires_grad_()
    sum((layout.decode(tokens).tensors[name] * weight).sum() for name, weight in weights.items()).backward()
    assert torch.equal(tokens.grad, as_tokens)

    leaves = {name: tensor.clone().requires_grad_() for name, tensor in adapter.tensors.items()}
    (layout.encode(replace(adapter, tensors=leaves)) * as_tokens).sum().backward()
    assert all(torch.equal(leaves[name].grad, weight) for name, weight in weights.items())


def test_canonical_form_cache_and_statistics_of_transposed_layouts(zoo: Any, tmp_path: Path) -> None:
    paths, adapters, plain = zoo
    layout = TokenLayout.from_adapter(adapters[0], token_dim=8, transpose_b=True)
    cache = TokenCache(tmp_path / "cache")
    sets = [cache.get(paths, each) for each in (plain, layout, plain, layout)]
    assert len({tokens.file for tokens in sets}) == 2
    for tokens, each in zip(sets, (plain, layout, plain, layout), strict=True):
        assert all(same_bits(each.decode(one), adapter) for one, adapter in zip(tokens, adapters, strict=True))
    stats = TokenStats.from_tokens(sets[1])
    z = stats.normalize(sets[1][0])
    restored = layout.decode(stats.denormalize(z))
    for name, tensor in adapters[0].tensors.items():
        torch.testing.assert_close(restored.tensors[name], tensor)
    svd = TokenLayout.from_adapter(adapters[0], token_dim=8, transpose_b=True, canonical="svd")
    assert same_bits(svd.decode(svd.encode(adapters[0])), canonical_form(adapters[0]))
    shorter = {
        name: tensor[:, :2] if "B" in name.rpartition(".lora_")[2] else tensor[:2]
        for name, tensor in adapters[0].tensors.items()
    }
    with pytest.raises(LoraTokenizerError, match="has the shape"):
        layout.encode(LoraAdapter(config=replace(adapters[0].config, r=2), tensors=shorter))


def test_round_trip_of_a_checkpoint(tmp_path: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_adapter(make_adapter(dims={"self_attn.q_proj": (64, 32)}), tmp_path / "adapter")
    proof = check_round_trip(folder, token_dim="auto", transpose_b=True)
    assert proof.ok
    assert (proof.report.token_dim, proof.report.grid) == (32, (2, 12, 32))
    for command in ("inspect", "round-trip"):
        assert main([command, str(folder), "--token-dim", "auto", "--transpose-b"]) == 0
        assert "24 tokens of 32" in capsys.readouterr().out


@pytest.mark.parametrize("transpose_b", [False, True])
def test_batches_of_tokens_as_differentiable_views(transpose_b: bool, make_adapter: Any) -> None:
    layout = TokenLayout.from_adapter(make_adapter(), token_dim=7, transpose_b=transpose_b)
    tokens_BNW = torch.randn(3, layout.num_tokens, 7, requires_grad=True)
    tensors = layout.tensors(tokens_BNW)
    assert {t.untyped_storage().data_ptr() for t in tensors.values()} == {tokens_BNW.untyped_storage().data_ptr()}
    sum((index + 1) * tensor[1].sum() for index, tensor in enumerate(tensors.values())).backward()
    alone = torch.zeros(layout.num_tokens, 7)
    for index, tensor in enumerate(layout.tensors(alone[None]).values()):
        tensor.fill_(index + 1)
    assert torch.equal(tokens_BNW.grad, torch.stack([torch.zeros_like(alone), alone, torch.zeros_like(alone)]))
    assert torch.autograd.gradcheck(
        lambda tokens: tuple(layout.tensors(tokens).values()), tokens_BNW.detach()[:1].double().requires_grad_()
    )
    for wrong in (tokens_BNW[0], tokens_BNW[:, 1:], tokens_BNW.long()):
        with pytest.raises(LoraTokenizerError, match="do not fit the layout"):
            layout.tensors(wrong)
