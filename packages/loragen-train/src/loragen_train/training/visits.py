"""Visits: which checkpoint or task is seen when, and with which of its prompts.

The order of visits and what each of them draws follow from the seed and the visit's number alone. So a run that resumes
in the middle of an epoch goes on with the visit after the last one, and several processes share an epoch without
talking: each takes its part of every global batch.

Legend: P prompts per condition.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

__all__ = ["Visit", "VisitLoader", "Visits", "draw_prompts"]


class Visit(NamedTuple):
    """One visit of a checkpoint or task."""

    epoch: int
    number: int
    """Its place in the epoch; of repeats, which fill up the last batch, it is that or more."""
    member: int
    """Which checkpoint or task."""


class Visits(Dataset[Any], ABC):
    """What there is to visit, and what is drawn for a visit."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of checkpoints or tasks; an epoch visits each once."""

    @abstractmethod
    def __getitem__(self, visit: Visit) -> Any:
        """Return what one visit sees."""

    @abstractmethod
    def collate(self, drawn: list[Any]) -> Any:
        """Return a batch of such."""


def draw_prompts(
    known: range, num_prompts: int, draw: random.Random, *, is_random_count: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw prompts of one task, ``[P]``, and say which of them count, bool ``[P]``: all, or a random number of them.

    The places that do not count repeat the first prompt, so that no encoder has more to do.
    """
    # A task with fewer prompts than asked for repeats some.
    choose = draw.sample if len(known) >= num_prompts else draw.choices
    chosen_P = torch.tensor(choose(known, k=num_prompts))
    count = draw.randint(1, num_prompts) if is_random_count else num_prompts
    mask_P = torch.arange(num_prompts) < count
    return torch.where(mask_P, chosen_P, chosen_P[0]), mask_P


@dataclass
class VisitLoader:
    """Batches of visits, epoch after epoch, with a position that can be saved in the middle of one.

    An epoch visits every member once; the last global batch is filled up with visits of some again, so that all
    batches, on all devices, are of one size.
    """

    visits: Visits
    """What there is to visit."""
    batch_size: int
    """Visits per batch and device."""
    seed: str
    """Seed of the order."""
    shuffle: bool
    """True: another order every epoch, and other draws. False: every epoch is the same."""
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
        return -(-len(self.visits) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Any]:
        """What is left of the epoch that the position is in; of the next one where nothing is left."""
        epoch, num_done = self.position
        if num_done == len(self):
            epoch, num_done = epoch + 1, 0
        batches = self._batches(epoch if self.shuffle else 0)[num_done:]
        loader: DataLoader[Any] = DataLoader(
            self.visits, batch_sampler=batches, collate_fn=self.visits.collate, num_workers=self.num_workers
        )
        for batch in loader:
            # Counted before it is handed out: whoever saves the position has seen this batch.
            num_done += 1
            self.position = epoch, num_done
            yield batch

    def _batches(self, epoch: int) -> list[list[Visit]]:
        order = list(range(len(self.visits)))
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        own = self.batch_size
        size = own * self.world_size
        visits = [Visit(epoch, number, order[number % len(order)]) for number in range(len(self) * size)]
        return [visits[first : first + own] for first in range(self.rank * own, len(visits), size)]
