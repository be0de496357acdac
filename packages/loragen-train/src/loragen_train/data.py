"""Pairs checkpoints with prompts: every visit of a checkpoint sees a fresh random batch of its own task's prompts.

Legend: B batch, P prompts per condition, D embedding size, N tokens, W values per token.
"""

import random

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from loragen_train.config import DataConfig
from loragen_train.zoo import Zoo

__all__ = ["CheckpointPromptPairs", "ZooDataModule"]

Pair = tuple[torch.Tensor, torch.Tensor]


class CheckpointPromptPairs(Dataset[Pair]):
    """One pair (condition ``[P, D]``, target tokens ``[N, W]``) per checkpoint.

    Which prompts a checkpoint is paired with depends on ``seed`` and the index alone, so that an epoch can be
    repeated to the bit whatever was drawn before it. A task with fewer than P prompts repeats some.
    """

    def __init__(self, zoo: Zoo, embeddings: dict[str, torch.Tensor], num_prompts: int, seed: str) -> None:
        self._zoo = zoo
        self._embeddings = embeddings
        self._num_prompts = num_prompts
        self._seed = seed

    def __len__(self) -> int:
        return len(self._zoo.tasks)

    def __getitem__(self, index: int) -> Pair:
        embeddings = self._embeddings[self._zoo.tasks[index]]
        draw = random.Random(f"{self._seed}/{index}")
        if len(embeddings) >= self._num_prompts:
            chosen = draw.sample(range(len(embeddings)), self._num_prompts)
        else:
            chosen = draw.choices(range(len(embeddings)), k=self._num_prompts)
        return embeddings[chosen], self._zoo.tokens[index]


class ZooDataModule(LightningDataModule):
    """The training and validation pairs; validation uses prompts that training never sees.

    Args:
        zoo: The tokenized checkpoints.
        train: Prompt embeddings ``[num_prompts, D]`` of each task.
        val: The same for the validation prompts.
        config: Batch size and prompts per condition.
        seed: Seed of the order of checkpoints and of the prompts drawn.
    """

    def __init__(
        self,
        zoo: Zoo,
        *,
        train: dict[str, torch.Tensor],
        val: dict[str, torch.Tensor],
        config: DataConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self._zoo, self._train, self._val, self._config, self._seed = zoo, train, val, config, seed

    def train_dataloader(self) -> DataLoader[Pair]:
        """A fresh epoch: the trainer reloads this every epoch, and order and prompts follow from its number."""
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        pairs = self._pairs(self._train, f"{self._seed}/train/{epoch}")
        order = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return DataLoader(pairs, batch_size=self._config.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Pair]:
        """Every checkpoint once, always with the same validation prompts."""
        return DataLoader(self._pairs(self._val, f"{self._seed}/val"), batch_size=self._config.batch_size)

    def _pairs(self, embeddings: dict[str, torch.Tensor], seed: str) -> CheckpointPromptPairs:
        return CheckpointPromptPairs(self._zoo, embeddings, self._config.prompts_per_condition, seed)
