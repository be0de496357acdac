"""Linear ridge regression from mean prompt embeddings to weights over the training tasks: decides its penalty.

What it predicts is an average of the tasks' adapters with these weights, and so only the inner products of the adapters
are needed, not the adapters. The penalty is that of least squared error when each task is left out once, together with
its relatives, tasks of like prompts: a task never seen has none, and where they stay a task is predicted from its
variants, for which next to no penalty is best. That error follows from the fit on all by (I - H_gg)⁻¹ r_g, with H the
matrix that smooths the targets, g the rows that are left out and r their residuals (R. D. Cook and S. Weisberg,
Residuals and Influence in Regression, 1982).

Legend: K training tasks, S rows of a task, n = K · S, D width of an embedding, R rank of the rows, Q queries, G rows
that are left out.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperconv.errors import HyperConvError

__all__ = ["LeftOutFit", "RidgeFit", "fit_ridge", "left_out_fits", "relatives"]

# In units of the rows' mean squared distance from their centre; the first all but keeps the mean, the last all but
# interpolates.
_PENALTIES = tuple(10.0 ** (1 - quarter / 4) for quarter in range(21))
# Cosine from which tasks are relatives. On two zoos 0.3, 0.5 and 0.7 led to penalties of 3 to 10.
_RELATED = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RidgeFit:
    """A fit of `fit_ridge`: from the mean of some prompts' embeddings to weights over the training tasks."""

    weights_KD: Tensor
    """float32 [K, D]; the columns sum to zero, so that the weights of the tasks sum to one."""
    center_D: Tensor
    """float32 [D], the mean of the rows; there every task weighs 1/K, which is the mean adapter."""
    penalty: float
    """The penalty chosen, per row of a task, in squared units of the embeddings."""
    left_out_error: float
    """Share of the variance that is left when each task's adapter is predicted from the tasks that are no relatives of
    it: squared error over that of their mean; 1 where the adapters do not differ."""
    spread: float
    """Root mean square, over tasks and rows, of the weights' distance from 1/K."""

    def task_weights(self, condition_QD: Tensor) -> Tensor:
        """Weights of the tasks, [Q, K], for mean prompt embeddings [Q, D]: `1/K + (c - center) @ weights.T`."""
        weights_KD = self.weights_KD
        from_center_QD = condition_QD.to(weights_KD) - self.center_D.to(weights_KD)
        return 1 / len(weights_KD) + from_center_QD @ weights_KD.T


class LeftOutFit(NamedTuple):
    """A regression without one task and its relatives, of `left_out_fits`.

    The weights of the tasks at a mean embedding c are `start + (c - center) @ weights.T`.
    """

    weights_KD: Tensor
    """float32 [K, D]; zero where a task is left out."""
    center_D: Tensor
    """float32 [D], the mean of the rows that are there."""
    start_K: Tensor
    """float32 [K]: the same for all tasks that are there, and in sum one; zero where a task is left out."""


