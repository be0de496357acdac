"""What a generator is trained for: the objectives, the phases that they come in, and what each of them needs."""

from dataclasses import dataclass
from typing import Literal, get_args

from loragen_train.configs.collect import Precision, check_positive
from loragen_train.errors import LoragenTrainError

__all__ = ["DistillConfig", "LmConfig", "ObjectiveName", "PhaseConfig", "check_objective"]

ObjectiveName = Literal["reconstruction", "lm", "distill"]
"""``reconstruction``: the weights of the checkpoints. ``lm``: the responses of samples, through the frozen language
model. ``distill``: what a teacher would answer there."""


def check_objective(key: str, name: str) -> None:
    """Raise LoragenTrainError for an objective that is none."""
    if name not in get_args(ObjectiveName):
        raise LoragenTrainError(f"{key} is {name!r}, but must be one of {', '.join(get_args(ObjectiveName))}.")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of a training, with a schedule of its own."""

    objective: ObjectiveName
    """What it trains for."""
    max_epochs: int
    """Number of passes over all checkpoints (``reconstruction``) or all tasks with samples (``lm``, ``distill``)."""
    learning_rate: float
    """Peak learning rate."""

    def __post_init__(self) -> None:
        check_objective("training.phases.objective", self.objective)
        check_positive("training.phases.", max_epochs=self.max_epochs, learning_rate=self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class LmConfig:
    """Training through the frozen language model: the objectives ``lm`` and ``distill``."""

    base_model: str | None = None
    """Causal language model: a hub name, a local folder or a .gguf file; by default the zoo's, or without a zoo.json
    the one that the adapters name."""
    tasks_per_step: int = 4
    """Number of tasks per step and device."""
    samples_per_task: int = 4
    """Number of samples of each task in a step."""
    leave_own_out: bool = True
    """Train, and validate, every task as one that was never seen: from the regression on all other tasks, or from the
    joint adapter (``model.unseen_from``): where that is in folds, from the mean of those that have not seen the task,
    else from all of it, which has seen its answers. It matters where the generator remembers its
    tasks (``model.remember_tasks``)."""
    tokens_per_pass: int | Literal["auto"] = "auto"  # noqa: S105  # no password
    """Most tokens, padding included, that go through the language model at once, which decides the memory; ``auto``:
    1,024 on a CPU, 16,384 elsewhere."""
    precision: Literal["auto"] | Precision = "auto"
    """What the language model computes in, its weights included: ``bf16``, ``fp32``, or ``auto``: bf16 where a matrix
    product is faster in it, measured once a training. Generated adapters are float32."""
    gradient_checkpointing: bool = False
    """Keep less of a forward pass through the language model and compute it again, for less memory."""
    max_length: int = 512
    """Longest sample in tokens of the language model, prompt and response together."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What becomes of a longer sample: the training ends with an error, the sample is left out, or its prompt loses its
    end."""

    def __post_init__(self) -> None:
        check_positive(
            "training.lm.",
            tasks_per_step=self.tasks_per_step,
            samples_per_task=self.samples_per_task,
            tokens_per_pass=self.tokens_per_pass,
            max_length=self.max_length,
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The teacher of the objective ``distill``, and how much of what it says is learned."""

    teacher: Literal["own", "examples"] = "own"
    """``own``: the language model with the last checkpoint of the task's adapter. ``examples``: the language model with
    solved samples of the task in its context, which needs no adapter."""
    num_examples: int = 4
    """Number of solved samples in the context of the teacher ``examples``; never the one that is asked."""
    top_k: int = 16
    """Number of the teacher's most likely tokens that are learned at every position, their probabilities brought to 1
    in sum."""
    temperature: float = 1.0
    """What the logits of teacher and student are divided by."""

    def __post_init__(self) -> None:
        check_positive(
            "training.distill.", num_examples=self.num_examples, top_k=self.top_k, temperature=self.temperature
        )
