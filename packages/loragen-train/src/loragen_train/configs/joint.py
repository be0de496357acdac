"""The configuration of ``loragen-train joint``."""

from dataclasses import dataclass, field
from typing import Literal

from loragen_train.configs.collect import LoraTraining, check_positive, check_seed

__all__ = ["JointConfig"]


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """One adapter to train on all training tasks of a zoo that is there."""

    zoo: str = "zoo"
    """Folder of the zoo; its samples are what ``import`` or ``collect`` wrote there."""
    base_model: str | None = None
    """Causal language model: a hub name, a local folder or a .gguf file; by default the one that the zoo names."""
    steps: int | None = None
    """Number of optimizer steps in all; by default ``training.max_steps`` for every training task."""
    folds: int | Literal["auto"] = "auto"
    """As ``joint_folds`` of ``collect``: 2 from 50 training tasks on, else 1."""
    training: LoraTraining = field(default_factory=LoraTraining)
    """The training."""
    seed: int = 0
    """Seed of the initialisation, where the zoo has none, and of the order of samples."""

    def __post_init__(self) -> None:
        check_positive("", steps=self.steps)
        if self.folds != "auto":
            check_positive("", folds=self.folds)
        check_seed("", self.seed)
