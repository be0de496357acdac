"""The configuration of ``loragen-infer evaluate``: the rows there are, the tasks, and what each row needs.

Imports nothing heavy, so that ``--help`` is fast.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from loragen_infer.errors import LoragenInferError
from loragen_infer.samples import TUNE_FOLDS, TUNE_LEARNING_RATE, TUNE_STEPS
from loragen_infer.words import nearest

__all__ = ["ROWS", "EvaluateConfig", "EvaluateTask", "TrainingTask"]

TUNED_FROM = {"tuned": "generated", "tuned from mean": "mean", "tuned from scratch": "initial"}
"""What the rows that are tuned on a few solved examples start from."""
SHOWN_ROWS = ("few-shot", *TUNED_FROM)
"""Rows that a few solved examples make."""
ROWS = (
    *("base", "few-shot", "mean", "nearest", "ridge", "joint", "generated", *TUNED_FROM, "own"),
    *("wrong prompts", "junk"),
)
"""Every row, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class EvaluateTask:
    """One task to evaluate on."""

    name: str
    """Name of the task."""
    test: str
    """JSON/JSONL file with prompts and responses that no adapter was trained on, and optionally ``choices``; of a file
    with a ``task`` column, as of ``prompts`` and ``shots``, this task's lines."""
    prompts: str
    """JSON/JSONL file with the prompts to generate from; of a file with a ``task`` column, this task's lines."""
    adapter: str | None = None
    """The task's own trained adapter (a PEFT folder, or a folder of checkpoints, of which the last is taken)."""
    shots: str | None = None
    """JSON/JSONL file with training examples and their responses, the first of which the row ``few-shot`` shows; the
    rows that are tuned are tuned on them."""
    choices: list[str] | None = None
    """What all examples can be answered with, for a file without a ``choices`` column, such as [yes, no]."""
    choice_pattern: str | None = None
    """Regular expression that finds an example's choices in its prompt: group 1 of every match; ``^`` is the start of
    a line."""
    choice_format: str = "{}"
    """How a response writes a choice that ``choice_pattern`` has found, such as ``[{}]``."""
    unseen_prompts: bool = False
    """Generate only from prompts that the generator was not shown in training, and test only on examples that neither
    it nor an adapter was trained on, as its bundle knows them: for files of single samples."""
    held_out: bool | None = None
    """Whether training saw nothing of the task. The bundle knows that; what is said here is checked against it, and
    kept from the rows ``nearest`` and ``ridge``."""

    def __post_init__(self) -> None:
        where = f"The task {self.name!r}"
        if self.choices is not None and self.choice_pattern is not None:
            raise LoragenInferError(f"{where} has both choices and choice_pattern; give one of them.")
        if self.choice_pattern is None:
            return
        try:
            groups = re.compile(self.choice_pattern).groups
        except re.error as error:
            raise LoragenInferError(f"{where} has choice_pattern {self.choice_pattern!r}: {error}.") from error
        if groups != 1:
            raise LoragenInferError(f"{where} has choice_pattern {self.choice_pattern!r}; put one group in it.")


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A task that the generator was trained on, for the rows ``nearest`` and ``ridge``."""

    name: str
    """Name of the task."""
    prompts: str
    """JSON/JSONL file with its prompts; of a file with a ``task`` column, this task's lines."""
    adapter: str
    """Its adapter: a PEFT folder, or a folder of checkpoints, of which the mean is taken."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A generator to evaluate against its baselines, and the tasks to do it on."""

    model: str
    """The generator: a bundle, a final_model folder or an experiment folder."""
    zoo: str | None = None
    """Folder with a ``zoo.json``, as collect and import write it: its tasks with test examples, held-out ones and those
    that the generator was trained on, in place of ``tasks``. Adapters are generated from prompts not trained on."""
    zoo_tasks: Literal["all", "held-out", "training"] = "all"
    """Which of the zoo's tasks."""
    tasks: list[EvaluateTask] = field(default_factory=list)
    """The tasks; at least two for the row ``wrong prompts``, which takes the prompts of others."""
    rows: list[str] | None = None
    """What to score: base, few-shot, mean, nearest, ridge, joint, generated, tuned, tuned from mean,
    tuned from scratch, own, wrong prompts, junk; by default each one that has what it needs."""
    training_tasks: list[TrainingTask] | None = None
    """The training tasks, for ``nearest`` and ``ridge``; by default those whose means lie beside the bundle."""
    joint_adapter: str | None = None
    """One adapter trained on all training tasks together, for the row ``joint``; by default the zoo's."""
    initial_adapter: str | None = None
    """The initialisation of all training, for the row ``tuned from scratch``; by default the zoo's."""
    num_shots: int = 4
    """Number of examples that the row ``few-shot`` shows before the prompt, and that tuned adapters are tuned on."""
    tune_steps: int = TUNE_STEPS
    """Most steps of AdamW that the rows that are tuned take on the examples."""
    tune_folds: int = TUNE_FOLDS
    """Parts of the examples that are left out one after another to decide how many steps are taken; 0: all are."""
    tune_learning_rate: float = TUNE_LEARNING_RATE
    """Learning rate of the first of them, from which it falls to zero."""
    base_model: str | None = None
    """The language model, a hub name, folder or .gguf file; by default the zoo's, or that the adapters name."""
    output_dir: str = "results"
    """Folder for ``evaluation.json``, ``evaluation.png`` and the finished rows."""
    num_prompts: int = 8
    """Most prompts to generate an adapter from: the first of the file."""
    num_wrong_tasks: int | None = None
    """Most other tasks whose prompts the row ``wrong prompts`` is generated from; its scores are the mean over them. By
    default all others."""
    num_examples: int | None = None
    """Most test examples per task; by default all of the file."""
    num_resamples: int = 10_000
    """Number of bootstrap resamples behind each 95 % interval."""
    seed: int = 0
    """Seed of the resamples and of the junk text."""
    tokens_per_pass: int | Literal["auto"] = "auto"  # noqa: S105  # no password
    """Most tokens, padding included, that go through the language model at once; ``auto``: 512 on a CPU, 16,384
    elsewhere."""
    device: str = "cpu"
    """Torch device, such as ``cpu`` or ``cuda``."""
    dtype: str | None = None
    """What the language model's weights are in, such as ``bfloat16``; by default what they are stored in."""
    device_map: str | None = None
    """Spreads the language model over several devices instead, as in transformers, such as ``auto``."""

    def __post_init__(self) -> None:
        if self.zoo is None and not self.tasks:
            raise LoragenInferError("tasks is empty; name at least one task to evaluate on, or a zoo.")
        if self.zoo is not None and self.tasks:
            raise LoragenInferError("zoo names all tasks; leave tasks out, or it.")
        for row in self.rows or []:
            if row not in ROWS:
                raise LoragenInferError(f"rows has {row!r}, but there are {', '.join(ROWS)}{nearest(row, ROWS)}")
        if self.rows == []:
            raise LoragenInferError(f"rows is empty; name some of {', '.join(ROWS)}.")
        if len(self.tasks) == 1 and "wrong prompts" in (self.rows or []):
            raise LoragenInferError(
                "rows has 'wrong prompts', but there is 1 task, where two are needed: each is generated for with the "
                "prompts of others, as a control; add a task, or take that row away."
            )
        for key in ("tasks", "training_tasks"):
            names = [task.name for task in getattr(self, key) or []]
            if len(set(names)) < len(names):
                raise LoragenInferError(f"{key} has two of one name: {', '.join(sorted(names))}.")
        counts = ("num_prompts", "num_wrong_tasks", "num_examples", "tokens_per_pass", "num_shots", "tune_steps")
        for key, least in {**dict.fromkeys(counts, 1), "num_resamples": 100, "seed": 0, "tune_folds": 0}.items():
            if (value := getattr(self, key)) not in (None, "auto") and value < least:
                raise LoragenInferError(f"{key} is {value}, but must be at least {least}.")

        if not 0 < self.tune_learning_rate < float("inf"):
            raise LoragenInferError(f"tune_learning_rate is {self.tune_learning_rate}, but must be above 0.")

    @property
    def wanted_rows(self) -> tuple[str, ...]:
        """The rows asked for, in the order of ``ROWS``."""
        return ROWS if self.rows is None else tuple(row for row in ROWS if row in self.rows)
