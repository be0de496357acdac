"""The metrics of an epoch: sums over its pairs, on their device, that no batch size and no number of processes changes.

Legend: B batch, N tokens, W values per token, V positions that hold a value, M modules.
"""

import torch
from lora_tokenizer import TokenLayout
from torchmetrics import Metric

from loragen_train.training.metrics import DeltaComparison

__all__ = ["EpochMetrics", "TaskMean", "error_sums", "errors", "token_losses"]


def token_losses(difference_BNW: torch.Tensor, weight_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean squared and mean absolute difference of each pair, both float32 ``[B]``, weighted by position.

    Args:
        difference_BNW: Predicted minus target values.
        weight_NW: Weight of each position, 0 where there is padding, 1 in sum.

    Example:
        >>> mse_B, l1_B = token_losses(torch.tensor([[[2.0, 9.0]]]), torch.tensor([[1.0, 0.0]]))
        >>> mse_B.item(), l1_B.item()
        (4.0, 2.0)
    """
    flat_BV, weight_V = difference_BNW.flatten(1), weight_NW.flatten()
    return flat_BV.square() @ weight_V, flat_BV.abs() @ weight_V


def error_sums(difference: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return, over the last axis, the sums of squared and absolute differences and of squared targets, ``[..., 3]``."""
    return torch.stack([difference.square().sum(-1), difference.abs().sum(-1), target.square().sum(-1)], dim=-1)


def errors(sums: torch.Tensor, num_values: torch.Tensor | int) -> dict[str, torch.Tensor]:
    """Return MSE, MAE, RMSE and relative error (norm of the difference over norm of the target) of :func:`error_sums`.

    Example:
        >>> sums = error_sums(torch.ones(4), torch.full((4,), 2.0))
        >>> {name: round(value.item(), 3) for name, value in errors(sums, 4).items()}
        {'mse': 1.0, 'mae': 1.0, 'rmse': 1.0, 'relative_error': 0.5}
    """
    squares, absolutes, targets = sums.unbind()
    mse = squares / num_values
    relative = (squares / targets.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return {"mse": mse, "mae": absolutes / num_values, "rmse": mse.sqrt(), "relative_error": relative}


class EpochMetrics(Metric):
    """The losses of all pairs, and errors and cosines of those that were measured, in z-scores and in weights.

    Args:
        layout: The layout of the tokens.
        mse_weight: Weight of the mean squared error in the loss.
        l1_weight: Weight of the mean absolute error in the loss.
    """

    full_state_update = False
    losses: torch.Tensor
    num_pairs: torch.Tensor
    error_totals: torch.Tensor
    cosines: torch.Tensor
    num_measured: torch.Tensor

    def __init__(self, layout: TokenLayout, *, mse_weight: float, l1_weight: float) -> None:
        super().__init__()
        self._mse_weight, self._l1_weight = mse_weight, l1_weight
        self._deltas = DeltaComparison(layout)
        self._num_values = int(layout.mask().sum())
        shapes = {"losses": (2,), "num_pairs": (), "error_totals": (2, 3), "cosines": (len(self._deltas.modules),)}
        for name, shape in {**shapes, "num_measured": ()}.items():
            self.add_state(name, torch.zeros(shape), dist_reduce_fx="sum")

    def update(self, mse_B: torch.Tensor, l1_B: torch.Tensor, counts_B: torch.Tensor) -> None:
        """Count the losses of the pairs where ``counts_B`` is 1; where it is 0 the pair is a repeat."""
        self.losses += torch.stack([mse_B, l1_B]) @ counts_B
        self.num_pairs += counts_B.sum()

    def measure(
        self,
        difference_BNW: torch.Tensor,
        target_BNW: torch.Tensor,
        counts_B: torch.Tensor,
        *,
        std_NW: torch.Tensor,
        mean_NW: torch.Tensor,
        mask_NW: torch.Tensor,
    ) -> None:
        """Count how far predicted z-scores are from their targets; what an epoch's losses alone do not tell.

        It goes with an :meth:`update` of the same pairs.
        """
        in_z_B3 = error_sums(difference_BNW[:, mask_NW], target_BNW[:, mask_NW])
        difference_BNW, target_BNW = difference_BNW * std_NW, target_BNW * std_NW + mean_NW
        in_weights_B3 = error_sums(difference_BNW[:, mask_NW], target_BNW[:, mask_NW])
        self.error_totals += torch.einsum("bke,b->ke", torch.stack([in_z_B3, in_weights_B3], dim=1), counts_B)
        self.cosines += counts_B @ self._deltas.cosines(target_BNW + difference_BNW, target_BNW)
        self.num_measured += counts_B.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """The metrics by name; only the losses where nothing was measured."""
        mse, l1 = self.losses / self.num_pairs
        values = {"loss": self._mse_weight * mse + self._l1_weight * l1, "mse": mse, "l1": l1}
        if self.num_measured == 0:
            return values
        num_values = self.num_measured * self._num_values
        in_z, in_weights = (errors(sums, num_values) for sums in self.error_totals)
        cosines_M = self.cosines / self.num_measured
        return {
            **{name: value for name, value in in_z.items() if name != "mse"},
            **{f"weight_{name}": value for name, value in in_weights.items()},
            **values,
            "weight_loss": self._mse_weight * in_weights["mse"] + self._l1_weight * in_weights["mae"],
            "weight_cosine": cosines_M.mean(),
            "weight_cosine_worst_module": cosines_M.min(),
        }


class TaskMean(Metric):
    """The mean over all tasks of a loss that is known of each.

    Args:
        name: What it is called besides ``loss``.
    """

    full_state_update = False
    total: torch.Tensor
    num_tasks: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        for state in ("total", "num_tasks"):
            self.add_state(state, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss_B: torch.Tensor, counts_B: torch.Tensor) -> None:
        """Count the losses of the tasks where ``counts_B`` is 1; where it is 0 the task is a repeat."""
        self.total += loss_B @ counts_B
        self.num_tasks += counts_B.sum()

    def compute(self) -> dict[str, torch.Tensor]:
        """The mean under both names."""
        mean = self.total / self.num_tasks
        return {"loss": mean, self._name: mean}
