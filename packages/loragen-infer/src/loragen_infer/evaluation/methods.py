"""Which rows a task has, and what each row puts on the language model: an adapter, solved examples, or nothing.

Rows are made one at a time, so that memory holds one adapter and not all of them.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.baselines import Ridge, nearest_task
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.examples import TaskInputs
from loragen_infer.evaluation.store import Cost
from loragen_infer.evaluation.training_tasks import Training, read_own_adapter
from loragen_infer.generator import LoraGenerator
from loragen_infer.samples import Example

__all__ = ["Row", "RowMaker"]

logger = logging.getLogger(__name__)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is scored in one row of one task."""

    adapter: LoraAdapter | None
    """What is put on the language model."""
    shots: Sequence[Example] = ()
    """What is shown before every prompt."""
    cost: Cost | None = None
    """What making the adapter takes."""
    note: str = ""
    """What else there is to know, in a few words."""


class RowMaker:
    """Makes the rows of every task.

    Args:
        config: The evaluation.
        generator: The generator that is evaluated.
        training: What is known of its training tasks.
        tasks: What each task is evaluated with.
    """

    def __init__(
        self, config: EvaluateConfig, generator: LoraGenerator, training: Training, tasks: Sequence[TaskInputs]
    ) -> None:
        self._config, self._generator, self._training, self._tasks = config, generator, training, tasks
        self._prompts = {inputs.task.name: inputs.prompts for inputs in tasks}
        self._makers: dict[str, Callable[[TaskInputs], tuple[LoraAdapter, str]]] = {
            "mean": lambda _: (self._generator.mean_adapter(), ""),
            "nearest": self._nearest,
            "ridge": self._ridge,
            "generated": lambda inputs: (self._generator.generate(inputs.prompts), ""),
            "junk": self._junk,
        }
        self._ridge_regression = None if training.means is None else Ridge(training.means)
        self._is_warm = False

    def names(self, inputs: TaskInputs) -> list[str]:
        """Return the rows that a task has, in the order in which they are shown."""
        missing = {row for row, reason in self._lacks(inputs).items() if reason}
        return [row for row in self._config.wanted_rows if row not in missing]

    def check(self) -> None:
        """Say once of every row that is asked for, and that no task has, what it lacks.

        Raises:
            LoragenInferError: A task has none of the rows, or is held out and there is no training task but it.
        """
        for inputs in self._tasks:
            names = self.names(inputs)
            if not names:
                raise LoragenInferError(
                    f"The task {inputs.task.name!r} has none of the rows asked for "
                    f"({', '.join(self._config.wanted_rows)}); give it what they need, or ask for base too."
                )
            if {"nearest", "ridge"} & set(names):
                self._training.others(inputs.task)
        lacks = [self._lacks(inputs) for inputs in self._tasks]
        for row in self._config.wanted_rows:
            # By default a row that needs something is there where it is given; training tasks should always be.
            if self._config.rows is None and row not in ("nearest", "ridge"):
                continue
            if all(of_task.get(row) for of_task in lacks):
                logger.warning("The row %r is left out: %s.", row, lacks[0][row])

    def make(self, inputs: TaskInputs, row: str, wrong_task: str | None = None) -> Row:
        """Return what the row called ``row`` of a task puts on the language model.

        Args:
            inputs: The task.
            row: One of :meth:`names`.
            wrong_task: For ``wrong prompts``, one of :meth:`wrong_tasks`.

        Raises:
            LoragenInferError: An adapter cannot be read.
        """
        if row == "base":
            return Row(adapter=None)
        if row == "few-shot":
            count = len(inputs.shots)
            return Row(adapter=None, shots=inputs.shots, note=f"{count} {'example' if count == 1 else 'examples'}")
        if row == "joint":
            return self._trained("joint_adapter", str(self._config.joint_adapter))
        if row == "own":
            return self._trained(f"the task {inputs.task.name!r}", str(inputs.task.adapter))
        if not self._is_warm:
            # The first call of an encoder takes longer than all later ones.
            self._generator.generate(inputs.prompts)
            self._is_warm = True
        started, cpu_started = time.perf_counter(), time.process_time()
        if wrong_task is None:
            adapter, note = self._makers[row](inputs)
        else:
            adapter = self._generator.generate(self._prompts[wrong_task])
            others = self.wrong_tasks(inputs)
            note = f"prompts of {others[0]}" if len(others) == 1 else f"mean over the prompts of {len(others)} tasks"
        cost = Cost(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)
        return Row(adapter=adapter, cost=cost, note=note)

    def wrong_tasks(self, inputs: TaskInputs) -> list[str]:
        """Return the tasks whose prompts are the wrong ones: all others, or as many as are wanted, evenly spread.

        Every task is as often a wrong one for another.
        """
        names = list(self._prompts)
        place, count = names.index(inputs.task.name), min(self._config.num_wrong_tasks, len(names) - 1)
        steps = [1 + index * (len(names) - 1) // count for index in range(count)]
        return [names[(place + step) % len(names)] for step in steps]

    def _lacks(self, inputs: TaskInputs) -> dict[str, str]:
        """By row, what it lacks to be there for a task, or nothing."""
        means = (
            "there are no means of training tasks beside the bundle; copy them there, or name training_tasks"
            if self._training.means is None
            else ""
        )
        return {
            "few-shot": "" if inputs.shots else "no task has shots",
            "nearest": means,
            "ridge": means,
            "joint": "" if self._config.joint_adapter is not None else "there is no joint_adapter",
            "own": "" if inputs.task.adapter is not None else "no task has an adapter",
        }

    def _nearest(self, inputs: TaskInputs) -> tuple[LoraAdapter, str]:
        means = self._training.means
        assert means is not None, "names() leaves this row out"  # noqa: S101
        index = nearest_task(means, self._condition(inputs), self._training.others(inputs.task))
        return self._generator.bundle.layout.decode(means.token_means[index]), f"adapter of {means.names[index]}"

    def _ridge(self, inputs: TaskInputs) -> tuple[LoraAdapter, str]:
        assert self._ridge_regression is not None, "names() leaves this row out"  # noqa: S101
        tokens_NW = self._ridge_regression.tokens(
            self._condition(inputs), among=self._training.others(inputs.task), num_prompts=len(inputs.prompts)
        )
        return self._generator.bundle.layout.decode(tokens_NW), ""

    def _junk(self, inputs: TaskInputs) -> tuple[LoraAdapter, str]:
        """As many prompts as the task has, each as long as one of them, of random letters."""
        draw = random.Random(self._config.seed)
        prompts = [
            "".join(draw.choice(_LETTERS) if place % 6 else " " for place in range(1, len(prompt) + 1))
            for prompt in inputs.prompts
        ]
        return self._generator.generate(prompts), ""

    def _condition(self, inputs: TaskInputs) -> torch.Tensor:
        return self._generator.encoder.encode(inputs.prompts).mean(dim=0)

    def _trained(self, whose: str, path: str) -> Row:
        adapter, found = read_own_adapter(whose, Path(path))
        return Row(adapter=adapter, cost=_training_cost(found))


def _training_cost(adapter: Path) -> Cost | None:
    """What ``training.json``, beside the adapter or its folder of checkpoints, says of its training."""
    for path in (adapter / "training.json", adapter.parent / "training.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cpu_seconds = content.get("cpu_seconds")
            return Cost(
                seconds=float(content["seconds"]), cpu_seconds=None if cpu_seconds is None else float(cpu_seconds)
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s does not say how long training took (%s: %s).", path, type(error).__name__, error)
            return None
    return None
