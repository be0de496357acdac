"""Which of the tasks that the generator was trained on are most like the prompts that it is given.

Legend: K training tasks, P prompts, D width of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loragen_infer.bundle import GeneratorBundle, TrainingTasks
from loragen_infer.encoder.base import ConditionEncoder
from loragen_infer.evaluation.task_means import TaskMeans, read_task_means
from loragen_infer.samples import prompt_hash
from loragen_infer.words import counted

__all__ = ["NearTasks", "TaskMap"]

_NUM_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class NearTasks:
    """The training tasks that are nearest to some prompts."""

    rows: tuple[tuple[str, float], ...]
    """Name and similarity, the nearest first."""
    note: str
    """What else is to be known of them; may be empty."""


class TaskMap:
    """What is known of a generator's training tasks: their names, and the means of their prompts where these are.

    Args:
        bundle: The generator.
        file: The file that it was read from.

    Raises:
        LoragenInferError: The task means beside the bundle are damaged.
    """

    def __init__(self, bundle: GeneratorBundle, file: Path) -> None:
        self._tasks: TrainingTasks | None = bundle.training_tasks
        self._means: TaskMeans | None = read_task_means(file)

    @property
    def num_tasks(self) -> int | None:
        """Number of training tasks; None where nobody knows."""
        if self._tasks is not None:
            return len(self._tasks.names)
        return len(self._means.names) if self._means is not None else None

    def nearest(self, prompts: Sequence[str], encoder: ConditionEncoder) -> NearTasks:
        """Return the tasks whose mean prompt embedding has the least angle to the mean of these ``prompts``.

        ``encoder`` is that of the generator.
        """
        if self._means is None:
            names = self._tasks.names if self._tasks is not None else ()
            listed = f" It was trained on {', '.join(names)}." if names else ""
            return NearTasks(rows=(), note=f"No task means lie beside the model, so nothing is compared.{listed}")
        mean_D = encoder.encode(prompts).mean(dim=0)
        similarity_K = torch.cosine_similarity(mean_D, self._means.condition_means, dim=-1)
        best = similarity_K.argsort(descending=True)[:_NUM_SHOWN].tolist()
        rows = tuple((self._means.names[place], similarity_K[place].item()) for place in best)
        return NearTasks(rows=rows, note=self._seen(prompts))

    def _seen(self, prompts: Sequence[str]) -> str:
        """A sentence on the prompts that training showed too."""
        if self._tasks is None:
            return ""
        seen = frozenset().union(*self._tasks.prompt_hashes.values())
        number = sum(prompt_hash(prompt) in seen for prompt in prompts)
        return f"{counted(number, 'prompt')} of these the generator saw in training." if number else ""
