"""Scores a language model on examples: likelihood of the answer, exact match of greedy decoding, choice by likelihood.

One forward pass per answer gives all. Greedy decoding repeats the answer exactly if and only if, after every correct
prefix, the most likely token is the answer's next one; so the logits that the likelihood needs also tell what decoding
would do. A choice is the answer with the least negative log-likelihood per token, its end included; answers that tie
with the right one count as a wrong choice, so that a model that prefers nothing scores nothing.

What all prompts begin with (a system prompt, solved examples, the wording of the task) passes through the model once.

Legend: B batch, P length of the common beginning, S sequence length, V vocabulary.
"""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.examples import TestExample
from loragen_infer.likelihood import last_logits, pad_left, read_prefix
from loragen_infer.samples import Example, TokenizedExample, batches_by_length, num_common_tokens, tokenize_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ExampleScores", "Scorer", "mean_scores"]


@dataclass(frozen=True, kw_only=True)
class ExampleScores:
    """What a model achieves on each example of one task, in the order of the examples.

    The negative log-likelihood of the response is summed over its tokens, in nats; what ends the answer is one of them.
    ``exact`` is 1 where the greedy continuation is the response to the end, and ``correct`` where the response is the
    most likely of the choices, which a task may not have.
    """

    answer_nll: tuple[float, ...]
    num_tokens: tuple[int, ...]
    exact: tuple[float, ...]
    correct: tuple[float, ...] | None

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per answer token, in nats."""
        return math.fsum(self.answer_nll) / sum(self.num_tokens)


def mean_scores(parts: Sequence[ExampleScores]) -> ExampleScores:
    """Return the mean of the scores of several models on the same examples, example by example."""

    def mean(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(math.fsum(values) / len(values) for values in zip(*lists, strict=True))

    correct = [part.correct for part in parts if part.correct is not None]
    return ExampleScores(
        answer_nll=mean([part.answer_nll for part in parts]),
        num_tokens=parts[0].num_tokens,
        exact=mean([part.exact for part in parts]),
        correct=mean(correct) if correct else None,
    )


class Scorer:
    """Scores models on a fixed list of examples, each after the ``shots``; a model takes at most ``max_tokens``."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        examples: Sequence[TestExample],
        *,
        batch_size: int,
        shots: Sequence[Example] = (),
        max_tokens: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._items: list[TokenizedExample] = []
        self._answers: list[range] = []
        self._has_choices = any(example.choices for example in examples)
        for example in examples:
            answers = example.answers
            self._answers.append(range(len(self._items), len(self._items) + len(answers)))
            self._items += [tokenize_example(tokenizer, answer, shots=shots) for answer in answers]
        lengths = [len(item.input_ids) for item in self._items]
        if max_tokens is not None and max(lengths) > max_tokens:
            raise LoragenInferError(
                f"An example has {max(lengths)} tokens{f' with its {len(shots)} shots' if shots else ''}, but the "
                f"language model takes {max_tokens}; {'lower num_shots' if shots else 'drop the example'}."
            )
        self._batches = batches_by_length(lengths, batch_size)
        # The last token of a prompt, which predicts the answer, never counts.
        self._num_common = num_common_tokens(item.input_ids[: item.num_prompt_tokens][:-1] for item in self._items)

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over what is scored: token ids, and how many of them are the prompt."""
        digest = hashlib.sha256()
        for item in self._items:
            digest.update(f"{item.input_ids} {item.num_prompt_tokens}\n".encode())
        return digest.hexdigest()

    @torch.inference_mode()
    def score(self, model: Any) -> ExampleScores:
        """Return the scores of ``model``, a causal language model in eval mode, with or without an adapter."""
        nll = [0.0] * len(self._items)
        exact = [False] * len(self._items)
        common = read_prefix(model, self._items[0].input_ids[: self._num_common])
        for batch in self._batches:
            scored = self._score_batch(model, [self._items[index] for index in batch], common)
            for index, (nll[index], exact[index]) in zip(batch, scored, strict=True):
                if not math.isfinite(nll[index]):
                    raise LoragenInferError(f"The model gives a likelihood of {nll[index]}; its weights are no good.")
        lengths = [len(item.input_ids) - item.num_prompt_tokens for item in self._items]
        responses = [answers[0] for answers in self._answers]
        correct = None
        if self._has_choices:
            per_token = [total / length for total, length in zip(nll, lengths, strict=True)]
            correct = tuple(
                all(per_token[answers[0]] < per_token[other] for other in answers[1:]) for answers in self._answers
            )
        return ExampleScores(
            answer_nll=tuple(nll[index] for index in responses),
            num_tokens=tuple(lengths[index] for index in responses),
            exact=tuple(exact[index] for index in responses),
            correct=correct,
        )

    def _score_batch(self, model: Any, items: list[TokenizedExample], common: Any) -> Iterator[tuple[float, bool]]:
        """Yield each item's summed NLL over its answer tokens, and whether all of them are the most likely ones."""
        num_common = 0 if common is None else self._num_common
        inputs: dict[str, Any] = dict(
            pad_left(
                [item.input_ids[num_common:] for item in items],
                padding=int(self._tokenizer.pad_token_id or 0),
                device=model.device,
                num_before=num_common,
            )
        )
        if common is not None:
            # The model appends to the cache that it is given.
            inputs["past_key_values"] = copy.deepcopy(common)
            inputs["past_key_values"].batch_repeat_interleave(len(items))
        # Sequences end together, so the longest answer's length of logits is all that is needed of a big vocabulary.
        num_logits = 1 + max(len(item.input_ids) - item.num_prompt_tokens for item in items)
        logits_BSV = last_logits(model, inputs, num_logits).float()
        for item, logits_SV in zip(items, logits_BSV, strict=True):
            answer_S = torch.tensor(item.input_ids[item.num_prompt_tokens :], device=logits_SV.device)
            # The logits at one position predict the next token.
            predicted_SV = logits_SV[-1 - len(answer_S) : -1]
            nll = torch.nn.functional.cross_entropy(predicted_SV, answer_S, reduction="sum").item()
            yield nll, bool((predicted_SV.argmax(dim=-1) == answer_S).all())
