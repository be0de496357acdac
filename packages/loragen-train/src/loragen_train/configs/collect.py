"""The configuration of ``loragen-train collect``, and the checks that all configurations share."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from loragen_train.errors import LoragenTrainError

__all__ = [
    "ENOUGH_FOR_JOINT",
    "CollectConfig",
    "CollectTask",
    "LoraSettings",
    "LoraTraining",
    "Precision",
    "check_positive",
    "check_seed",
    "check_task_names",
]

Precision = Literal["fp32", "bf16"]
"""What a training computes in; weights are float32 in both."""

ENOUGH_FOR_JOINT = 50
"""Least number of training tasks of a joint adapter that tasks never seen start from by default; one for fewer is those
tasks' (docs/network.md)."""


def check_task_names(names: list[str]) -> None:
    """Raise LoragenTrainError unless ``names`` are different and each is fit to be a file name."""
    for name in names:
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is None:
            raise LoragenTrainError(
                f"The task name {name!r} becomes a file name; use letters, digits, '_', '.' and '-' only."
            )
        if names.count(name) > 1:
            raise LoragenTrainError(f"The task name {name!r} is used twice; every task needs its own.")


def check_positive(section: str, **values: float | str | None) -> None:
    """Raise LoragenTrainError for a number that is not positive and finite; None and words (``auto``) pass."""
    for name, value in values.items():
        if not isinstance(value, str | None) and not 0 < value < math.inf:
            raise LoragenTrainError(f"{section}{name} is {value}, but must be positive and finite.")


def check_seed(section: str, seed: int) -> None:
    """Raise LoragenTrainError for a seed that NumPy, which both trainers seed too, does not take."""
    if not 0 <= seed < 2**32:
        raise LoragenTrainError(f"{section}seed is {seed}, but must be from 0 to {2**32 - 1}.")


