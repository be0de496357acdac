"""The section ``training.unseen`` of a fit configuration: held-out tasks that are watched while a generator trains."""

from dataclasses import dataclass
from typing import Literal

from loragen_train.configs.collect import check_positive
from loragen_train.errors import LoragenTrainError

__all__ = ["UnseenConfig"]


@dataclass(frozen=True, kw_only=True)
class UnseenConfig:
    """How the held-out tasks of the zoo are watched, and with them the best weights chosen."""

    enabled: bool | Literal["auto"] = "auto"
    """Score adapters generated for the held-out tasks with the base model, before the first step and at every
    validation. ``auto``: where the zoo has such tasks with test samples, and this machine has the base model; True: an
    error where that is not so."""
    max_samples: int = 16
    """Most test samples per held-out task."""
    num_wrong_tasks: int = 1
    """Number of other held-out tasks whose prompts each task is also scored with, for the steering margin."""

    def __post_init__(self) -> None:
        if self.enabled not in (True, False, "auto"):
            raise LoragenTrainError(f"training.unseen.enabled is {self.enabled!r}, but must be true, false or auto.")
        check_positive("training.unseen.", max_samples=self.max_samples, num_wrong_tasks=self.num_wrong_tasks)
