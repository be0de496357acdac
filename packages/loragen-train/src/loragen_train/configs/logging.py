"""The section ``logging`` of a fit configuration: where the curves of a training are shown."""

from dataclasses import dataclass, field
from typing import Literal

from loragen_train.errors import LoragenTrainError

__all__ = ["LoggingConfig", "SwanLabConfig"]


@dataclass(frozen=True, kw_only=True)
class SwanLabConfig:
    """SwanLab; what is not given comes from SWANLAB_PROJECT, SWANLAB_WORKSPACE and SwanLab's own settings."""

    project: str | None = None
    """Project; by default ``loragen-<name of the experiment>``."""
    workspace: str | None = None
    """Team workspace; by default your own."""
    experiment_name: str | None = None
    """Name of the run; by default the name of the experiment's folder."""
    mode: Literal["auto", "online", "local", "offline", "disabled"] = "auto"
    """``online`` needs a key and a network and else falls back to ``offline`` with a sentence, ``auto`` is the mode
    of SWANLAB_MODE or online, ``local`` has a dashboard on this machine, ``offline`` can be synchronised later."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What records the training, besides ``csv_logs/metrics.csv``."""

    swanlab: SwanLabConfig = field(default_factory=SwanLabConfig)
    """SwanLab, in ``swanlab_logs/``."""
    tensorboard: bool = True
    """Write ``tensorboard_logs/``."""
    every_n_steps: int = 10
    """Steps between the logged losses of single steps, ``train_loss_step``; 0: none. Means are logged every epoch."""

    def __post_init__(self) -> None:
        if self.every_n_steps < 0:
            raise LoragenTrainError(f"logging.every_n_steps is {self.every_n_steps}, but must be 0 or more.")
