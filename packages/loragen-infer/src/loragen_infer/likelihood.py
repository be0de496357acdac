"""How likely a causal language model holds the responses of tokenized examples: what is trained on, and what is judged.

What several samples begin with passes through the model once: it is read first, and the samples go on from there.

Legend: B samples, S sequence length, R response tokens of all samples together, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from loragen_infer.samples import TokenizedExample

__all__ = [
    "ReadTokens",
    "ResponseLogits",
    "can_go_on",
    "last_logits",
    "pad_left",
    "read_tokens",
    "response_logits",
    "response_nll",
]

# Models to which padding between what was read and what goes on from there is a distance (ALiBi without the mask).
_COUNT_PLACES = ("mpt",)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadTokens:
    """What a model keeps of rows of tokens that it has read, to go on from; gradients pass through it."""

    cache: Any
    """Its keys and values."""
    mask_BS: Tensor
    """1 where a row has a token, 0 where it is padded."""
    num_tokens: tuple[int, ...]
    """Of each row, how many tokens were read."""

    def rows(self, places: Sequence[int]) -> "ReadTokens":
        """Return those rows, in that order; one may be there several times. These stay as they are."""
        places_B = torch.tensor(places, device=self.mask_BS.device)
        cache = copy.copy(self.cache)
        # A model puts new tensors into the layers that it is given, and leaves the tensors there as they are.
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            if layer.get_seq_length():  # of a layer without attention nothing is kept; others may be on several devices
                layer.batch_select_indices(places_B.to(layer.keys.device))
        return ReadTokens(
            cache=cache, mask_BS=self.mask_BS[places_B], num_tokens=tuple(self.num_tokens[place] for place in places)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ResponseLogits:
    """What a model predicts at the tokens of the responses of a batch, one response after another."""

    logits_RV: Tensor
    answer_R: Tensor
    """The tokens that are there."""
    row_R: Tensor
    """The samples that they belong to."""


def pad_left(
    sequences: Sequence[Sequence[int]],
    *,
    padding: int,
    device: "torch.device | str",
    after: ReadTokens | None = None,
) -> dict[str, Tensor]:
    """Return a model's inputs for ``sequences``, which end together, and each go on from a row of ``after``."""
    rows = [torch.tensor(ids) for ids in sequences]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=padding, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    # Without these a padded row would count its positions from the padding.
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    tensors = {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    if after is not None:
        tensors["attention_mask"] = torch.cat([after.mask_BS, tensors["attention_mask"]], dim=1)
        tensors["position_ids"] += torch.tensor(after.num_tokens, device=device)[:, None]
    return tensors


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


def read_tokens(
    model: Any, sequences: Sequence[Sequence[int]], *, padding: int, after: ReadTokens | None = None
) -> ReadTokens | None:
    """Let a model read ``sequences``, which each go on from a row of ``after``, and return what it keeps of both.

    None where there is nothing to read, or where the model cannot go on from what it keeps.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not any(sequences) or model.config.model_type in _COUNT_PLACES:
        return None
    inputs: dict[str, Any] = dict(pad_left(sequences, padding=padding, device=model.device, after=after))
    mask_BS = inputs["attention_mask"]
    if after is not None:
        inputs["past_key_values"] = after.cache
    elif bool(mask_BS.all()):  # which not every model takes mask and positions for
        inputs = {"input_ids": inputs["input_ids"]}
    output = model(**inputs, logits_to_keep=_last(1, inputs["input_ids"]), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    # A cache of another kind forgets (sliding windows) or holds a state that padding would change.
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    before = (0,) * len(sequences) if after is None else after.num_tokens
    num_tokens = tuple(number + len(ids) for number, ids in zip(before, sequences, strict=True))
    return ReadTokens(cache=cache, mask_BS=mask_BS, num_tokens=num_tokens)


def can_go_on(model: Any) -> bool:
    """Return whether a model can go on from what it has read (:func:`read_tokens`)."""
    with torch.no_grad():
        return read_tokens(model, [[0]], padding=0) is not None


def response_logits(
    model: Any, items: Sequence[TokenizedExample], *, padding: int, after: ReadTokens | None = None
) -> ResponseLogits:
    """Return what a model predicts where the responses of ``items`` stand.

    Args:
        model: A causal language model.
        items: The samples of one batch.
        padding: Token id that shorter sequences are filled up with; any will do.
        after: What the model has read of each sample, less than its prompt; appended to.
    """
    num_read = (0,) * len(items) if after is None else after.num_tokens
    # The last token of a response predicts nothing that is asked for.
    sequences = [item.input_ids[number:-1] for item, number in zip(items, num_read, strict=True)]
    inputs: dict[str, Any] = dict(pad_left(sequences, padding=padding, device=model.device, after=after))
    if after is not None:
        inputs["past_key_values"] = after.cache
    lengths = [len(item.response_ids) for item in items]
    # Sequences end together, so the longest response's length of logits is all that is needed of a big vocabulary.
    num_logits = max(lengths)
    logits_BSV = last_logits(model, inputs, num_logits)
    places = [(row, num_logits - length + step) for row, length in enumerate(lengths) for step in range(length)]
    row_R, step_R = torch.tensor(places, device=logits_BSV.device).T
    answers = torch.tensor([token for item in items for token in item.response_ids])
    return ResponseLogits(
        logits_RV=logits_BSV[row_R, step_R].float(), answer_R=answers.to(logits_BSV.device), row_R=row_R
    )


def response_nll(
    model: Any, items: Sequence[TokenizedExample], *, padding: int, after: ReadTokens | None = None
) -> Tensor:
    """Return the negative log-likelihood of each item's response, summed over its tokens.

    The arguments are those of :func:`response_logits`.

    Returns:
        ``[B]``, float32, in nats; gradients pass through it.
    """
    found = response_logits(model, items, padding=padding, after=after)
    nll_R = cross_entropy(found.logits_RV, found.answer_R, reduction="none")
    return nll_R.new_zeros(len(items)).index_add(0, found.row_R, nll_R)
