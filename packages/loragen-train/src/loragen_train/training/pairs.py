"""Pairs checkpoints with prompts: every visit of a checkpoint sees a fresh random batch of its own task's prompts.

The order of visits and the prompts of each follow from the seed and the visit's number alone. So a run that resumes
in the middle of an epoch goes on with the visit after the last one, and several processes share an epoch without
talking: each takes its part of every global batch.

Legend: B batch, P prompts per condition, N tokens, W values per token.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lora_tokenizer import TokenSet
from torch.utils.data import DataLoader, Dataset

from loragen_train.configs.fit import DataConfig
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


class _Pairs(Dataset[tuple[torch.Tensor, ...]]):
    """Prompts and tokens of a visit, and whether it counts; holds the tokens' file, not their values."""

    def __init__(
        self, tokens: TokenSet, tasks: list[str], prompts: dict[str, range], num_prompts: int, seed: str
    ) -> None:
        self._tokens, self._tasks, self._prompts = tokens, tasks, prompts
        self._num_prompts, self._seed = num_prompts, seed

    def __getitem__(self, visit: _Visit) -> tuple[torch.Tensor, ...]:
        known = self._prompts[self._tasks[visit.checkpoint]]
        draw = random.Random(f"{self._seed}/{visit.epoch}/{visit.number}")
        # A task with fewer prompts than asked for repeats some.
        enough = len(known) >= self._num_prompts
        chosen = draw.sample(known, self._num_prompts) if enough else draw.choices(known, k=self._num_prompts)
        counts = torch.tensor(float(visit.number < len(self._tasks)))
        return torch.tensor(chosen), self._tokens[visit.checkpoint].clone(), counts


def _collate(pairs: list[tuple[torch.Tensor, ...]]) -> Batch:
    return Batch(*map(torch.stack, zip(*pairs, strict=True)))


class PairLoader:
    """Batches of pairs, epoch after epoch, with a position that can be saved in the middle of one.

    An epoch visits every checkpoint once; the last global batch is filled up with visits of some again, which do not
    count, so that all batches, on all devices, are of one size.

    Args:
        zoo: The checkpoints.
        prompts: The numbers of each task's prompts.
        config: Batch size and prompts per condition.
        seed: Seed of order and prompts; another one for validation than for training.
        shuffle: True: another order every epoch, and other prompts. False: every epoch is the same.
        rank, world_size: Number of this process among those that share a global batch.
        num_workers: Processes that read ahead.
    """

    def __init__(
        self,
        zoo: Zoo,
        prompts: dict[str, range],
        config: DataConfig,
        *,
        seed: str,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self._dataset = _Pairs(zoo.tokens, zoo.tasks, prompts, config.prompts_per_condition, seed)
        self._num_checkpoints = len(zoo.tasks)
        self._batch_size = config.batch_size
        self._seed, self._shuffle = seed, shuffle
        self._rank, self._world_size, self._num_workers = rank, world_size, num_workers
        self._epoch = 0
        self._num_done = 0

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self._num_checkpoints // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch that the position is in; of the next one where nothing is left."""
        if self._num_done == len(self):
            self._epoch, self._num_done = self._epoch + 1, 0
        batches = self._visits(self._epoch)[self._num_done :]
        workers = self._num_workers
        for batch in DataLoader(self._dataset, batch_sampler=batches, collate_fn=_collate, num_workers=workers):
            # Counted before it is handed out: whoever saves the position has seen this batch.
            self._num_done += 1
            yield batch

    def _visits(self, epoch: int) -> list[list[_Visit]]:
        order = list(range(self._num_checkpoints))
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
        else:
            epoch = 0
        size = self._batch_size * self._world_size
        visits = [_Visit(epoch, number, order[number % self._num_checkpoints]) for number in range(len(self) * size)]
        start = self._rank * self._batch_size
        return [visits[first + start : first + start + self._batch_size] for first in range(0, len(visits), size)]

    @property
    def position(self) -> tuple[int, int]:
        """The epoch, and the number of its batches that are done; setting it goes on from there."""
        return self._epoch, self._num_done

    @position.setter
    def position(self, value: tuple[int, int]) -> None:
        self._epoch, self._num_done = value


class ZooDataModule(LightningDataModule):
    """The training and validation pairs; validation uses prompts that training never sees.

    Args:
        zoo: The tokenized checkpoints.
        train: The numbers of each task's training prompts in the table of all prompts.
        val: The same for the validation prompts.
        config: Batch size and prompts per condition.
        seed: Seed of the order of checkpoints and of the prompts drawn.
        num_workers: Processes that read ahead, per device.
    """

    def __init__(
        self,
        zoo: Zoo,
        *,
        train: dict[str, range],
        val: dict[str, range],
        config: DataConfig,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self._zoo, self._train, self._val, self._config = zoo, train, val, config
        self._seed, self._num_workers = seed, num_workers
        self._train_loader: PairLoader | None = None
        self._resume_from = (0, 0)

    def train_dataloader(self) -> PairLoader:
        """Another order and other prompts every epoch."""
        self._train_loader = self._loader(self._train, f"{self._seed}/train", shuffle=True)
        self._train_loader.position = self._resume_from
        return self._train_loader

    def val_dataloader(self) -> PairLoader:
        """Every checkpoint, always with the same validation prompts."""
        return self._loader(self._val, f"{self._seed}/val", shuffle=False)

    def _loader(self, prompts: dict[str, range], seed: str, *, shuffle: bool) -> PairLoader:
        return PairLoader(
            self._zoo,
            prompts,
            self._config,
            seed=seed,
            shuffle=shuffle,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self.trainer.world_size if self.trainer is not None else 1,
            num_workers=self._num_workers,
        )

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
