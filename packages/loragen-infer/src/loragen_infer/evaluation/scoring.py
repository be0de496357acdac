"""Scores a language model on examples: likelihood of the answer, exact match of greedy decoding, choice by likelihood.

One forward pass per answer gives all. Greedy decoding repeats the answer exactly if and only if, after every correct
prefix, the most likely token is the answer's next one; so the logits that the likelihood needs also tell what decoding
would do. A choice is the answer with the least negative log-likelihood per token, its end included; answers that tie
with the right one count as a wrong choice, so that a model that prefers nothing scores nothing.

What all prompts begin with (a system prompt, solved examples), and then what some of them do (one wording of the task,
one question with several choices), passes through the model once. Many adapters are scored together, each on all
examples: then samples of the same length fill a pass, and nothing is padded. Whoever changes what is counted raises
``SCORING_VERSION``.

Legend: B batch, R response tokens, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from loragen_infer.adapters import AdapterStack, BatchedLora
from loragen_infer.adapters.reading import KEPT_PER_TOKEN
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.examples import TestExample
from loragen_infer.likelihood import ReadTokens, read_tokens, response_logits
from loragen_infer.samples import (
    Example,
    TokenizedExample,
    num_common_tokens,
    shared_beginnings,
    tokenize_example,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SCORING_VERSION", "ExampleScores", "Scorer", "mean_scores"]

SCORING_VERSION = 1
"""Stands for the way of scoring in the names of finished rows. Raise it with every change of what the same model and
token ids score beyond rounding (what counts as an answer's token, as exact, as the likeliest choice), or old rows are
taken for new ones."""

_Applied = Callable[[int], AbstractContextManager[None]]


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

    def check(self) -> None:
        """Refuse likelihoods that are not finite."""
        for value in self.answer_nll:
            if not math.isfinite(value):
                raise LoragenInferError(f"The model gives a likelihood of {value}; its weights are no good.")


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
    """Scores models on a fixed list of examples, each after the ``shots``; a model takes at most ``max_tokens``.

    At most ``tokens_per_pass`` tokens go through the model at once, unless an example has more.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        examples: Sequence[TestExample],
        *,
        tokens_per_pass: int,
        shots: Sequence[Example] = (),
        max_tokens: int | None = None,
    ) -> None:
        self._padding, self._tokens_per_pass = int(tokenizer.pad_token_id or 0), tokens_per_pass
        self._items: list[TokenizedExample] = []
        self._answers: list[range] = []
        self._has_choices = any(example.choices for example in examples)
        for example in examples:
            answers = example.answers
            self._answers.append(range(len(self._items), len(self._items) + len(answers)))
            self._items += [tokenize_example(tokenizer, answer, shots=shots) for answer in answers]
        longest = max(len(item.input_ids) for item in self._items)
        if max_tokens is not None and longest > max_tokens:
            raise LoragenInferError(
                f"An example has {longest} tokens{f' with its {len(shots)} shots' if shots else ''}, but the "
                f"language model takes {max_tokens}; {'lower num_shots' if shots else 'drop the example'}."
            )
        # The last token of a prompt, which predicts the answer, never counts.
        prompts = [item.input_ids[: item.num_prompt_tokens - 1] for item in self._items]
        self._num_common = num_common_tokens(prompts)
        groups = shared_beginnings(prompts, num_common=self._num_common)
        self._beginnings = [prompts[members[0]][self._num_common : length] for length, members in groups]
        self._group_of = {index: group for group, (_, members) in enumerate(groups) for index in members}
        widest = self._num_common + max(map(len, self._beginnings), default=0)
        kept = max(widest * len(self._beginnings), longest)
        news = [len(item.input_ids) - self._num_read(index) for index, item in enumerate(self._items)]
        self.num_together = max(1, min(KEPT_PER_TOKEN * tokens_per_pass // kept, tokens_per_pass // max(news)))
        """How many adapters at once make the best of a pass."""

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits over what is scored: token ids, and how many of them are the prompt."""
        digest = hashlib.sha256()
        for item in self._items:
            digest.update(f"{item.input_ids} {item.num_prompt_tokens}\n".encode())
        return digest.hexdigest()

    def score(self, model: Any) -> ExampleScores:
        """Return the scores of ``model``, a causal language model in eval mode, with or without an adapter."""
        return self._score(model, 1, lambda _: nullcontext())[0]

    def score_adapters(self, model: Any, batched: BatchedLora, adapters: AdapterStack) -> list[ExampleScores]:
        """Return the scores of ``model`` with each of ``adapters``, whose places in it are ``batched``'s."""
        number = adapters.num_adapters
        return self._score(model, number, lambda count: batched.applied(adapters, num_samples=[count] * number))

    @torch.inference_mode()
    def _score(self, model: Any, num_adapters: int, applied: _Applied) -> list[ExampleScores]:
        """Score each adapter that a block of ``applied``, with so many samples of each, puts on the model."""
        nll = [[0.0] * len(self._items) for _ in range(num_adapters)]
        exact = [[False] * len(self._items) for _ in range(num_adapters)]
        for samples, after in self._passes(model, num_adapters, applied):
            items = [self._items[index] for index in samples] * num_adapters
            with applied(len(samples)):
                found = response_logits(model, items, padding=self._padding, after=after)
            nll_R = cross_entropy(found.logits_RV, found.answer_R, reduction="none")
            wrong_R = (found.logits_RV.argmax(dim=-1) != found.answer_R).to(nll_R.dtype)
            nll_B, wrong_B = (
                value_R.new_zeros(len(items)).index_add(0, found.row_R, value_R).tolist()
                for value_R in (nll_R, wrong_R)
            )
            for place, index in enumerate(samples * num_adapters):
                adapter = place // len(samples)
                nll[adapter][index], exact[adapter][index] = nll_B[place], wrong_B[place] == 0
        return [self._scores_of(*values) for values in zip(nll, exact, strict=True)]

    def _passes(
        self, model: Any, num_adapters: int, applied: _Applied
    ) -> Iterator[tuple[list[int], ReadTokens | None]]:
        """Yield samples of like length, and for every adapter in turn what it has read of each of them."""
        common, read = self._items[0].input_ids[: self._num_common], None
        with applied(1) if common else nullcontext():
            common_read = read_tokens(model, [common] * num_adapters, padding=self._padding)
        can_go_on = not common or common_read is not None
        number = len(self._beginnings) if can_go_on else 0
        if number:
            after = common_read and common_read.rows([row for row in range(num_adapters) for _ in range(number)])
            with applied(number):
                read = read_tokens(model, self._beginnings * num_adapters, padding=self._padding, after=after)
        groups = {} if read is None else self._group_of
        alone = [index for index in range(len(self._items)) if index not in groups]
        for samples in self._cut(alone, num_adapters, can_go_on=common_read is not None):
            rows = [row for row in range(num_adapters) for _ in samples]
            yield samples, common_read and common_read.rows(rows)
        for samples in self._cut(list(groups), num_adapters):
            assert read is not None, "else there are no groups"  # noqa: S101
            rows = [row * number + groups[index] for row in range(num_adapters) for index in samples]
            yield samples, read.rows(rows)

    def _cut(self, indices: Sequence[int], num_adapters: int, *, can_go_on: bool = True) -> Iterator[list[int]]:
        """Yield samples, so many that for all adapters they fill a pass, the longest first."""
        sizes = {index: len(self._items[index].input_ids) for index in indices}
        news = {index: size - self._num_read(index) if can_go_on else size for index, size in sizes.items()}
        samples: list[int] = []
        most_new = most = 0
        for index in sorted(indices, key=lambda index: (-news[index], -len(self._items[index].response_ids))):
            rows, longest = (len(samples) + 1) * num_adapters, max(most, sizes[index])
            is_full = rows * most_new > self._tokens_per_pass or rows * longest > KEPT_PER_TOKEN * self._tokens_per_pass
            if samples and is_full:
                yield samples
                samples, longest = [], sizes[index]
            # The first of a pass is the one with most to read.
            most_new, most = most_new if samples else news[index], longest
            samples.append(index)
        if samples:
            yield samples

    def _num_read(self, index: int) -> int:
        """How many tokens of a sample are read before it, where the model can go on from them."""
        group = self._group_of.get(index)
        return self._num_common + (0 if group is None else len(self._beginnings[group]))

    def _scores_of(self, nll: Sequence[float], exact: Sequence[bool]) -> ExampleScores:
        lengths = [len(item.response_ids) for item in self._items]
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
