"""The two baselines that know the training tasks: the nearest one's adapter, and kernel ridge regression.

Both answer with weights over the training tasks, by which their mean tokens are averaged; so no more than one task's
tokens (or a slice of all) are in memory, and a baseline costs no more than products of task by task.

Kernel ridge regression maps a mean prompt embedding to mean tokens, with an intercept that is not penalised (kernel and
targets are centred) and a Gaussian kernel. It is asked about the mean of few prompts, and so it is fitted on such: on
means over subsets, as large, of each training task's prompts. Width and penalty are those of least squared error when
each training task is left out once; that error follows from the fit on all by (I - H_kk)⁻¹ r_k, with H the matrix that
smooths the targets and k the rows of a task (R. D. Cook and S. Weisberg, Residuals and Influence in Regression, 1982).

Legend: K training tasks, D width of an embedding, N tokens, W values per token, S subsets of a task, n = K · S rows.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loragen_infer.evaluation.task_means import TaskMeans

__all__ = ["Ridge", "RidgeSettings", "nearest_task"]

Array = NDArray[np.float64]

# Widths in units of the median squared distance between tasks; the kernel is 1 at distance 0, so that a penalty of 10
# all but keeps the mean and one of 0.001 all but interpolates.
_WIDTHS = (4.0, 1.0, 0.25)
_PENALTIES = tuple(10.0**exponent for exponent in np.arange(1, -3.5, -0.5))
_MAX_SUBSETS = 8
_MAX_ROWS = 1024
_CHUNK_VALUES = 1 << 24


class RidgeSettings(NamedTuple):
    """What leaving out one training task at a time has chosen: of exp(-gamma · squared distance), and the penalty."""

    gamma: float
    penalty: float


def nearest_task(tasks: TaskMeans, condition_D: torch.Tensor, among: Sequence[int]) -> int:
    """Return the training task, of those numbered, whose mean prompt embedding has the least angle to this one."""
    similarity = torch.nn.functional.cosine_similarity(tasks.condition_means[list(among)], condition_D[None])
    return among[int(similarity.argmax())]


class Ridge:
    """Kernel ridge regression from mean prompt embeddings to adapters."""

    def __init__(self, tasks: TaskMeans) -> None:
        self._tasks = tasks
        # Of an older bundle the means over all prompts are all there is.
        self._prompts = tasks.prompt_embeddings or list(tasks.condition_means[:, None])
        self._fits: dict[tuple[tuple[int, ...], int], tuple[Array, RidgeSettings]] = {}

    def tokens(self, condition_D: torch.Tensor, *, among: Sequence[int], num_prompts: int) -> torch.Tensor:
        """Return the tokens, float32 ``[N, W]``, predicted for a mean embedding of ``num_prompts`` prompts.

        Only the training tasks numbered in ``among`` are fitted on; of a single one its tokens are returned.
        """
        if len(among) == 1:
            only_NW: torch.Tensor = self._tasks.token_means[among[0]]
            return only_NW
        rows_nD, settings = self._fit(tuple(among), num_prompts)
        weights = _weights(rows_nD, condition_D.double().numpy()[None], settings, len(among))[0]
        total_NW = torch.zeros_like(self._tasks.token_means[0])
        for index, weight in zip(among, weights, strict=True):
            total_NW.add_(self._tasks.token_means[index], alpha=float(weight))
        return total_NW

    def _fit(self, among: tuple[int, ...], num_prompts: int) -> tuple[Array, RidgeSettings]:
        key = (among, num_prompts)
        if key not in self._fits:
            num_subsets = max(1, min(_MAX_SUBSETS, _MAX_ROWS // len(among)))
            rows_nD = np.concatenate([self._subset_means(task, num_prompts, num_subsets) for task in among])
            self._fits[key] = rows_nD, _choose(rows_nD, self._gram[np.ix_(among, among)])
        return self._fits[key]

    def _subset_means(self, task: int, num_prompts: int, num_subsets: int) -> Array:
        """Means ``[S, D]`` over random subsets of the task's prompts, or of all of them where they are no more."""
        prompts_PD = self._prompts[task]
        random = torch.Generator().manual_seed(task)
        drawn = [torch.randperm(len(prompts_PD), generator=random)[:num_prompts] for _ in range(num_subsets)]
        means: Array = torch.stack([prompts_PD[subset].mean(dim=0) for subset in drawn]).double().numpy()
        return means

    @cached_property
    def _gram(self) -> Array:
        """Inner products ``[K, K]`` of all tasks' tokens, each token less its mean over the tasks."""
        num_tasks, (num_tokens, width) = len(self._tasks.names), self._tasks.token_means[0].shape
        gram: Array = np.zeros((num_tasks, num_tasks))
        step = max(1, _CHUNK_VALUES // (num_tasks * width))
        for start in range(0, num_tokens, step):
            part_KV = self._tasks.token_means[:, start : start + step].flatten(1)
            part_KV = part_KV - part_KV.mean(dim=0)
            gram += (part_KV @ part_KV.T).double().numpy()
        return gram


def _choose(rows_nD: Array, gram_KK: Array) -> RidgeSettings:
    """Return the settings of least leave-one-out error, the smoothest of equal ones."""
    from sklearn.metrics import pairwise_distances

    num_tasks = len(gram_KK)
    task_n = np.repeat(np.arange(num_tasks), len(rows_nD) // num_tasks)
    distances = pairwise_distances(rows_nD, metric="sqeuclidean")
    # Equal embeddings leave no scale to go by.
    median = float(np.median(distances[task_n[:, None] != task_n])) or 1.0
    grid: list[RidgeSettings] = []
    errors: list[float] = []
    for width in _WIDTHS:
        gamma = 1 / (width * median)
        grid += [RidgeSettings(gamma=gamma, penalty=penalty) for penalty in _PENALTIES]
        errors += _left_out_errors(rows_nD, gram_KK, gamma)
    # The grid begins with the smoothest; what differs by round-off only is equal.
    return grid[int(np.argmax(np.array(errors) <= min(errors) * (1 + 1e-9)))]


def _left_out_errors(rows_nD: Array, gram_KK: Array, gamma: float) -> list[float]:
    """For each penalty, the sum over the tasks of its subsets' mean squared error, when it is left out."""
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.preprocessing import KernelCenterer

    num_tasks, num_rows = len(gram_KK), len(rows_nD)
    size = num_rows // num_tasks
    values_n, vectors_nn = np.linalg.eigh(KernelCenterer().fit_transform(rbf_kernel(rows_nD, gamma=gamma)))
    errors = []
    for penalty in _PENALTIES:
        smoother_nn = (vectors_nn * (values_n / (values_n + penalty * size))) @ vectors_nn.T + 1 / num_rows
        smoothed_nK = smoother_nn.reshape(num_rows, num_tasks, size).sum(axis=2)
        residual_KSK = (np.repeat(np.eye(num_tasks), size, axis=0) - smoothed_nK).reshape(num_tasks, size, num_tasks)
        # A task's own block of the smoother.
        own_KSS = np.einsum("kskt->kst", smoother_nn.reshape(num_tasks, size, num_tasks, size))
        left_out_KSK = np.linalg.solve(np.eye(size) - own_KSS, residual_KSK)
        errors.append(float(np.einsum("ksi,ij,ksj->", left_out_KSK, gram_KK, left_out_KSK, optimize=True)) / size)
    return errors


def _weights(rows_nD: Array, queries_QD: Array, settings: RidgeSettings, num_tasks: int) -> Array:
    """Weights ``[Q, K]`` of the tasks in the prediction for each query; they sum to one."""
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.preprocessing import KernelCenterer

    size = len(rows_nD) // num_tasks
    centerer = KernelCenterer()
    kernel_nn = centerer.fit_transform(rbf_kernel(rows_nD, gamma=settings.gamma))
    # Targets of one column per task make each prediction a list of weights.
    targets_nK = np.repeat(np.eye(num_tasks) - 1 / num_tasks, size, axis=0)
    model = KernelRidge(kernel="precomputed", alpha=settings.penalty * size).fit(kernel_nn, targets_nK)
    kernel_Qn = centerer.transform(rbf_kernel(queries_QD, rows_nD, gamma=settings.gamma))
    weights: Array = 1 / num_tasks + model.predict(kernel_Qn)
    return weights