@dataclass(frozen=True, kw_only=True)
class CollectTask:
    """One task of the zoo: where its samples come from, and whether an adapter is trained on it."""

    name: str
    """Name of the task; its adapters and samples are filed under it."""
    source: str | list[str]
    """A JSON/JSONL file with prompts and responses, ``reasoning-gym:NAME`` (with settings: ``NAME?max_value=9``),
    ``hf:DATASET/CONFIG``, or ``lm-eval:TASK`` (a name or a YAML file); of a list of them each gives an equal share of
    the samples."""
    num_train: int = 320
    """Number of samples to train on."""
    num_test: int = 32
    """Number of further samples kept for evaluation, which its own adapter is never trained on; those that another task
    is trained on are left out by ``fit`` and ``evaluate``."""
    held_out: bool = False
    """True: no generator learns from it, so that an unseen task can be evaluated."""
    own_adapter: bool | None = None
    """Whether an adapter is trained on it, or else its samples are only written; by default on tasks that are not held
    out. That of a held-out task is used by nothing but the row ``own`` of an evaluation. A task without one that is not
    held out joins a training through the language model, and the joint adapter."""
    prompt_column: str | None = None
    """Column of the prompts in the source; by default the first of prompt, question, instruction and text."""
    response_column: str | None = None
    """Column of the responses; by default the first of response, answer, output and completion."""
    split: str = "train"
    """Split to read of a data set of the hub or a task of lm-eval; of the latter ``train`` is what it trains with, or
    where it has none what it validates with, else what it tests with."""

    def __post_init__(self) -> None:
        check_task_names([self.name])
        check_positive(f"tasks ({self.name}): ", num_train=self.num_train, num_test=self.num_test)
        if not self.sources:
            raise LoragenTrainError(f"tasks ({self.name}): source is an empty list; name at least one.")

    @property
    def wants_adapter(self) -> bool:
        """Whether an adapter is trained on it alone."""
        return not self.held_out if self.own_adapter is None else self.own_adapter

    @property
    def sources(self) -> list[str]:
        """The sources, also of a task that has one."""
        return [self.source] if isinstance(self.source, str) else self.source

    @property
    def family(self) -> str:
        """What tasks that are variants of one have in common: the source, less its settings."""
        return self.sources[0].partition("?")[0]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The LoRA of every adapter in the zoo (the fields of PEFT's LoraConfig)."""

    r: int = 4
    """Rank."""
    lora_alpha: int = 8
    """Scale: the weight change is lora_alpha / r * B @ A."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input while training, 0 to 1."""
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Names of the modules that get an adapter."""

    def __post_init__(self) -> None:
        check_positive("lora.", r=self.r, lora_alpha=self.lora_alpha)
        if not 0 <= self.lora_dropout < 1:
            raise LoragenTrainError(f"lora.lora_dropout is {self.lora_dropout}, but must be at least 0 and below 1.")
        if not self.target_modules:
            raise LoragenTrainError("lora.target_modules is empty; name at least one module, such as q_proj.")


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """How each adapter is trained, and which of its checkpoints are kept."""

    max_steps: int = 48
    """Number of optimizer steps per task."""
    batch_size: int = 8
    """Number of samples per step."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; it warms up over a tenth of the steps and decays linearly."""
    save_every: int = 4
    """Number of steps between checkpoints."""
    keep_last: int = 4
    """Number of checkpoints kept per task: the last ones."""
    max_length: int = 512
    """Longest sample in tokens of the language model, prompt and response together."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What becomes of a longer sample: the task has an error, the sample is left out, or its prompt loses its end."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the language model computes in, its weights included: ``bf16``, ``fp32``, or ``auto``: bf16 where a matrix
    product is faster in it, measured once a zoo. Adapters are float32."""
    adapters_at_once: int | Literal["auto"] = "auto"
    """Number of adapters trained at once; ``auto``: 8 on a CPU, 32 elsewhere."""
    tokens_per_pass: int | Literal["auto"] = "auto"  # noqa: S105  # no password
    """Most tokens, padding included, that go through the language model at once, which decides the memory; ``auto``:
    1,024 on a CPU, 16,384 elsewhere."""
    gradient_checkpointing: bool = False
    """Keep less of a forward pass and compute it again, for less memory."""
    device_map: str | None = None
    """Spreads the language model over several devices, as in transformers, such as ``auto``."""

    def __post_init__(self) -> None:
        check_positive("training.", **{key: value for key, value in vars(self).items() if not isinstance(value, bool)})


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A zoo of LoRA adapters to train: one language model, one shared initialisation, several tasks."""

    base_model: str
    """Causal language model: a hub name, a local folder or a .gguf file."""
    tasks: list[CollectTask]
    """The tasks."""
    output_dir: str = "zoo"
    """Folder to write to; what is finished there is kept and not trained again."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """The LoRA."""
    training: LoraTraining = field(default_factory=LoraTraining)
    """The training."""
    seed: int = 0
    """Seed of the initialisation, of the generated samples and of their order."""
    joint: bool = False
    """Also train one adapter on all training tasks together: what ``fit`` starts from for tasks never seen, and the row
    ``joint`` of an evaluation."""
    joint_steps: int | None = None
    """Number of optimizer steps of that adapter; by default as many as the training tasks have in all."""
    joint_folds: int | Literal["auto"] = "auto"
    """Number of folds that the training tasks are divided into, variants of one source together. An adapter is trained
    on each, in its share of ``joint_steps``, and the joint adapter is the mean of their A and of their B; so ``fit``
    starts every training task from the mean of those that have not seen it, as tasks never seen start. 1: one adapter
    on all tasks. ``auto``: 2 from 50 training tasks on, else 1; for a joint adapter that is there, as it has."""
    shard: str | None = None
    """``I/N``: only every N-th task from the I-th on, so that N machines share a zoo; under torchrun and SLURM by
    default the process's own share."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise LoragenTrainError("tasks is empty; name at least one task with its source.")
        check_task_names([task.name for task in self.tasks])
        check_seed("", self.seed)
        save_every, max_steps = self.training.save_every, self.training.max_steps
        if save_every > max_steps and any(task.wants_adapter for task in self.tasks):
            raise LoragenTrainError(
                f"training.save_every is {save_every}, but must be at most max_steps, which is {max_steps}."
            )
        if self.joint_steps is not None:
            check_positive("", joint_steps=self.joint_steps)
            if not self.joint:
                raise LoragenTrainError(f"joint_steps is {self.joint_steps}, but there is no joint adapter; set joint.")
        self._check_folds()
        if self.shard is not None:
            part, _, whole = self.shard.partition("/")
            if not (part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole)):
                raise LoragenTrainError(f"shard is {self.shard!r}, but must be I/N, such as 1/4 for the first of four.")

    @property
    def training_tasks(self) -> list[CollectTask]:
        """Those that are not held out."""
        return [task for task in self.tasks if not task.held_out]

    def _check_folds(self) -> None:
        if self.joint_folds == "auto":
            return
        check_positive("", joint_folds=self.joint_folds)
        if not self.joint and self.joint_folds != 1:
            raise LoragenTrainError(f"joint_folds is {self.joint_folds}, but there is no joint adapter; set joint.")
        num_families = len({task.family for task in self.training_tasks})
        if self.joint_folds > max(1, num_families):
            raise LoragenTrainError(
                f"There cannot be {self.joint_folds} folds: the training tasks are of {num_families} source(s), whose "
                "variants stay together; take at most as many."
            )
