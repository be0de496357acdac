"""What the generator is conditioned on: the embeddings of numbered prompts, looked up or, with a trained encoder, made.

Legend: n prompts in all, B batch, P prompts per condition, D embedding size.
"""

from collections.abc import Mapping

import torch
from loragen_infer.encoder.encoder import PromptEncoder
from torch import nn

from loragen_train.prompts.table import TaskPrompts

__all__ = ["FrozenCondition", "PromptTable", "TrainedCondition"]


class PromptTable:
    """All prompts under one numbering.

    Example:
        >>> table = PromptTable(TaskPrompts(train={"a": ["x", "y"], "b": ["z"]}, val={"a": ["u"], "b": ["v"]}))
        >>> table.texts, table.train, table.val["b"]
        (['x', 'y', 'z', 'u', 'v'], {'a': range(0, 2), 'b': range(2, 3)}, range(4, 5))
    """

    def __init__(self, prompts: TaskPrompts, held_out: Mapping[str, list[str]] | None = None) -> None:
        self.texts: list[str] = []
        """The prompts by number."""
        self.train = self._append(prompts.train)
        """The numbers of each task's training prompts, which come before all others."""
        self.num_train = len(self.texts)
        """How many training prompts there are."""
        self.val = self._append(prompts.val)
        """The numbers of each task's validation prompts."""
        self.held_out = self._append(held_out or {})
        """The numbers of the held-out tasks' prompts, which no pair of training or validation has."""

    def _append(self, prompts: Mapping[str, list[str]]) -> dict[str, range]:
        numbers = {}
        for task, texts in prompts.items():
            numbers[task] = range(len(self.texts), len(self.texts) + len(texts))
            self.texts += texts
        return numbers


class FrozenCondition(nn.Module):
    """Embeddings that were made once.

    Args:
        embeddings_nD: One row per prompt.
    """

    embeddings: torch.Tensor

    def __init__(self, embeddings_nD: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings_nD, persistent=False)

    def forward(self, prompts_BP: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, P, D]``, float32, of prompts by number."""
        return self.embeddings[prompts_BP]


class TrainedCondition(nn.Module):
    """Embeddings that an encoder makes at every step, with gradients.

    Args:
        encoder: Its network is trained, and becomes a part of this module.
        texts: The prompts by number.
    """

    def __init__(self, encoder: PromptEncoder, texts: list[str]) -> None:
        super().__init__()
        self._encoder, self._texts = encoder, texts
        self.network = encoder.module.requires_grad_(True)

    def forward(self, prompts_BP: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, P, D]``, float32, of prompts by number; a prompt that occurs twice is encoded once."""
        different, place_BP = torch.unique(prompts_BP, return_inverse=True)
        features = self._encoder.tokenize([self._texts[number] for number in different.tolist()])
        embeddings: torch.Tensor = self._encoder.embed(features)[place_BP]
        return embeddings
