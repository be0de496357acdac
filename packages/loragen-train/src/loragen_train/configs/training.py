"""The section ``training`` of a fit configuration: objective, optimizer, schedule, hardware, checkpoints."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from loragen_train.configs.collect import check_positive, check_seed
from loragen_train.configs.objectives import DistillConfig, LmConfig, ObjectiveName, PhaseConfig, check_objective
from loragen_train.configs.unseen import UnseenConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["TrainingConfig"]

OptimizerType = Literal["adamw", "adam", "sgd"]
SchedulerType = Literal["cosine", "linear", "constant"]

_NOT_NEGATIVE = (
    "weight_decay",
    "mse_weight",
    "l1_weight",
    "condition_noise",
    "target_noise",
    "warmup_steps",
    "gradient_clip_val",
    "early_stopping_patience",
    "checkpoint_every_n_steps",
    "num_workers",
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the generator is trained."""

    objective: ObjectiveName = "reconstruction"
    """What the generator is trained for: ``reconstruction``, the weights of the checkpoints; ``lm``, the responses of
    samples through the frozen language model; ``distill``, what a teacher answers there."""
    max_epochs: int = 100
    """Number of passes over all checkpoints (``reconstruction``) or all tasks with samples (``lm``, ``distill``)."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    phases: list[PhaseConfig] = field(default_factory=list)
    """Several objectives one after the other, each with its own epochs, peak learning rate and schedule, in place of
    ``objective``, ``max_epochs`` and ``learning_rate``. The last one's val_loss decides what is best."""
    lm: LmConfig = field(default_factory=LmConfig)
    """The language model and its samples, for ``lm`` and ``distill``."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """The teacher, for ``distill``."""
    weight_decay: float = 0.01
    """Weight decay: decoupled with adamw, a penalty on the gradient with adam and sgd."""
    mse_weight: float = 1.0
    """Weight of the mean squared error in the loss."""
    l1_weight: float = 0.1
    """Weight of the mean absolute error in the loss."""
    importance_weights: bool = False
    """Weight the loss of each token by how much it varies over the zoo (mean 1), instead of all alike."""
    condition_noise: float = 0.0
    """Standard deviation of Gaussian noise added to the prompt embeddings while training."""
    target_noise: float = 0.0
    """Standard deviation of Gaussian noise added to the z-scored target tokens while training."""
    optimizer_type: OptimizerType = "adamw"
    """Optimizer, torch's of that name; sgd has a momentum of 0.9."""
    scheduler_type: SchedulerType = "cosine"
    """Learning rate over the steps of a phase: ``cosine`` and ``linear`` fall to zero at the last one, ``constant``
    stays."""
    warmup_steps: int = 0
    """Number of steps, of each phase, in which the learning rate rises linearly to its peak."""
    precision: str = "32-true"
    """Precision in Lightning's terms: ``32-true``, ``bf16-mixed``, or ``bf16-true``, where the generator's weights are
    bfloat16 and all else (targets, losses, a trained encoder) stays float32."""
    accelerator: str = "auto"
    """Hardware in Lightning's terms: ``auto``, ``cpu``, ``gpu``."""
    devices: int | str = 1
    """Devices per node in Lightning's terms: a number, ``auto`` or a list such as ``0,2``."""
    strategy: str = "auto"
    """Lightning's strategy, such as ``ddp``; ``auto`` is one device, or ddp over several."""
    num_nodes: int = 1
    """Number of machines."""
    accumulate_grad_batches: int = 1
    """Number of batches whose gradients make one optimizer step."""
    gradient_clip_val: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    early_stopping_patience: int = 0
    """Stop after this many validations of the last phase without a better val_unseen_nll, or val_loss where no unseen
    tasks are watched; 0 never stops early."""
    validate_every_n_epochs: int | Literal["auto"] = "auto"
    """Epochs between validations; ``auto`` validates about ten times a phase, and every phase after its last epoch."""
    checkpoint_every_n_steps: int = 1000
    """Steps between checkpoints for ``--resume``, besides the one at every validation; 0: only those."""
    num_workers: int = 0
    """Processes that read tokens for each device; 0 reads them in the training process."""
    unseen: UnseenConfig = field(default_factory=UnseenConfig)
    """Held-out tasks that are watched, and choose the best weights."""
    seed: int = 0
    """Seed of the weights, of the order of checkpoints, of the prompts drawn for them and of the noise."""

    def __post_init__(self) -> None:
        check_positive(
            "training.",
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            num_nodes=self.num_nodes,
            accumulate_grad_batches=self.accumulate_grad_batches,
        )
        check_objective("training.objective", self.objective)
        for phase in self.schedule:
            # AdamW's first step is ten times as large and must still be a float32.
            if phase.learning_rate > 1e30:
                raise LoragenTrainError(f"{self.rate_key} is {phase.learning_rate}, but must be at most 1e30.")
        check_seed("training.", self.seed)
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise LoragenTrainError(f"training.{name} is {getattr(self, name)}, but must be 0 or more and finite.")
        if self.validate_every_n_epochs != "auto":
            check_positive("training.", validate_every_n_epochs=self.validate_every_n_epochs)
        if self.mse_weight == self.l1_weight == 0:
            raise LoragenTrainError("training.mse_weight and training.l1_weight are both 0; there would be no loss.")
        for name, kind in (("optimizer_type", OptimizerType), ("scheduler_type", SchedulerType)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise LoragenTrainError(f"training.{name} is {getattr(self, name)!r}, but must be one of {known}.")

    @property
    def schedule(self) -> list[PhaseConfig]:
        """The phases, also of a training that has one."""
        return self.phases or [
            PhaseConfig(objective=self.objective, max_epochs=self.max_epochs, learning_rate=self.learning_rate)
        ]

    @property
    def rate_key(self) -> str:
        """Which key has the learning rate, for a message."""
        return "training.phases.learning_rate" if self.phases else "training.learning_rate"

    @property
    def num_epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.max_epochs for phase in self.schedule)

    @property
    def leaves_own_out(self) -> bool:
        """Whether every step treats its tasks as never seen."""
        return self.lm.leave_own_out and all(phase.objective != "reconstruction" for phase in self.schedule)

    @property
    def is_through_lm(self) -> bool:
        """Whether some phase needs the language model."""
        return any(phase.objective != "reconstruction" for phase in self.schedule)

    @property
    def can_do_without_adapters(self) -> bool:
        """Whether a task without an adapter has a part in some phase."""
        objectives = {phase.objective for phase in self.schedule}
        return "lm" in objectives or ("distill" in objectives and self.distill.teacher == "examples")

    def place_of(self, epoch: int) -> tuple[int, int]:
        """Return which phase an epoch is in, and which of its epochs it is; after the last one that is the last."""
        for index, phase in enumerate(self.schedule):
            if epoch < phase.max_epochs:
                return index, epoch
            epoch -= phase.max_epochs
        return len(self.schedule) - 1, self.schedule[-1].max_epochs - 1

    def phase_of(self, epoch: int) -> PhaseConfig:
        """Return the phase that an epoch is in."""
        return self.schedule[self.place_of(epoch)[0]]

    def is_validated(self, epoch: int) -> bool:
        """Whether there is a validation after an epoch: every so many of its phase, and after the last one."""
        index, number = self.place_of(epoch)
        max_epochs = self.schedule[index].max_epochs
        every = max(1, max_epochs // 10) if self.validate_every_n_epochs == "auto" else self.validate_every_n_epochs
        return (number + 1) % every == 0 or number + 1 == max_epochs
