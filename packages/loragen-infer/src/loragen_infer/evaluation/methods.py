"""Which rows a task has, and what each row puts on the language model: an adapter, solved examples, or nothing.

Rows are made one at a time, so that memory holds one adapter and not all of them.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.baselines import nearest_task, ridge_tokens, without_task
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask
from loragen_infer.evaluation.store import Cost
from loragen_infer.evaluation.task_means import TaskMeans
from loragen_infer.evaluation.training_tasks import is_held_out, read_own_adapter
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
        training: Its training tasks; None leaves out the rows that need them.
        prompts: What to generate from, by task.
        shots: Solved examples, by task; a task without them has no row ``few-shot``.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        generator: LoraGenerator,
        training: TaskMeans | None,
        prompts: Mapping[str, Sequence[str]],
        shots: Mapping[str, Sequence[Example]],
    ) -> None:
        self._config, self._generator, self._training = config, generator, training
        self._prompts, self._shots = prompts, shots
        self._makers: dict[str, Callable[[EvaluateTask], tuple[LoraAdapter, str]]] = {
            "mean": self._mean,
            "nearest": self._nearest,
            "ridge": self._ridge,
            "generated": self._generated,
            "wrong prompts": self._wrong_prompts,
            "junk": self._junk,
        }
        self._is_warm = False

    def names(self, task: EvaluateTask) -> list[str]:
        """Return the rows that ``task`` has, in the order in which they are shown."""
        missing = {row for row, reason in self._lacks(task).items() if reason}
        return [row for row in self._config.wanted_rows if row not in missing]

    def check(self) -> None:
        """Say once of every row that is asked for, and that no task has, what it lacks.

        Raises:
            LoragenInferError: A task has none of the rows, or is held out and there is no training task but it.
        """
        for task in self._config.tasks:
            names = self.names(task)
            if not names:
                raise LoragenInferError(
                    f"The task {task.name!r} has none of the rows asked for ({', '.join(self._config.wanted_rows)}); "
                    "give it what they need, or ask for base too."
                )
            if self._training is not None and {"nearest", "ridge"} & set(names):
                self._others(task)
        lacks = [self._lacks(task) for task in self._config.tasks]
        for row in self._config.wanted_rows:
            # By default a row that needs something is there where it is given; training tasks should always be.
            if self._config.rows is None and row not in ("nearest", "ridge"):
                continue
            if all(of_task.get(row) for of_task in lacks):
                logger.warning("The row %r is left out: %s.", row, lacks[0][row])

    def make(self, task: EvaluateTask, row: str) -> Row:
        """Return what the row called ``row`` of ``task`` puts on the language model.

        Raises:
            LoragenInferError: An adapter cannot be read.
        """
        if row == "base":
            return Row(adapter=None)
        if row == "few-shot":
            shots = self._shots[task.name]
            return Row(adapter=None, shots=shots, note=f"{len(shots)} examples")
        if row == "joint":
            return self._trained("joint_adapter", str(self._config.joint_adapter))
        if row == "own":
            return self._trained(f"the task {task.name!r}", str(task.adapter))
        if not self._is_warm:
            # The first call of an encoder takes longer than all later ones.
            self._generator.generate(self._prompts[task.name])
            self._is_warm = True
        started, cpu_started = time.perf_counter(), time.process_time()
        adapter, note = self._makers[row](task)
        cost = Cost(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)
        return Row(adapter=adapter, cost=cost, note=note)

    def wrong_task(self, task: EvaluateTask) -> str:
        """Return the name of the task whose prompts are the wrong ones for ``task``."""
        names = [other.name for other in self._config.tasks]
        return names[(names.index(task.name) + 1) % len(names)]

    def _lacks(self, task: EvaluateTask) -> dict[str, str]:
        """By row, what it lacks to be there for ``task``, or nothing."""
        no_training = "the bundle does not remember its training tasks; name them under training_tasks"
        return {
            "few-shot": "" if task.name in self._shots else "no task has shots",
            "nearest": "" if self._training is not None else no_training,
            "ridge": "" if self._training is not None else no_training,
            "joint": "" if self._config.joint_adapter is not None else "there is no joint_adapter",
            "own": "" if task.adapter is not None else "no task has an adapter",
        }

    def _others(self, task: EvaluateTask) -> TaskMeans:
        assert self._training is not None, "names() leaves these rows out"  # noqa: S101
        return without_task(self._training, task.name) if is_held_out(task, self._training) else self._training

    def _mean(self, _task: EvaluateTask) -> tuple[LoraAdapter, str]:
        return self._generator.mean_adapter(), ""

    def _nearest(self, task: EvaluateTask) -> tuple[LoraAdapter, str]:
        others = self._others(task)
        index = nearest_task(others, self._condition(task))
        return self._generator.bundle.layout.decode(others.token_means[index]), f"adapter of {others.names[index]}"

    def _ridge(self, task: EvaluateTask) -> tuple[LoraAdapter, str]:
        tokens_NW, _ = ridge_tokens(self._others(task), self._condition(task))
        return self._generator.bundle.layout.decode(tokens_NW), ""

    def _generated(self, task: EvaluateTask) -> tuple[LoraAdapter, str]:
        return self._generator.generate(self._prompts[task.name]), ""

    def _wrong_prompts(self, task: EvaluateTask) -> tuple[LoraAdapter, str]:
        wrong = self.wrong_task(task)
        return self._generator.generate(self._prompts[wrong]), f"prompts of {wrong}"

    def _junk(self, task: EvaluateTask) -> tuple[LoraAdapter, str]:
        """As many prompts as the task has, each as long as one of them, of random letters."""
        draw = random.Random(self._config.seed)
        prompts = [
            "".join(draw.choice(_LETTERS) if place % 6 else " " for place in range(1, len(prompt) + 1))
            for prompt in self._prompts[task.name]
        ]
        return self._generator.generate(prompts), ""

    def _condition(self, task: EvaluateTask) -> torch.Tensor:
        return self._generator.encoder.encode(self._prompts[task.name]).mean(dim=0)

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
