"""The section ``training`` of a fit configuration: loss, optimizer, schedule, hardware, checkpoints."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from loragen_train.configs.collect import check_positive, check_seed
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

    max_epochs: int = 100
    """Number of passes over all checkpoints."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
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
    """Learning rate over the steps: ``cosine`` and ``linear`` fall to zero at the last one, ``constant`` stays."""
    warmup_steps: int = 0
    """Number of steps in which the learning rate rises linearly to its peak."""
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
    """Stop after this many validations without a better val_unseen_nll, or val_loss where no unseen tasks are watched;
    0 never stops early."""
    validate_every_n_epochs: int | Literal["auto"] = "auto"
    """Epochs between validations; ``auto`` validates ten times in all, and every run after its last epoch."""
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
        # AdamW's first step is ten times as large and must still be a float32.
        if self.learning_rate > 1e30:
            raise LoragenTrainError(f"training.learning_rate is {self.learning_rate}, but must be at most 1e30.")
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
    def epochs_between_validations(self) -> int:
        """``validate_every_n_epochs`` as a number."""
        if self.validate_every_n_epochs == "auto":
            return max(1, self.max_epochs // 10)
        return self.validate_every_n_epochs
