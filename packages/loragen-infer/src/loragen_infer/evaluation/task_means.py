"""What a bundle remembers of every training task: its mean prompt embedding and its mean tokens.

Evaluation needs no more of the training set for its baselines: the nearest training task's adapter, and a regression
from embeddings to adapters. Generation does not use it.

Legend: K training tasks, D width of a prompt embedding, N tokens, W values per token.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loragen_infer.errors import LoragenInferError

__all__ = ["TaskMeans"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskMeans:
    """Means over the prompts and over the checkpoints of each training task.

    Raises:
        LoragenInferError: The parts differ in the number of tasks, a name is there twice, or a value is not finite.

    Example:
        >>> means = TaskMeans(
        ...     names=("sums", "capitals"), condition_means=torch.zeros(2, 384), token_means=torch.zeros(2, 600, 384)
        ... )
        >>> means.token_means[means.names.index("capitals")].shape
        torch.Size([600, 384])
    """

    names: tuple[str, ...]
    """Names of the K tasks."""
    condition_means: Tensor
    """float32 ``[K, D]``: mean of the L2-normalised embeddings of the task's training prompts, not normalised again."""
    token_means: Tensor
    """float32 ``[K, N, W]``: mean of the tokens of the task's checkpoints, as encoded (not z-scored)."""

    def __post_init__(self) -> None:
        count, condition, tokens = len(self.names), self.condition_means, self.token_means
        if condition.dim() != 2 or tokens.dim() != 3 or not count == len(condition) == len(tokens) > 0:
            raise LoragenInferError(
                f"the task means have {count} names, embeddings {tuple(condition.shape)} and tokens "
                f"{tuple(tokens.shape)}, where K names, [K, D] and [K, N, W] with K over 0 belong."
            )
        if len(set(self.names)) < count:
            name = next(name for name in self.names if self.names.count(name) > 1)
            raise LoragenInferError(f"the task means have the task {name!r} twice; give every task a name of its own.")
        for what, tensor in (("embeddings", condition), ("tokens", tokens)):
            if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
                raise LoragenInferError(
                    f"the {what} of the task means are {tensor.dtype} or hold NaN or Inf; give finite float32."
                )

    def to_tensors(self) -> dict[str, Tensor]:
        """The tensors, to put into another safetensors file; the names are not among them."""
        return {"condition_means": self.condition_means, "token_means": self.token_means}

    @classmethod
    def from_tensors(cls, names: str, tensors: Mapping[str, Tensor]) -> "TaskMeans":
        """The inverse of :meth:`to_tensors`; ``names`` is :meth:`names_json`.

        Raises:
            LoragenInferError: As the class; or a tensor or a name is missing.
        """
        listed = json.loads(names)
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise LoragenInferError("the names of the task means are no list of texts.")
        missing = sorted({"condition_means", "token_means"} - tensors.keys())
        if missing:
            raise LoragenInferError(f"the task means lack the tensor {missing[0]!r}.")
        return cls(
            names=tuple(listed),
            condition_means=tensors["condition_means"],
            token_means=tensors["token_means"],
        )

    def names_json(self) -> str:
        """The names as a JSON list."""
        return json.dumps(list(self.names))
