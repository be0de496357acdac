"""Pairs checkpoints with prompts: every visit of a checkpoint sees a fresh random batch of its own task's prompts.

Legend: B batch, P prompts per condition, N tokens, W values per token.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from loragen_train.training.visits import Visit, Visits, draw_prompts
from loragen_train.zoo.tokens import Zoo

__all__ = ["Batch", "Pairs"]


class Batch(NamedTuple):
    """What one step sees."""

    prompts: torch.Tensor
    """``[B, P]``, numbers of prompts in the table of all prompts, int64."""
    mask: torch.Tensor
    """``[B, P]``, bool, true where a prompt counts."""
    tokens: torch.Tensor
    """``[B, N, W]``, tokens of the checkpoints, not yet z-scored."""
    counts: torch.Tensor
    """``[B]``, float32: 1, and 0 where a batch is filled up with a pair that the epoch has seen already."""

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.prompts)


@dataclass(frozen=True)
class Pairs(Visits):
    """Prompts and tokens of a visit, and whether it counts; holds the tokens' file, not their values."""

    zoo: Zoo
    """The checkpoints."""
    prompts: Mapping[str, range]
    """The numbers of each task's prompts."""
    num_prompts: int
    """Prompts per condition."""
    seed: str
    """Seed of the prompts drawn; another one for validation than for training."""
    is_random_count: bool = False
    """Whether a random number of the prompts counts."""

    def __len__(self) -> int:
        return len(self.zoo.tasks)

    def __getitem__(self, visit: Visit) -> tuple[torch.Tensor, ...]:
        known = self.prompts[self.zoo.tasks[visit.member]]
        draw = random.Random(f"{self.seed}/{visit.epoch}/{visit.number}")
        prompts_P, mask_P = draw_prompts(known, self.num_prompts, draw, is_random_count=self.is_random_count)
        counts = torch.tensor(float(visit.number < len(self)))
        return prompts_P, mask_P, self.zoo.tokens[visit.member].clone(), counts

    def collate(self, drawn: list[tuple[torch.Tensor, ...]]) -> Batch:
        """Return a batch of pairs."""
        return Batch(*map(torch.stack, zip(*drawn, strict=True)))
