"""The two baselines that know the training tasks: the nearest one's adapter, and kernel ridge regression.

Both answer with weights over the training tasks, by which their mean tokens are averaged; so a baseline of any adapter
size costs no more than products of task by task.

Kernel ridge regression maps a task's mean prompt embedding to its mean tokens, with an intercept that is not penalised
(kernel and targets are centred) and a Gaussian kernel. Its width and its penalty are those of least squared error
when each training task is left out once; that error follows from the fit on all of them by r_i / (1 - H_ii), with H
the matrix that smooths the targets (R. D. Cook and S. Weisberg, Residuals and Influence in Regression, 1982, 2.2.3).

Legend: K training tasks, D width of an embedding, N tokens, W values per token.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.task_means import TaskMeans

__all__ = ["RidgeSettings", "nearest_task", "ridge_tokens", "without_task"]

Array = NDArray[np.float64]

# Widths in units of the median squared distance between tasks; the kernel is 1 at distance 0, so that a penalty of 10
# all but keeps the mean and one of 0.001 all but interpolates.
_WIDTHS = (0.25, 1.0, 4.0)
_PENALTIES = tuple(10.0**exponent for exponent in np.arange(-3, 1.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class RidgeSettings:
    """What leaving out one training task at a time has chosen."""

    gamma: float
    """Factor in the kernel exp(-gamma · squared distance)."""
    penalty: float
    """Weight of the squared norm of the solution; scikit-learn's ``alpha``."""


def without_task(tasks: TaskMeans, name: str) -> TaskMeans:
    """Return ``tasks`` without the one called ``name``, which need not be there.

    Raises:
        LoragenInferError: There is no other task.
    """
    keep = [index for index, other in enumerate(tasks.names) if other != name]
    if len(keep) == len(tasks.names):
        return tasks
    if not keep:
        raise LoragenInferError(f"There is no training task but {name!r}, which is held out; give others.")
    return TaskMeans(
        names=tuple(tasks.names[index] for index in keep),
        condition_means=tasks.condition_means[keep],
        token_means=tasks.token_means[keep],
    )


def nearest_task(tasks: TaskMeans, condition_D: torch.Tensor) -> int:
    """Return the number of the training task whose mean prompt embedding has the least angle to ``condition_D``."""
    similarity_K = torch.nn.functional.cosine_similarity(tasks.condition_means, condition_D[None])
    return int(similarity_K.argmax())


def ridge_tokens(tasks: TaskMeans, condition_D: torch.Tensor) -> tuple[torch.Tensor, RidgeSettings | None]:
    """Return the tokens, float32 ``[N, W]``, that kernel ridge regression predicts for a mean prompt embedding.

    Of one training task its tokens are returned, and no settings.

    Example:
        >>> tasks = TaskMeans(
        ...     names=("a", "b", "c"), condition_means=torch.eye(3), token_means=torch.eye(3)[:, None] * 5
        ... )
        >>> tokens, _ = ridge_tokens(tasks, torch.tensor([1.0, 0.0, 0.0]))
        >>> tokens.shape, int(tokens.argmax())
        (torch.Size([1, 3]), 0)
    """
    if len(tasks.names) == 1:
        return tasks.token_means[0], None
    conditions_KD = tasks.condition_means.double().numpy()
    flat_KV = tasks.token_means.flatten(1)
    settings = _choose(conditions_KD, _centred_gram(flat_KV))
    weights_K = _weights(conditions_KD, condition_D.double().numpy()[None], settings)[0]
    tokens_V = torch.from_numpy(weights_K).to(flat_KV.dtype) @ flat_KV
    return tokens_V.view(tasks.token_means.shape[1:]), settings


def _centred_gram(flat_KV: torch.Tensor) -> Array:
    """Inner products ``[K, K]`` of the tasks' deviations from their mean."""
    deviation_KV = flat_KV - flat_KV.mean(dim=0)
    gram: Array = (deviation_KV @ deviation_KV.T).double().numpy()
    return gram


def _choose(conditions_KD: Array, gram_KK: Array) -> RidgeSettings:
    """Return the settings of least leave-one-out error, the smoothest of equal ones."""
    from sklearn.metrics import pairwise_distances

    distances = pairwise_distances(conditions_KD, metric="sqeuclidean")
    # Over pairs of different tasks; equal embeddings leave no scale to go by.
    median = float(np.median(distances[np.triu_indices(len(distances), k=1)])) or 1.0
    grid = [
        RidgeSettings(gamma=1 / (width * median), penalty=penalty)
        for width, penalty in itertools.product(sorted(_WIDTHS, reverse=True), sorted(_PENALTIES, reverse=True))
    ]
    smoothers = [_weights(conditions_KD, conditions_KD, settings) for settings in grid]
    errors = np.array([_left_out_error(smoother_KK, gram_KK) for smoother_KK in smoothers])
    # The grid begins with the smoothest; what differs by round-off only is equal.
    return grid[int(np.argmax(errors <= errors.min() * (1 + 1e-9)))]


def _left_out_error(smoother_KK: Array, gram_KK: Array) -> float:
    """Sum over the tasks of the squared error of predicting each from the others."""
    residual_KK = np.eye(len(smoother_KK)) - smoother_KK
    squares_K = np.einsum("ij,jk,ik->i", residual_KK, gram_KK, residual_KK)
    return float(np.sum(squares_K / np.diag(residual_KK) ** 2))


def _weights(conditions_KD: Array, queries_QD: Array, settings: RidgeSettings) -> Array:
    """Weights ``[Q, K]`` of the tasks in the prediction for each query; they sum to one."""
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.preprocessing import KernelCenterer

    num_tasks = len(conditions_KD)
    centerer = KernelCenterer()
    kernel_KK = centerer.fit_transform(rbf_kernel(conditions_KD, gamma=settings.gamma))
    # Targets of one column per task make each prediction a list of weights.
    targets_KK = np.eye(num_tasks) - 1 / num_tasks
    model = KernelRidge(kernel="precomputed", alpha=settings.penalty).fit(kernel_KK, targets_KK)
    kernel_QK = centerer.transform(rbf_kernel(queries_QD, conditions_KD, gamma=settings.gamma))
    weights: Array = 1 / num_tasks + model.predict(kernel_QK)
    return weights
