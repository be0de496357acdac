"""The canonical form: one pair of factors for every pair with the same product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, canonical_form

DIMS = {"q": (20, 20), "k": (20, 6), "up": (9, 40)}


def rebased(adapter: LoraAdapter) -> LoraAdapter:
    """Another adapter with the same B @ A: every module's factors in a random basis, in float64."""
    tensors = {}
    for module in adapter.modules:
        a, b = adapter.factors(module)
        basis = torch.randn(len(a), len(a), dtype=torch.float64) + 2 * torch.eye(len(a), dtype=torch.float64)
        stem = f"base_model.model.{module}.lora_"
        tensors[f"{stem}A.weight"] = torch.linalg.solve(basis, a.double())
        tensors[f"{stem}B.weight"] = b.double() @ basis
    return LoraAdapter(config=adapter.config, tensors=tensors)


def test_the_product_stays_to_float32_round_off(make_adapter: Any) -> None:
    adapter = make_adapter(dims=DIMS)
    form = canonical_form(adapter)
    for module in adapter.modules:
        torch.testing.assert_close(form.delta_weight(module), adapter.delta_weight(module), rtol=1e-5, atol=1e-5)
    assert {tensor.dtype for tensor in form.tensors.values()} == {torch.float32}


def test_every_basis_gives_the_same_factors(make_adapter: Any) -> None:
    adapter = make_adapter(dims=DIMS, dtype=torch.float64)
    form = canonical_form(adapter)
    for _ in range(5):
        other = rebased(adapter)
        assert not torch.allclose(next(iter(other.tensors.values())), next(iter(adapter.tensors.values())))
        for name, tensor in canonical_form(other).tensors.items():
            torch.testing.assert_close(tensor, form.tensors[name], rtol=1e-8, atol=1e-8)


def test_factors_are_balanced_ordered_and_of_fixed_sign(make_adapter: Any) -> None:
    form = canonical_form(make_adapter(dims=DIMS, dtype=torch.float64))
    for module in form.modules:
        a, b = form.factors(module)
        singular = torch.linalg.svdvals(b @ a)[: len(a)]
        torch.testing.assert_close(a @ a.T, torch.diag(singular))
        torch.testing.assert_close(b.T @ b, torch.diag(singular))
        assert (b.gather(0, b.abs().argmax(0, keepdim=True)) > 0).all()


def test_rank_above_the_sizes_and_zero_factors(make_adapter: Any) -> None:
    wide = make_adapter(dims={"q": (3, 2)}, r=8)
    zero = make_adapter()
    for name, tensor in zero.tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    for adapter in (wide, zero):
        form = canonical_form(adapter)
        for module in adapter.modules:
            torch.testing.assert_close(form.delta_weight(module), adapter.delta_weight(module), atol=1e-5, rtol=1e-5)


def test_a_layout_can_ask_for_it(make_adapter: Any) -> None:
    adapter = make_adapter()
    plain = TokenLayout.from_adapter(adapter, token_dim=8)
    layout = TokenLayout.from_adapter(adapter, token_dim=8, canonical="svd")
    assert layout.fingerprint != plain.fingerprint
    assert TokenLayout.from_json(layout.to_json()).canonical == "svd"
    assert torch.equal(layout.encode(adapter), plain.encode(canonical_form(adapter)))
    with pytest.raises(LoraTokenizerError, match="canonical"):
        TokenLayout.from_adapter(adapter, canonical="qr")
