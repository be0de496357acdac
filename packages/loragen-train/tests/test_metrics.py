"""Cosines of weight changes against B @ A written out, whatever the layout."""

import pytest
import torch
from lora_tokenizer import TokenLayout
from loragen_train.training.metrics import DeltaComparison


@pytest.mark.parametrize("transpose_b", [False, True])
def test_cosines_are_those_of_the_whole_matrices(make, transpose_b):
    first, second = make.adapter(0), make.adapter(1)
    layout = TokenLayout.from_adapter(first, token_dim=24, transpose_b=transpose_b)
    deltas = DeltaComparison(layout)
    tokens_BNW = torch.stack([layout.encode(first), layout.encode(second)])
    cosines = deltas.cosines(tokens_BNW, tokens_BNW.flip(0))
    assert set(deltas.modules) == set(first.modules)
    for index, module in enumerate(deltas.modules):
        one, two = (b_or @ a_ri for a_ri, b_or in (first.factors(module), second.factors(module)))
        expected = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        torch.testing.assert_close(cosines[:, index], expected.expand(2), atol=1e-5, rtol=1e-4)
        for factor, stored in zip(deltas.factors(tokens_BNW[0], module), first.factors(module), strict=True):
            assert torch.equal(factor, stored)
