"""What the steps of a training see, phase by phase, from a position that a resumed run goes on from.

Validation is of the objective of the phase that the training is in, with prompts and samples that no step sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule

from loragen_train.configs.objectives import ObjectiveName
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.visits import VisitLoader, Visits

__all__ = ["ObjectiveData", "TrainingDataModule"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveData:
    """The visits of one objective."""

    train: Visits
    """What is trained on: other draws every epoch."""
    val: Visits
    """What is validated with: always the same."""
    batch_size: int
    """Visits per batch and device."""


class TrainingDataModule(LightningDataModule):
    """The batches of a training and of its validations.

    Args:
        data: The visits of every objective.
        config: The phases, the seed of the order of visits, and the processes that read ahead.
    """

    def __init__(self, data: Mapping[ObjectiveName, ObjectiveData], config: TrainingConfig) -> None:
        super().__init__()
        self._data, self._config = data, config
        self._train_loader: VisitLoader | None = None
        self._resume_from = (0, 0)

    @property
    def num_batches(self) -> dict[ObjectiveName, int]:
        """Batches of an epoch of every objective."""
        return {objective: len(self._loader(objective, is_training=True)) for objective in self._data}

    def train_dataloader(self) -> VisitLoader:
        """The batches of the epoch that is to be gone on with, or begun; asked for anew where phases differ."""
        epoch, num_done = self._position
        loader = self._loader(self._config.phase_of(epoch).objective, is_training=True)
        if num_done == len(loader):
            epoch, num_done = epoch + 1, 0
            loader = self._loader(self._config.phase_of(epoch).objective, is_training=True)
        loader.position = epoch, num_done
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> VisitLoader:
        """Every checkpoint or task, always with the same validation prompts and samples."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        return self._loader(self._config.phase_of(epoch).objective, is_training=False)

    @property
    def _position(self) -> tuple[int, int]:
        return self._resume_from if self._train_loader is None else self._train_loader.position

    def _loader(self, objective: ObjectiveName, *, is_training: bool) -> VisitLoader:
        data = self._data[objective]
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return VisitLoader(
            data.train if is_training else data.val,
            data.batch_size,
            f"{self._config.seed}/{'train' if is_training else 'val'}",
            is_training,
            rank,
            world_size,
            self._config.num_workers,
        )

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data.

        It is kept here and not by the loader, whose state Lightning 2.6 drops where it asks for the number of batches
        before it restores.
        """
        epoch, num_done = self._position
        return {"epoch": epoch, "num_done": num_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the position in ``state_dict``."""
        self._resume_from = state_dict["epoch"], state_dict["num_done"]
        if self._train_loader is not None:
            self._train_loader.position = self._resume_from
