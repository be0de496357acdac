"""Linear ridge regression from mean prompt embeddings to weights over the training tasks: decides its penalty.

What it predicts is an average of the tasks' adapters with these weights, and so only the inner products of the adapters
are needed, not the adapters. The penalty is that of least squared error when each task is left out once. That error
follows from the fit on all by (I - H_kk)⁻¹ r_k, with H the matrix that smooths the targets, k the rows of a task and r
their residuals (R. D. Cook and S. Weisberg, Residuals and Influence in Regression, 1982).

Legend: K training tasks, S rows of a task, n = K · S, D width of an embedding, R rank of the rows, Q queries.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hyperconv.errors import HyperConvError

__all__ = ["RidgeFit", "fit_ridge", "left_out_fits"]

# In units of the rows' mean squared distance from their centre; the first all but keeps the mean, the last all but
# interpolates.
_PENALTIES = tuple(10.0 ** (1 - quarter / 4) for quarter in range(21))


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
    """Share of the variance that is left when each task's adapter is predicted from the other tasks: squared error over
    that of the mean of the others; 1 where the adapters do not differ."""
    spread: float
    """Root mean square, over tasks and rows, of the weights' distance from 1/K."""

    def task_weights(self, condition_QD: Tensor) -> Tensor:
        """Weights of the tasks, [Q, K], for mean prompt embeddings [Q, D]: `1/K + (c - center) @ weights.T`."""
        weights_KD = self.weights_KD
        from_center_QD = condition_QD.to(weights_KD) - self.center_D.to(weights_KD)
        return 1 / len(weights_KD) + from_center_QD @ weights_KD.T


def fit_ridge(rows_KSD: Tensor, gram_KK: Tensor, *, penalties: Sequence[float] | None = None) -> RidgeFit:
    """Fit the weights of K tasks, with an intercept that is not penalised, in float64.

    Args:
        rows_KSD: for every task, the means of S subsets of its prompts' embeddings, subsets as large as those that the
            fit will be asked about; all S have the same target, the task's adapter.
        gram_KK: inner products of the tasks' (mean) adapters, centred or not.
        penalties: those to choose from, each multiplied by S; by default quarter decades from 10 to 1e-4 times the
            rows' mean squared distance from their centre.

    Returns:
        the fit of least error when each task is left out once; of equal ones that with the largest penalty.

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
    left_nR, values_R, right_RD = torch.linalg.svd(rows_nD, full_matrices=False)
    aligned_RK = left_nR.T @ targets_nK
    best, least = candidates_G[0], float("inf")
    variance = float(gram_KK.trace())
    # A task is K/(K-1) times as far from the mean of the others as from the mean of all.
    variance *= (num_tasks / max(1, num_tasks - 1)) ** 2
    # Adapters that are all the same, or only one, are predicted by their mean, whatever the penalty.
    differ = num_tasks > 1 and variance > 1e-12 * size
    for penalty in candidates_G if differ else ():
        shrink_R = values_R**2 / (values_R**2 + penalty * num_rows)
        residuals_nK = targets_nK - (left_nR * shrink_R) @ aligned_RK
        left_KSR = left_nR.view(num_tasks, num_rows, -1)
        own_KSS = (left_KSR * shrink_R) @ left_KSR.mT + 1 / len(rows_nD)
        identity_SS = torch.eye(num_rows).to(own_KSS)
        left_out_KSK = torch.linalg.solve(identity_SS - own_KSS, residuals_nK.view(num_tasks, num_rows, num_tasks))
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


def left_out_fits(rows_KSD: Tensor, penalty: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Fit the weights anew without one task each, in the order of the tasks, with a penalty that was chosen with all.

    Args:
        rows_KSD: the rows that `fit_ridge` was given.
        penalty: the one that it chose.

    Yields:
        weights [K, D], float32, and center [D] as in `RidgeFit`; the row of the task left out is zero, and the weights
        of the others are `1/(K - 1) + (c - center) @ weights.T`.

    >>> rows_KSD = torch.tensor([[[0.0]], [[1.0]], [[2.0]]])
    >>> weights_KD, center_D = next(left_out_fits(rows_KSD, 0.5))
    >>> weights_KD.flatten().tolist(), center_D.tolist()
    ([0.0, -0.5, 0.5], [1.5])
    """
    num_tasks, num_rows, width = rows_KSD.shape
    rows_KSD = rows_KSD.detach().double()
    means_KD = rows_KSD.mean(1)
    squares_DD = torch.einsum("ksd,kse->de", rows_KSD, rows_KSD)
    for task in range(num_tasks):
        others = [other for other in range(num_tasks) if other != task]
        weights_KD, center_D = torch.zeros_like(means_KD), means_KD[task]
        if others:
            center_D, own_SD = means_KD[others].mean(0), rows_KSD[task]
            # What is left of the sums over all rows needs no pass over them.
            scatter_DD = squares_DD - own_SD.T @ own_SD
            scatter_DD = scatter_DD - len(others) * num_rows * torch.outer(center_D, center_D)
            ridge_DD = scatter_DD + penalty * num_rows * torch.eye(width).to(scatter_DD)
            weights_KD[others] = torch.linalg.solve(ridge_DD, num_rows * (means_KD[others] - center_D).T).T
        yield weights_KD.float(), center_D.float()


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
