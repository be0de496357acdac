"""Teachers to distil: the language model with a task's own adapter, or with solved samples of the task in its context.

Both are asked within the step that learns from them, so what they answer is a function of the step's number.

Legend: B tasks, N tokens, W values per token, R response tokens, V vocabulary, k most likely tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from loragen_infer.adapters import AdapterStack
from loragen_infer.samples import Example, TokenizedExample, tokenize_example
from torch import Tensor

from loragen_train.configs.objectives import DistillConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.training.samples import NONE, SampleTable, TaskBatch
from loragen_train.training.through_lm import AdapterTokens
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.tokens import Zoo

__all__ = ["ExamplesTeacher", "OwnTeacher", "Teacher", "TeacherLoss", "TopTokens"]


class TopTokens(NamedTuple):
    """What a teacher holds most likely at every token of one response."""

    tokens: Tensor
    """``[R, k]``, token ids, int64."""
    probabilities: Tensor
    """``[R, k]``, float32, 1 in sum over the k."""


class Teacher(Protocol):
    """Answers the samples of a batch."""

    def __call__(self, batch: TaskBatch) -> dict[int, TopTokens]:
        """Return what it holds likely, by number of the sample."""


class OwnTeacher:
    """The language model with the last checkpoint of each task's own adapter.

    Args:
        frozen: The language model.
        adapters: Makes adapters of tokens.
        zoo: The checkpoints; each task that is visited has one.
        table: The samples.
        config: How much of what is likely is learned.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        adapters: AdapterTokens,
        zoo: Zoo,
        table: SampleTable,
        config: DistillConfig,
    ) -> None:
        self._frozen, self._adapters, self._zoo, self._table, self._config = frozen, adapters, zoo, table, config
        last = {task: index for index, task in enumerate(zoo.tasks)}
        self._checkpoints = [last[task] for task in zoo.names]

    def __call__(self, batch: TaskBatch) -> dict[int, TopTokens]:
        checkpoints = [self._checkpoints[task] for task in batch.regression_tasks.tolist()]
        tokens_BNW = torch.stack([self._zoo.tokens[checkpoint].float() for checkpoint in checkpoints])
        samples = [[number for number in of_task if number != NONE] for of_task in batch.samples.tolist()]
        items = [[self._table.items[number] for number in of_task] for of_task in samples]
        adapters = self._adapters.stack(tokens_BNW.to(batch.samples.device))
        answers = _ask(self._frozen, adapters, items, self._config)
        return dict(zip((number for of_task in samples for number in of_task), answers, strict=True))


class ExamplesTeacher:
    """The language model without an adapter, which sees solved samples of the task before each one.

    Args:
        frozen: The language model.
        table: The samples.
        config: How many samples it sees, and how much of what is likely is learned.

    Raises:
        LoragenTrainError: So many samples may be longer than the language model takes.
    """

    def __init__(self, frozen: FrozenModel, table: SampleTable, config: DistillConfig) -> None:
        self._frozen, self._table, self._config = frozen, table, config
        limit = getattr(frozen.model.config, "max_position_embeddings", None)
        for task, numbers in table.train.items():
            lengths = sorted((len(table.items[number].input_ids) for number in numbers), reverse=True)
            longest = sum(lengths[: config.num_examples + 1])
            if limit is not None and longest > limit:
                raise LoragenTrainError(
                    f"{config.num_examples} solved samples of {task!r} before another may have {longest} tokens, but "
                    f"the base model takes {limit}; lower training.distill.num_examples or training.lm.max_length."
                )

    def __call__(self, batch: TaskBatch) -> dict[int, TopTokens]:
        pairs = zip(batch.samples.flatten().tolist(), batch.shown.flatten(0, 1).tolist(), strict=True)
        asked = {number: [other for other in shown if other != NONE] for number, shown in pairs if number != NONE}
        items = [self._with_examples(number, shown) for number, shown in asked.items()]
        return dict(zip(asked, _ask(self._frozen, None, [items], self._config), strict=True))

    def _with_examples(self, number: int, shown: Sequence[int]) -> TokenizedExample:
        """The sample after solved ones, with the very tokens of the response that the student is asked for."""
        examples = self._table.examples
        shots: list[Example] = [examples[other] for other in shown]
        whole = tokenize_example(self._frozen.tokenizer, examples[number], shots=shots)
        prompt_ids = whole.input_ids[: whole.num_prompt_tokens]
        return TokenizedExample(
            input_ids=[*prompt_ids, *self._table.items[number].response_ids], num_prompt_tokens=len(prompt_ids)
        )


class TeacherLoss:
    """How far the likely tokens of a teacher are from what a student predicts: KL divergence, in nats.

    The student's probabilities are over the whole vocabulary, so what it holds likely besides costs it too. Scaled by
    the square of the temperature, as in G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015.

    Args:
        taught: What the teacher says, by number of the sample.
        temperature: What logits are divided by.
    """

    def __init__(self, taught: dict[int, TopTokens], temperature: float) -> None:
        self._taught, self._temperature = taught, temperature

    def __call__(self, logits_RV: Tensor, samples: Sequence[int]) -> Tensor:
        tokens_Rk, probabilities_Rk = (
            torch.cat(parts) for parts in zip(*(self._taught[sample] for sample in samples), strict=True)
        )
        scaled_RV = logits_RV / self._temperature
        student_Rk = scaled_RV.gather(1, tokens_Rk) - scaled_RV.logsumexp(dim=1, keepdim=True)
        entropy_R = torch.special.entr(probabilities_Rk).sum(dim=1)
        divergence_R: Tensor = -(probabilities_Rk * student_Rk).sum(dim=1) - entropy_R
        return self._temperature**2 * divergence_R


@torch.no_grad()
def _ask(
    frozen: FrozenModel,
    adapters: AdapterStack | None,
    items: Sequence[Sequence[TokenizedExample]],
    config: DistillConfig,
) -> list[TopTokens]:
    """What the model holds likely at the response of each item: of all items of the first adapter, and so on."""
    answers: list[list[TopTokens | None]] = [[None] * len(of_adapter) for of_adapter in items]
    for part in frozen.passes(items):
        chosen = [[items[index][row] for row in rows] for index, rows in zip(*part, strict=True)]
        used = None if adapters is None else adapters.select(part.adapters)
        with frozen.response_logits(used, chosen) as asked:
            logits_RV = asked.logits_RV / config.temperature
            top = logits_RV.topk(min(config.top_k, logits_RV.shape[1]), dim=1)
        sizes = [len(item.response_ids) for of_adapter in chosen for item in of_adapter]
        parts = zip(*(torch.split(part, sizes) for part in (top.indices, top.values.softmax(dim=1))), strict=True)
        for index, rows in zip(*part, strict=True):
            for row in rows:
                answers[index][row] = TopTokens(*next(parts))
    return [answer for of_adapter in answers for answer in of_adapter if answer is not None]
