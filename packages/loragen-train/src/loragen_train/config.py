"""The configuration of ``loragen-train fit``; imports nothing heavy, so that ``--help`` is fast."""

import math
from dataclasses import dataclass, field
from typing import Literal

from loragen_train.collect_config import check_positive, check_seed, check_task_names
from loragen_train.errors import LoragenTrainError

__all__ = ["DataConfig", "FitConfig", "ModelConfig", "TaskConfig", "TrainingConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The text encoder and the HyperConv generator."""

    text_encoder_name: str = "all-MiniLM-L6-v2"
    """SentenceTransformer that turns prompts into the condition: a name or a folder."""
    hidden_dim: int = 384
    """Width of the generator's hidden states, in values."""
    max_seq_len: int | Literal["auto"] = 512
    """Most tokens the generator may write; ``auto``: as many as the adapters need."""
    num_hyperconv_blocks: int = 3
    """Number of HyperConv blocks."""
    output_dim: int = 384
    """Values per token."""
    kernel_size: int = 3
    """Kernel of the convolutions over tokens and layers, odd."""

    def __post_init__(self) -> None:
        check_positive("model.", hidden_dim=self.hidden_dim, output_dim=self.output_dim, kernel_size=self.kernel_size)
        if self.max_seq_len != "auto":
            check_positive("model.", max_seq_len=self.max_seq_len)
        if self.num_hyperconv_blocks < 0:
            raise LoragenTrainError(
                f"model.num_hyperconv_blocks is {self.num_hyperconv_blocks}, but must be 0 or more."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the generator is trained."""

    max_epochs: int = 100
    """Number of passes over all checkpoints."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    mse_weight: float = 1.0
    """Weight of the mean squared error in the loss."""
    l1_weight: float = 0.1
    """Weight of the mean absolute error in the loss."""
    optimizer_type: Literal["adamw"] = "adamw"
    """Optimizer."""
    scheduler_type: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the steps: ``cosine`` falls to zero at the last one, ``constant`` stays."""
    precision: str = "32-true"
    """Precision in Lightning's terms, such as ``32-true`` or ``bf16-mixed``."""
    accelerator: str = "auto"
    """Hardware in Lightning's terms: ``auto``, ``cpu``, ``gpu``."""
    seed: int = 0
    """Seed of the weights, of the order of checkpoints and of the prompts drawn for them."""

    def __post_init__(self) -> None:
        check_positive("training.", max_epochs=self.max_epochs, learning_rate=self.learning_rate)
        # AdamW's first step is ten times as large and must still be a float32.
        if self.learning_rate > 1e30:
            raise LoragenTrainError(f"training.learning_rate is {self.learning_rate}, but must be at most 1e30.")
        check_seed("training.", self.seed)
        for name in ("weight_decay", "mse_weight", "l1_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise LoragenTrainError(f"training.{name} is {getattr(self, name)}, but must be 0 or more and finite.")
        if self.mse_weight == self.l1_weight == 0:
            raise LoragenTrainError("training.mse_weight and training.l1_weight are both 0; there would be no loss.")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: a name and the folder of its LoRA checkpoints."""

    name: str
    """The task as it is called in the prompt files."""
    checkpoint_dir: str
    """Folder that holds the task's checkpoints, at any depth."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The zoo and the prompts."""

    prompts_dir: str = "data"
    """Folder with ``train_prompts.jsonl`` and ``val_prompts.jsonl``, as ``loragen-train prepare`` writes them."""
    checkpoint_dir: str | None = None
    """Folder of LoRA checkpoints of a single task; for several tasks use ``tasks``."""
    tasks: list[TaskConfig] = field(default_factory=list)
    """The tasks, each with its folder of LoRA checkpoints."""
    batch_size: int = 8
    """Number of checkpoints per step."""
    prompts_per_condition: int = 8
    """Number of a task's prompts drawn afresh for every visit of a checkpoint."""
    max_checkpoints: int = 50
    """Most checkpoints used per task: the last ones in natural order."""

    def __post_init__(self) -> None:
        check_positive(
            "data.",
            batch_size=self.batch_size,
            prompts_per_condition=self.prompts_per_condition,
            max_checkpoints=self.max_checkpoints,
        )
        if (self.checkpoint_dir is None) == (not self.tasks):
            raise LoragenTrainError("Give either data.checkpoint_dir (one task) or data.tasks (several), not both.")
        check_task_names([task.name for task in self.tasks])


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """A generator to train, on a zoo of LoRA checkpoints and the prompts of their tasks."""

    data: DataConfig
    """The zoo and the prompts."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The text encoder and the generator."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the generator is trained."""
    name: str = "generator"
    """Name of the experiment; its folder is called ``<name>_<date>_<time>``."""
    output_dir: str = "experiments"
    """Folder that experiment folders are made in."""

    def __post_init__(self) -> None:
        check_task_names([self.name])
