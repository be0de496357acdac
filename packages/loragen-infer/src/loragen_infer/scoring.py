"""Scores a language model on examples: negative log-likelihood per answer token, and exact match of greedy decoding.

Legend: B batch, S sequence length, V vocabulary.
"""

from collections.abc import Sequence
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
    """Share of examples whose greedy continuation, stripped of white space, is the response; 0 to 1."""
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
        self._examples = examples
        self._items = [tokenize_example(tokenizer, example) for example in examples]
        lengths = [len(item.input_ids) for item in self._items]
        self._batches = batches_by_length(lengths, batch_size)

    @torch.inference_mode()
    def score(self, model: Any) -> Score:
        """Return the score of ``model``, a causal language model in eval mode, with or without an adapter."""
        total_nll = 0.0
        num_matches = 0
        for batch in self._batches:
            total_nll += self._batch_nll(model, [self._items[index] for index in batch])
            num_matches += self._batch_matches(model, batch)
        num_tokens = sum(len(item.input_ids) - item.num_prompt_tokens for item in self._items)
        return Score(
            nll=total_nll / num_tokens,
            exact_match=num_matches / len(self._items),
            num_examples=len(self._items),
        )

    def _batch_nll(self, model: Any, items: list[TokenizedExample]) -> float:
        """Sum over all answer tokens of the batch."""
        inputs = self._pad_left([item.input_ids for item in items], model.device)
        # Sequences end together, so the last answers' length of logits is all that is needed of a big vocabulary.
        num_logits = 1 + max(len(item.input_ids) - item.num_prompt_tokens for item in items)
        logits_BSV = model(**inputs, logits_to_keep=num_logits).logits.float()
        total = 0.0
        for item, logits_SV in zip(items, logits_BSV, strict=True):
            answer = torch.tensor(item.input_ids[item.num_prompt_tokens :], device=logits_SV.device)
            # The logits at one position predict the next token.
            predicted_SV = logits_SV[-1 - len(answer) : -1]
            total += torch.nn.functional.cross_entropy(predicted_SV, answer, reduction="sum").item()
        return total

    def _batch_matches(self, model: Any, batch: list[int]) -> int:
        prompts = [self._items[index].input_ids[: self._items[index].num_prompt_tokens] for index in batch]
        longest = max(len(self._items[index].input_ids) - self._items[index].num_prompt_tokens for index in batch)
        inputs = self._pad_left(prompts, model.device)
        output = model.generate(
            **inputs,
            max_new_tokens=longest,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        width = inputs["input_ids"].shape[1]
        texts = self._tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        return sum(
            text.strip() == self._examples[index].response.strip() for text, index in zip(texts, batch, strict=True)
        )

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
