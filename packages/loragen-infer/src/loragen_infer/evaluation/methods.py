"""Which rows a task has, and what each row puts on the language model: an adapter, solved examples, or nothing.

Rows are made one at a time, so that memory holds one adapter and not all of them.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from lora_tokenizer import LoraAdapter, LoraTokenizerError, find_adapter, read_adapter

from loragen_infer.adapters import find_not_plain
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.baselines import Ridge, nearest_task
from loragen_infer.evaluation.config import SHOWN_ROWS, TUNED_FROM, EvaluateConfig
from loragen_infer.evaluation.examples import TaskInputs
from loragen_infer.evaluation.store import Cost
from loragen_infer.evaluation.training_tasks import Training
from loragen_infer.generator import LoraGenerator
from loragen_infer.samples import Example
from loragen_infer.words import counted

__all__ = ["GIVEN_ROWS", "Row", "RowMaker"]

logger = logging.getLogger(__name__)

GIVEN_ROWS = ("joint", "tuned from scratch", "own")
"""Rows whose adapter, or what it starts from, is read from a file."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NO_MEANS = "there are no means of training tasks beside the bundle; copy them there, or name training_tasks"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is put on the language model in one row of one task, and what is shown before every prompt."""

    adapter: LoraAdapter | None = None
    shots: tuple[Example, ...] = ()
    tuned_on: tuple[Example, ...] = ()
    """What the adapter is still to be tuned on."""
    cost: Cost | None = None
    note: str = ""


