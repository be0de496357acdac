"""Scores a language model on examples: negative log-likelihood per answer token, and exact match of greedy decoding.

One forward pass gives both. Greedy decoding repeats the answer exactly if and only if, after every correct prefix, the
most likely token is the answer's next one; so the logits that the likelihood needs also tell what decoding would do.

Legend: B batch, S sequence length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loragen_infer.examples import Example, TokenizedExample, batches_by_length, tokenize_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Score", "Scorer"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a model achieves on the examples of one task."""

    nll: float
    """Mean negative log-likelihood per answer token, in nats; the end-of-sequence token counts as one."""
    exact_match: float
    """Share of examples whose greedy continuation is the response, token by token to the end; 0 to 1."""
    num_examples: int
    """Number of examples scored."""


class Scorer:
    """Scores models on a fixed list of examples.

    Args:
        tokenizer: The tokenizer of the base model, with a padding token.
        examples: Prompts with responses.
        batch_size: Examples per forward pass.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], *, batch_size: int) -> None:
        self._tokenizer = tokenizer
        self._items = [tokenize_example(tokenizer, example) for example in examples]
        lengths = [len(item.input_ids) for item in self._items]
        self._batches = batches_by_length(lengths, batch_size)

    @torch.inference_mode()
    def score(self, model: Any) -> Score:
        """Return the score of ``model``, a causal language model in eval mode, with or without an adapter."""
        total_nll = 0.0
        num_matches = 0
        for batch in self._batches:
            for nll, matches in self._score_batch(model, [self._items[index] for index in batch]):
                total_nll += nll
                num_matches += matches
        num_tokens = sum(len(item.input_ids) - item.num_prompt_tokens for item in self._items)
        return Score(
            nll=total_nll / num_tokens,
            exact_match=num_matches / len(self._items),
            num_examples=len(self._items),
        )

    def _score_batch(self, model: Any, items: list[TokenizedExample]) -> Iterator[tuple[float, bool]]:
        """Yield each item's summed NLL over its answer tokens, and whether all of them are the most likely ones."""
        inputs = self._pad_left([item.input_ids for item in items], model.device)
        # Sequences end together, so the longest answer's length of logits is all that is needed of a big vocabulary.
        num_logits = 1 + max(len(item.input_ids) - item.num_prompt_tokens for item in items)
        logits_BSV = model(**inputs, logits_to_keep=num_logits, use_cache=False).logits.float()
        for item, logits_SV in zip(items, logits_BSV, strict=True):
            answer_S = torch.tensor(item.input_ids[item.num_prompt_tokens :], device=logits_SV.device)
            # The logits at one position predict the next token.
            predicted_SV = logits_SV[-1 - len(answer_S) : -1]
            nll = torch.nn.functional.cross_entropy(predicted_SV, answer_S, reduction="sum").item()
            yield nll, bool((predicted_SV.argmax(dim=-1) == answer_S).all())

    def _pad_left(self, sequences: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
        width = max(map(len, sequences))
        input_ids = torch.full((len(sequences), width), int(self._tokenizer.pad_token_id or 0))
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            input_ids[row, width - len(ids) :] = torch.tensor(ids)
            attention_mask[row, width - len(ids) :] = 1
        # Without these a padded row would count its positions from the padding.
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return {name: tensor.to(device) for name, tensor in tensors.items()}
