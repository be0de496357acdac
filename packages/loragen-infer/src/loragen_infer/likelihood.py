"""How likely a causal language model holds the responses of tokenized examples: what is trained on, and what is judged.

Legend: B samples, S sequence length, R response tokens of all samples together, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from loragen_infer.samples import TokenizedExample

__all__ = ["last_logits", "pad_left", "read_prefix", "response_nll"]


def pad_left(
    sequences: Sequence[Sequence[int]], *, padding: int, device: "torch.device | str", num_before: int = 0
) -> dict[str, Tensor]:
    """Return a model's inputs for ``sequences``, which end together, after ``num_before`` tokens that it has read."""
    rows = [torch.tensor(ids) for ids in sequences]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    # Without these a padded row would count its positions from the padding.
    position_ids = num_before + (mask.cumsum(dim=1) - 1).clamp(min=0)
    attention_mask = torch.cat([mask.new_ones(len(sequences), num_before), mask], dim=1)
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def last_logits(model: Any, inputs: Mapping[str, Any], number: int) -> Tensor:
    """Return the logits ``[B, number, V]`` of the last positions of ``inputs``."""
    use_cache = "past_key_values" in inputs
    logits: Tensor = model(**inputs, logits_to_keep=_last(number, inputs["input_ids"]), use_cache=use_cache).logits
    return logits


def _last(number: int, input_ids_BS: Tensor) -> Tensor:
    """The last positions, as indices: by their number the hidden states would be sliced, and a product of a slice with
    frozen weights copies the weights for every sample (torch folds the batch of contiguous tensors only)."""
    length = input_ids_BS.shape[1]
    return torch.arange(length - number, length, device=input_ids_BS.device)


def read_prefix(model: Any, prefix: Sequence[int], *, num_rows: int = 1) -> Any:
    """Return a model's keys and values of ``prefix``, ``num_rows`` times, to go on from in :func:`response_nll`.

    Gradients pass through them. None where there is no prefix, or where the model cannot go on from what it keeps.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not prefix:
        return None
    rows_BP = torch.tensor([list(prefix)] * num_rows, device=model.device)
    output = model(rows_BP, logits_to_keep=_last(1, rows_BP), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    # A cache of another kind forgets (sliding windows) or holds a state that padding would change.
    is_plain = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if is_plain else None


def response_nll(
    model: Any, items: Sequence[TokenizedExample], *, padding: int, cache: Any = None, num_read: int = 0
) -> Tensor:
    """Return the negative log-likelihood of each item's response, summed over its tokens.

    Args:
        model: A causal language model.
        items: The samples of one batch.
        padding: Token id that shorter sequences are filled up with; any will do.
        cache: The model's keys and values of the first ``num_read`` tokens, which all items begin with; appended to.
        num_read: Fewer than any item's prompt has.

    Returns:
        ``[B]``, float32, in nats; gradients pass through it.
    """
    inputs: dict[str, Any] = dict(
        pad_left(
            [item.input_ids[num_read:] for item in items], padding=padding, device=model.device, num_before=num_read
        )
    )
    if cache is not None:
        inputs["past_key_values"] = cache
    lengths = [len(item.response_ids) for item in items]
    # Sequences end together, so the longest response's length of logits is all that is needed of a big vocabulary.
    num_logits = 1 + max(lengths)
    logits_BSV = last_logits(model, inputs, num_logits)
    # The logits at one position predict the next token.
    places = [(row, num_logits - 1 - length + step) for row, length in enumerate(lengths) for step in range(length)]
    rows_R, steps_R = torch.tensor(places, device=logits_BSV.device).T
    answers_R = torch.tensor([token for item in items for token in item.response_ids])
    nll_R = cross_entropy(logits_BSV[rows_R, steps_R].float(), answers_R.to(logits_BSV.device), reduction="none")
    return nll_R.new_zeros(len(items)).index_add(0, rows_R, nll_R)