class RowMaker:
    """Makes the rows of every task."""

    def __init__(
        self, config: EvaluateConfig, generator: LoraGenerator, training: Training, tasks: Sequence[TaskInputs]
    ) -> None:
        self._config, self._generator, self._training, self._tasks = config, generator, training, tasks
        self._prompts = {inputs.task.name: inputs.prompts for inputs in tasks}
        self._ridge = None if training.means is None else Ridge(training.means)
        self._is_warm = False
        # Each task is a wrong one for all others; the adapters of very many would only take memory.
        self._generated = lru_cache(maxsize=32)(self._generate)

    def names(self, inputs: TaskInputs) -> list[str]:
        """Return the rows that a task has, in the order in which they are shown."""
        lacks = self._lacks(inputs)
        return [row for row in self._config.wanted_rows if row not in lacks]

    def check(self) -> None:
        """Say once of every row that is asked for, and that no task has, what it lacks; refuse a task without rows."""
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
            # By default a row that needs something is there where it is given; training tasks should always be, and
            # that what is given does not do is nothing that anybody would expect.
            if self._config.rows is None and row not in ("nearest", "ridge", *self._not_tunable):
                continue
            if all(row in of_task for of_task in lacks):
                logger.warning("The row %r is left out: %s.", row, self._not_tunable.get(row) or lacks[0][row])

    def make(self, inputs: TaskInputs, row: str, wrong_task: str | None = None) -> Row:
        """Return what the row called ``row``, one of :meth:`names`, of a task puts on the language model.

        For ``wrong prompts`` that is of one ``wrong_task``, of :meth:`wrong_tasks`.
        """
        if row == "base":
            return Row()
        if row == "few-shot":
            return Row(shots=tuple(inputs.shots), note=_examples(inputs))
        if row in TUNED_FROM:
            source = self.make(inputs, TUNED_FROM[row])
            return replace(source, tuned_on=tuple(inputs.shots), note=_examples(inputs))
        if row in (*GIVEN_ROWS, "initial"):
            adapter, path = self.given(inputs, row)
            return Row(adapter=adapter, cost=None if row == "initial" else _training_cost(path))
        if row == "generated":
            return self._generated(inputs.task.name)
        if wrong_task is not None:
            others = self.wrong_tasks(inputs)
            note = f"prompts of {others[0]}" if len(others) == 1 else f"mean over the prompts of {len(others)} tasks"
            return replace(self._generated(wrong_task), note=note)
        return self._timed(lambda: self._make(inputs, row))

    def given(self, inputs: TaskInputs, row: str) -> tuple[LoraAdapter, Path]:
        """Return the adapter of one of :data:`GIVEN_ROWS`, of a folder of checkpoints the last, and where it lies."""
        whose, path = f"the task {inputs.task.name!r}", inputs.task.adapter
        if row == "joint":
            whose, path = "joint_adapter", self._config.joint_adapter
        elif row != "own":
            whose, path = "initial_adapter", self._config.initial_adapter
        try:
            found = find_adapter(Path(str(path)))
            return read_adapter(found), found
        except LoraTokenizerError as error:
            raise LoragenInferError(f"The adapter of {whose} cannot be read: {error}") from error

    def wrong_tasks(self, inputs: TaskInputs) -> list[str]:
        """Return the tasks whose prompts are the wrong ones: all others, or as many as are wanted, evenly spread.

        Every task is as often a wrong one for another.
        """
        names = list(self._prompts)
        wanted = self._config.num_wrong_tasks
        place, count = names.index(inputs.task.name), len(names) - 1
        count = count if wanted is None else min(wanted, count)
        steps = [1 + index * (len(names) - 1) // count for index in range(count)]
        return [names[(place + step) % len(names)] for step in steps]

    def _lacks(self, inputs: TaskInputs) -> dict[str, str]:
        """By row that a task does not have, what it lacks."""
        lacks: dict[str, str] = {}
        if not inputs.shots:
            lacks |= dict.fromkeys(SHOWN_ROWS, "no task has shots")
        if self._ridge is None:
            lacks["nearest"] = lacks["ridge"] = _NO_MEANS
        if self._config.joint_adapter is None:
            lacks["joint"] = "there is no joint_adapter"
        if self._config.initial_adapter is None:
            lacks["tuned from scratch"] = "there is no initial_adapter"
        if inputs.task.adapter is None:
            lacks["own"] = "no task has an adapter"
        if len(self._prompts) == 1:
            lacks["wrong prompts"] = "there is no other task"
        if inputs.shots:
            lacks |= self._not_tunable
        return lacks

    @cached_property
    def _not_tunable(self) -> dict[str, str]:
        """By tuned row that starts from what cannot be tuned, why it cannot."""
        reasons: dict[str, str] = {}
        wanted = set(self._config.wanted_rows) if any(inputs.shots for inputs in self._tasks) else set()
        for row in (row for row in TUNED_FROM if row in wanted):
            if TUNED_FROM[row] != "initial":
                adapter = self._generator.mean_adapter()  # of the layout that generated adapters have too
            elif self._config.initial_adapter is not None:
                adapter, _ = self.given(self._tasks[0], row)
            else:
                continue
            if (found := find_not_plain(adapter)) is not None:
                reasons[row] = f"it starts from an adapter with {found}, and only plain LoRA factors can be tuned"
        return reasons

    def _generate(self, task: str) -> Row:
        """Generate from the prompts of one task."""
        if not self._is_warm:
            # The first call of an encoder takes longer than all later ones.
            self._generator.generate(self._prompts[task])
            self._is_warm = True
        return self._timed(lambda: (self._generator.generate(self._prompts[task]), ""))

    def _timed(self, make: Callable[[], tuple[LoraAdapter, str]]) -> Row:
        started, cpu_started = time.perf_counter(), time.process_time()
        adapter, note = make()
        cost = Cost(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)
        return Row(adapter=adapter, cost=cost, note=note)

    def _make(self, inputs: TaskInputs, row: str) -> tuple[LoraAdapter, str]:
        if row == "mean":
            return self._generator.mean_adapter(), ""
        if row == "junk":
            return self._generator.generate(self._junk(inputs.prompts)), ""
        means, layout = self._training.means, self._generator.bundle.layout
        assert means is not None, "names() leaves these rows out"  # noqa: S101
        assert self._ridge is not None, "as above"  # noqa: S101
        among = self._training.others(inputs.task)
        condition_D = self._generator.encoder.encode(inputs.prompts).mean(dim=0)
        if row == "nearest":
            index = nearest_task(means, condition_D, among)
            return layout.decode(means.token_means[index]), f"adapter of {means.names[index]}"
        return layout.decode(self._ridge.tokens(condition_D, among=among, num_prompts=len(inputs.prompts))), ""

    def _junk(self, prompts: Sequence[str]) -> list[str]:
        """Random letters in place of each prompt, as many."""
        draw = random.Random(self._config.seed)
        return [
            "".join(draw.choice(_LETTERS) if place % 6 else " " for place in range(1, len(prompt) + 1))
            for prompt in prompts
        ]


def _examples(inputs: TaskInputs) -> str:
    return counted(len(inputs.shots), "example")


def _training_cost(adapter: Path) -> Cost | None:
    """What ``training.json``, beside the adapter or its folder of checkpoints, says of its training."""
    path = next((path for folder in (adapter, adapter.parent) if (path := folder / "training.json").is_file()), None)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cpu_seconds = content.get("cpu_seconds")
        return Cost(seconds=float(content["seconds"]), cpu_seconds=None if cpu_seconds is None else float(cpu_seconds))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s does not say how long training took (%s: %s).", path, type(error).__name__, error)
        return None
