"""The samples that a generator is trained on through a language model: tokenized and numbered, and drawn task by task.

Validation has samples of its own, which no training prompt shows and no step answers.

Legend: B tasks of a batch, P prompts per condition, n samples of a task, E examples shown to a teacher.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from loragen_infer.samples import Example, TokenizedExample
from transformers import PreTrainedTokenizerBase

from loragen_train.configs.objectives import LmConfig
from loragen_train.prompts.table import TaskPrompts
from loragen_train.training.visits import Visit, Visits, draw_prompts
from loragen_train.zoo.items import tokenize_samples

__all__ = ["NONE", "SampleTable", "TaskBatch", "TaskVisits"]

NONE = -1
"""The number of a sample that is not there."""


class SampleTable:
    """All samples under one numbering.

    Args:
        prompts: The samples of every task, those of training and those of validation.
        tokenizer: The language model's.
        config: Which samples are too long.

    Raises:
        LoragenTrainError: A sample is too long, or its response is.
    """

    def __init__(self, prompts: TaskPrompts, tokenizer: PreTrainedTokenizerBase, config: LmConfig) -> None:
        self.items: list[TokenizedExample] = []
        """The samples by number, as token ids."""
        self.examples: list[Example] = []
        """The samples by number, cut off as their token ids are."""
        self._tokenizer, self._config = tokenizer, config
        self.train = self._append(prompts.train_samples)
        """The numbers of each task's training samples; tasks without any are left out."""
        self.val = self._append({task: samples for task, samples in prompts.val_samples.items() if task in self.train})
        """The numbers of the same tasks' validation samples."""

    def _append(self, samples: Mapping[str, Mapping[str, Example]]) -> dict[str, range]:
        numbers = {}
        for task, of_task in samples.items():
            items = tokenize_samples(
                of_task,
                self._tokenizer,
                max_length=self._config.max_length,
                too_long=self._config.too_long,
                source=task,
                section="training.lm.",
            )
            if items:
                numbers[task] = range(len(self.items), len(self.items) + len(items))
                self.items += [item for _, item in items.values()]
                self.examples += [example for example, _ in items.values()]
        return numbers


class TaskBatch(NamedTuple):
    """What one step through the language model sees."""

    prompts: torch.Tensor
    """``[B, P]``, numbers of prompts in the table of all prompts, int64."""
    mask: torch.Tensor
    """``[B, P]``, bool, true where a prompt counts."""
    regression_tasks: torch.Tensor
    """``[B]``, numbers among the tasks with adapters, which the start was fitted on, -1 for others, int64."""
    folds: torch.Tensor
    """``[B]``, numbers of the folds of the joint adapter that the tasks are of, -1 for none, int64."""
    samples: torch.Tensor
    """``[B, n]``, numbers of samples to answer; :data:`NONE` where a task has fewer."""
    shown: torch.Tensor
    """``[B, n, E]``, numbers of the training samples that a teacher is shown with each; :data:`NONE` likewise."""
    counts: torch.Tensor
    """``[B]``, float32: 1, and 0 where a batch is filled up with a task that the epoch has seen already."""

    @property
    def num_samples(self) -> int:
        """Samples to answer."""
        return int((self.samples != NONE).sum())


@dataclass(frozen=True)
class TaskVisits(Visits):
    """Prompts and samples of a task, drawn apart from one another: a prompt may be that of a sample to answer."""

    tasks: Sequence[str]
    """The tasks to visit."""
    regression_tasks: Sequence[int]
    """Their numbers among the tasks with adapters, which the start was fitted on, -1 for others."""
    folds: Sequence[int]
    """The numbers of the folds of the joint adapter that they are of, -1 for none."""
    prompts: Mapping[str, range]
    """The numbers of each task's prompts."""
    samples: Mapping[str, range]
    """The numbers of the samples to answer."""
    shown: Mapping[str, range]
    """The numbers of the samples that a teacher may be shown."""
    num_prompts: int
    """Prompts per condition."""
    num_samples: int
    """Samples per task."""
    num_shown: int
    """Samples that a teacher is shown."""
    seed: str
    """Seed of what is drawn; another one for validation than for training."""
    is_random_count: bool = False
    """Whether a random number of the prompts counts."""

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, visit: Visit) -> tuple[torch.Tensor, ...]:
        task = self.tasks[visit.member]
        draw = random.Random(f"{self.seed}/{visit.epoch}/{visit.number}")
        prompts_P, mask_P = draw_prompts(
            self.prompts[task], self.num_prompts, draw, is_random_count=self.is_random_count
        )
        samples = _draw(self.samples[task], self.num_samples, draw)
        shown = [_draw(self.shown[task], self.num_shown, draw, but=sample) for sample in samples]
        shown_nE = torch.tensor(shown, dtype=torch.long).view(self.num_samples, self.num_shown)
        counts = torch.tensor(float(visit.number < len(self)))
        regression_task = torch.tensor(self.regression_tasks[visit.member])
        fold = torch.tensor(self.folds[visit.member])
        return prompts_P, mask_P, regression_task, fold, torch.tensor(samples), shown_nE, counts

    def collate(self, drawn: list[tuple[torch.Tensor, ...]]) -> TaskBatch:
        """Return a batch of tasks."""
        return TaskBatch(*map(torch.stack, zip(*drawn, strict=True)))


def _draw(known: range, number: int, draw: random.Random, *, but: int = NONE) -> list[int]:
    """Draw that many different numbers, filled up with :data:`NONE` where there are not as many."""
    others = [sample for sample in known if sample != but]
    chosen = draw.sample(others, k=min(number, len(others)))
    return chosen + [NONE] * (number - len(chosen))
