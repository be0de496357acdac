"""The grid that a network sees: batches of tokens as tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_tokenizer import LoraTokenizerError, TokenLayout


def test_batches_of_tokens_as_differentiable_views(make_adapter: Any) -> None:
    layout = TokenLayout.from_adapter(make_adapter(), token_dim=7)
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
