"""Pairs checkpoints with prompts: every visit of a checkpoint sees a fresh random batch of its own task's prompts.

The order of visits and the prompts of each follow from the seed and the visit's number alone. So a run that resumes
in the middle of an epoch goes on with the visit after the last one, and several processes share an epoch without
talking: each takes its part of every global batch.

Legend: B batch, P prompts per condition, N tokens, W values per token.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from loragen_train.configs.fit import DataConfig
from loragen_train.training.condition import PromptTable
from loragen_train.zoo.tokens import Zoo

__all__ = ["Batch", "PairLoader", "ZooDataModule"]


class Batch(NamedTuple):
    """What one step sees."""

    prompts: torch.Tensor
    """``[B, P]``, numbers of prompts in the table of all prompts, int64."""
    tokens: torch.Tensor
    """``[B, N, W]``, tokens of the checkpoints, not yet z-scored."""
    counts: torch.Tensor
    """``[B]``, float32: 1, and 0 where a batch is filled up with a pair that the epoch has seen already."""


class _Visit(NamedTuple):
    """One visit of a checkpoint."""

    epoch: int
    number: int
    checkpoint: int


@dataclass(frozen=True)
class _Pairs(Dataset[tuple[torch.Tensor, ...]]):
    """Prompts and tokens of a visit, and whether it counts; holds the tokens' file, not their values."""

    zoo: Zoo
    prompts: Mapping[str, range]
    num_prompts: int
    seed: str

    def __getitem__(self, visit: _Visit) -> tuple[torch.Tensor, ...]:
        known = self.prompts[self.zoo.tasks[visit.checkpoint]]
        draw = random.Random(f"{self.seed}/{visit.epoch}/{visit.number}")
        # A task with fewer prompts than asked for repeats some.
        choose = draw.sample if len(known) >= self.num_prompts else draw.choices
        counts = torch.tensor(float(visit.number < len(self.zoo.tasks)))
        return torch.tensor(choose(known, k=self.num_prompts)), self.zoo.tokens[visit.checkpoint].clone(), counts


def _collate(pairs: list[tuple[torch.Tensor, ...]]) -> Batch:
    return Batch(*map(torch.stack, zip(*pairs, strict=True)))


@dataclass
class PairLoader:
    """Batches of pairs, epoch after epoch, with a position that can be saved in the middle of one.

    An epoch visits every checkpoint once; the last global batch is filled up with visits of some again, which do not
    count, so that all batches, on all devices, are of one size.
    """

    zoo: Zoo
    """The checkpoints."""
    prompts: Mapping[str, range]
    """The numbers of each task's prompts."""
    config: DataConfig
    """Batch size and prompts per condition."""
    seed: str
    """Seed of order and prompts; another one for validation than for training."""
    shuffle: bool
    """True: another order every epoch, and other prompts. False: every epoch is the same."""
    rank: int = 0
    """Number of this process among ``world_size``."""
    world_size: int = 1
    """Number of processes that share a global batch."""
    num_workers: int = 0
    """Processes that read ahead."""
    position: tuple[int, int] = (0, 0)
    """The epoch, and the number of its batches that are done; setting it goes on from there."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.zoo.tasks) // (self.config.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch that the position is in; of the next one where nothing is left."""
        epoch, num_done = self.position
        if num_done == len(self):
            epoch, num_done = epoch + 1, 0
        pairs = _Pairs(self.zoo, self.prompts, self.config.prompts_per_condition, self.seed)
        batches, workers = self._visits(epoch if self.shuffle else 0)[num_done:], self.num_workers
        for batch in DataLoader(pairs, batch_sampler=batches, collate_fn=_collate, num_workers=workers):
            # Counted before it is handed out: whoever saves the position has seen this batch.
            num_done += 1
            self.position = epoch, num_done
            yield batch

    def _visits(self, epoch: int) -> list[list[_Visit]]:
        order = list(range(len(self.zoo.tasks)))
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        own = self.config.batch_size
        size = own * self.world_size
        visits = [_Visit(epoch, number, order[number % len(order)]) for number in range(len(self) * size)]
        return [visits[first : first + own] for first in range(self.rank * own, len(visits), size)]


class ZooDataModule(LightningDataModule):
    """The training and validation pairs; validation uses prompts that training never sees.

    Args:
        zoo: The tokenized checkpoints.
        table: The prompts by number.
        config: Batch size and prompts per condition.
        seed: Seed of the order of checkpoints and of the prompts drawn.
        num_workers: Processes that read ahead, per device.
    """

    def __init__(self, zoo: Zoo, table: PromptTable, config: DataConfig, *, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        self._zoo, self._table, self._config = zoo, table, config
        self._seed, self._num_workers = seed, num_workers
        self._train_loader: PairLoader | None = None
        self._resume_from = (0, 0)

    def train_dataloader(self) -> PairLoader:
        """Another order and other prompts every epoch."""
        self._train_loader = self._loader(self._table.train, f"{self._seed}/train", shuffle=True)
        self._train_loader.position = self._resume_from
        return self._train_loader

    def val_dataloader(self) -> PairLoader:
        """Every checkpoint, always with the same validation prompts."""
        return self._loader(self._table.val, f"{self._seed}/val", shuffle=False)

    def _loader(self, prompts: dict[str, range], seed: str, *, shuffle: bool) -> PairLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        return PairLoader(self._zoo, prompts, self._config, seed, shuffle, rank, world_size, self._num_workers)

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data.

        It is kept here and not by the loader, whose state Lightning 2.6 drops where it asks for the number of batches
        before it restores.
        """
        epoch, num_done = self._train_loader.position if self._train_loader is not None else self._resume_from
        return {"epoch": epoch, "num_done": num_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the position in ``state_dict``."""
        self._resume_from = state_dict["epoch"], state_dict["num_done"]
        if self._train_loader is not None:
            self._train_loader.position = self._resume_from