def relatives(rows_KSD: Tensor) -> Tensor:
    """Tell which tasks have prompts so alike that they count as variants of one task.

    Args:
        rows_KSD: rows as `fit_ridge` takes them.

    Returns:
        bool [K, K]: the cosine between the means of two tasks' rows, less the mean of all, is 0.5 or more; each task is
        its own relative. A task to which all others would be related has no other.

    >>> relatives(torch.tensor([[[0.0, 1.0]], [[0.1, 1.0]], [[1.0, 0.0]]])).int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    means_KD = rows_KSD.detach().double().mean(1)
    directions_KD = torch.nn.functional.normalize(means_KD - means_KD.mean(0), dim=1)
    itself_KK = torch.eye(len(means_KD), dtype=torch.bool, device=means_KD.device)
    related_KK = (directions_KD @ directions_KD.T >= _RELATED) | itself_KK
    return torch.where(related_KK.all(dim=1, keepdim=True), itself_KK, related_KK)


def fit_ridge(rows_KSD: Tensor, gram_KK: Tensor, *, penalties: Sequence[float] | None = None) -> RidgeFit:
    """Fit the weights of K tasks, with an intercept that is not penalised, in float64.

    Args:
        rows_KSD: for every task, the means of S subsets of its prompts' embeddings, subsets as large as those that the
            fit will be asked about; all S have the same target, the task's adapter.
        gram_KK: inner products of the tasks' (mean) adapters, centred or not.
        penalties: those to choose from, each multiplied by S; by default quarter decades from 10 to 1e-4 times the
            rows' mean squared distance from their centre.

    Returns:
        the fit of least error when each task is left out once, with its `relatives`; of equal ones that with the
        largest penalty.

    Raises:
        HyperConvError: shapes that do not belong together, NaN or infinite values, or a penalty that is not positive.

    >>> means_KV = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    >>> rows_KSD = torch.tensor([[[0.0]], [[1.0]], [[2.0]], [[3.0]]])
    >>> fit = fit_ridge(rows_KSD, means_KV @ means_KV.T)
    >>> fit.task_weights(torch.tensor([[1.5], [4.0]])) @ means_KV
    tensor([[1.5000, 3.0000],
            [3.9999, 7.9999]])
    """
    _check(rows_KSD, gram_KK)
    num_tasks, num_rows = rows_KSD.shape[:2]
    rows_nD = rows_KSD.detach().double().flatten(0, 1)
    center_D = rows_nD.mean(0)
    rows_nD = rows_nD - center_D
    candidates_G = _candidates(rows_nD, penalties)
    # One column per task, so that each prediction is a list of weights; less 1/K, which is the intercept.
    targets_KK = torch.eye(num_tasks, dtype=torch.float64, device=rows_nD.device) - 1 / num_tasks
    targets_nK = targets_KK.repeat_interleave(num_rows, dim=0)
    gram_KK = gram_KK.detach().to(targets_KK)
    size = float(gram_KK.trace())
    gram_KK = targets_KK @ gram_KK @ targets_KK
    related_KK = relatives(rows_KSD)
    left_nR, values_R, right_RD = torch.linalg.svd(rows_nD, full_matrices=False)
    aligned_RK = left_nR.T @ targets_nK
    best, least = candidates_G[0], float("inf")
    from_others_KK = torch.eye(num_tasks).to(gram_KK) - _mean_of_others(related_KK).to(gram_KK)
    variance = float(((from_others_KK @ gram_KK) * from_others_KK).sum())
    # Adapters that are all the same, or only one, are predicted by their mean, whatever the penalty.
    differ = num_tasks > 1 and variance > 1e-12 * size
    for penalty in candidates_G if differ else ():
        shrink_R = values_R**2 / (values_R**2 + penalty * num_rows)
        residuals_nK = targets_nK - (left_nR * shrink_R) @ aligned_RK
        left_KSR, residuals_KSK = (rows.view(num_tasks, num_rows, -1) for rows in (left_nR, residuals_nK))
        left_out_KSK = torch.empty_like(residuals_KSK)
        for task, related_K in enumerate(related_KK):
            left_GR, residuals_GK = left_KSR[related_K].flatten(0, 1), residuals_KSK[related_K].flatten(0, 1)
            identity_GG = torch.eye(len(left_GR)).to(left_GR)
            place = num_rows * int(related_K[:task].sum())
            own_GS = identity_GG[:, place : place + num_rows]
            # Of the symmetric inverse only the rows of the task itself.
            smooth_GG = (left_GR * shrink_R) @ left_GR.T + 1 / len(rows_nD)
            left_out_KSK[task] = torch.linalg.solve(identity_GG - smooth_GG, own_GS).T @ residuals_GK
        left_out_nK = left_out_KSK.flatten(0, 1)
        error = float(((left_out_nK @ gram_KK) * left_out_nK).sum()) / num_rows
        # What differs by round-off only is equal.
        if error < least * (1 - 1e-9):
            best, least = penalty, error
    aligned_RK = aligned_RK * (values_R / (values_R**2 + best * num_rows))[:, None]
    weights_DK = right_RD.T @ aligned_RK
    weights_nK = (left_nR * values_R) @ aligned_RK
    return RidgeFit(
        weights_KD=weights_DK.T.float().contiguous(),
        center_D=center_D.float(),
        penalty=best,
        left_out_error=least / variance if differ else 1.0,
        spread=float(weights_nK.square().mean().sqrt()),
    )


def left_out_fits(rows_KSD: Tensor, penalty: float) -> Iterator[LeftOutFit]:
    """Fit the weights anew without one task and its `relatives` each, with a penalty that was chosen with all.

    Args:
        rows_KSD: the rows that `fit_ridge` was given.
        penalty: the one that it chose.

    Yields:
        the fit without each task, in the order of the tasks.

    >>> rows_KSD = torch.tensor([[[-3.0]], [[1.0]], [[2.0]]])
    >>> fit = next(left_out_fits(rows_KSD, 0.5))
    >>> fit.weights_KD.flatten().tolist(), fit.center_D.tolist(), fit.start_K.tolist()
    ([0.0, -0.5, 0.5], [1.5], [0.0, 0.5, 0.5])
    """
    num_tasks, num_rows, width = rows_KSD.shape
    rows_KSD = rows_KSD.detach().double()
    means_KD = rows_KSD.mean(1)
    squares_DD = torch.einsum("ksd,kse->de", rows_KSD, rows_KSD)
    related_KK = relatives(rows_KSD)
    for task, (related_K, start_K) in enumerate(zip(related_KK, _mean_of_others(related_KK), strict=True)):
        weights_KD, center_D = torch.zeros_like(means_KD), means_KD[task]
        if num_tasks > 1:
            center_D, out_GD = means_KD[~related_K].mean(0), rows_KSD[related_K].flatten(0, 1)
            # What is left of the sums over all rows needs no pass over them.
            scatter_DD = squares_DD - out_GD.T @ out_GD
            scatter_DD = scatter_DD - int((~related_K).sum()) * num_rows * torch.outer(center_D, center_D)
            ridge_DD = scatter_DD + penalty * num_rows * torch.eye(width).to(scatter_DD)
            weights_KD[~related_K] = torch.linalg.solve(ridge_DD, num_rows * (means_KD[~related_K] - center_D).T).T
        yield LeftOutFit(weights_KD.float(), center_D.float(), start_K)


def _mean_of_others(related_KK: Tensor) -> Tensor:
    """Weights, float32 [K, K], of the mean of the tasks that are no relatives of each; zero where there are none."""
    others_KK = (~related_KK).float()
    return others_KK / others_KK.sum(dim=1, keepdim=True).clamp(min=1)


def _candidates(rows_nD: Tensor, penalties: Sequence[float] | None) -> list[float]:
    """The penalties to choose from, the largest first."""
    if penalties is None:
        # Embeddings that are all the same leave no scale to go by.
        spread = float(rows_nD.square().sum(1).mean()) or 1.0
        return [spread * penalty for penalty in _PENALTIES]
    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise HyperConvError(f"penalties are {list(penalties)}, expected one or more finite numbers greater than 0.")
    return sorted(penalties, reverse=True)


def _check(rows_KSD: Tensor, gram_KK: Tensor) -> None:
    if rows_KSD.ndim != 3 or rows_KSD.numel() == 0:
        raise HyperConvError(f"rows have shape {list(rows_KSD.shape)}, expected [K, S, D], each of at least 1.")
    num_tasks = len(rows_KSD)
    if gram_KK.shape != (num_tasks, num_tasks):
        raise HyperConvError(
            f"gram has shape {list(gram_KK.shape)}, expected {[num_tasks] * 2} for rows of {num_tasks} task(s)."
        )
    for name, tensor in (("rows", rows_KSD), ("gram", gram_KK)):
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise HyperConvError(f"{name} of shape {list(tensor.shape)} hold {bad} NaN or infinite values.")
