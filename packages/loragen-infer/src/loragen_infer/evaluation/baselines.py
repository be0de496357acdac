"""The two baselines that know the training tasks: the nearest one's adapter, and linear ridge regression.

Both answer with weights over the training tasks, by which their mean tokens are averaged; so no more than one task's
tokens (or a slice of all) are in memory, and a baseline costs no more than products of task by task.

Ridge regression maps a mean prompt embedding to mean tokens (:func:`hyperconv.fit_ridge`). It is asked about the mean
of few prompts, and so it is fitted on such: on means over subsets, as large, of each training task's prompts.

Legend: K training tasks, P prompts of a task, S subsets of a task, D width of an embedding, N tokens, W values per
token.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from hyperconv import RidgeFit, fit_ridge
from torch import Tensor

from loragen_infer.evaluation.task_means import TaskMeans

__all__ = ["Ridge", "gram_of", "nearest_task", "subset_means"]

NUM_SUBSETS = 8
_CHUNK_VALUES = 1 << 24


def nearest_task(tasks: TaskMeans, condition_D: Tensor, among: Sequence[int]) -> int:
    """Return the training task, of those numbered, whose mean prompt embedding has the least angle to this one."""
    similarity = torch.nn.functional.cosine_similarity(tasks.condition_means[list(among)], condition_D[None])
    return among[int(similarity.argmax())]


def subset_means(prompts: Sequence[Tensor], num_prompts: int, *, num_subsets: int = NUM_SUBSETS) -> Tensor:
    """Return means ``[K, S, D]`` over random subsets of each task's prompts, what ridge regression is fitted on.

    Args:
        prompts: Embeddings ``[P, D]`` of every task's prompts; of a task the same subsets are drawn whenever it stands
            at the same place.
        num_prompts: Size of a subset: as many prompts as the fit will be asked about; of fewer all are taken.
        num_subsets: S.
    """

    def drawn(task: int, prompts_PD: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(task)
        subsets = [torch.randperm(len(prompts_PD), generator=random)[:num_prompts] for _ in range(num_subsets)]
        return torch.stack([prompts_PD[subset].mean(dim=0) for subset in subsets])

    return torch.stack([drawn(task, prompts_PD) for task, prompts_PD in enumerate(prompts)])


def gram_of(token_means: Any) -> Tensor:
    """Return the inner products, float64 ``[K, K]``, of token means ``[K, N, W]``, each token less its mean.

    ``token_means`` is a tensor, or a slice of a file, which is read in parts.
    """
    num_tasks, (num_tokens, width) = len(token_means[:, :1]), token_means[0].shape
    gram_KK = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    step = max(1, _CHUNK_VALUES // (num_tasks * width))
    for start in range(0, num_tokens, step):
        part_KV = token_means[:, start : start + step].flatten(1)
        part_KV = part_KV - part_KV.mean(dim=0)
        gram_KK += (part_KV @ part_KV.T).double()
    return gram_KK


class Ridge:
    """Linear ridge regression from mean prompt embeddings to adapters."""

    def __init__(self, tasks: TaskMeans) -> None:
        self._tasks = tasks
        # Of an older bundle the means over all prompts are all there is.
        self._prompts = tasks.prompt_embeddings or list(tasks.condition_means[:, None])
        self._fits: dict[tuple[tuple[int, ...], int], RidgeFit] = {}

    def tokens(self, condition_D: Tensor, *, among: Sequence[int], num_prompts: int) -> Tensor:
        """Return the tokens, float32 ``[N, W]``, predicted for a mean embedding of ``num_prompts`` prompts.

        Only the training tasks numbered in ``among`` are fitted on.
        """
        weights_K = self._fit(tuple(among), num_prompts).task_weights(condition_D[None])[0]
        total_NW = torch.zeros_like(self._tasks.token_means[0])
        for index, weight in zip(among, weights_K.tolist(), strict=True):
            total_NW.add_(self._tasks.token_means[index], alpha=weight)
        return total_NW

    def _fit(self, among: tuple[int, ...], num_prompts: int) -> RidgeFit:
        key = (among, num_prompts)
        if key not in self._fits:
            chosen = list(among)
            rows_KSD = subset_means(self._prompts, num_prompts)[chosen]
            self._fits[key] = fit_ridge(rows_KSD, self._gram[chosen][:, chosen])
        return self._fits[key]

    @cached_property
    def _gram(self) -> Tensor:
        return gram_of(self._tasks.token_means)
