"""The training tasks that a network remembers: decides whether some prompts are those of one of them.

A regression over tasks is smooth: for a task that it was fitted on it answers with a mixture of its adapter and those
of its neighbours. Where the prompts show beyond doubt that the task is a known one, its own adapter is the better
answer; for a task never seen, to be taken for a known one is the worse mistake. So recognition asks for evidence:

- Prompts of one task differ in what they are about, and this tells nothing of the task. So embeddings are whitened by
  the covariance within tasks, pooled over them: directions in which the prompts of a task vary count less.
- The squared distance between the mean of P prompts and the centroid of their own task is s²/P on average, with s² the
  task's spread, and it varies around that by about κ · s²/P. What it exceeds s²/P by, plus that deviation, is a
  cautious estimate of the squared distance between two tasks.
- It is judged in units of the distance at which the closest tenth of the training tasks has its nearest neighbour. At
  less than a quarter of it prompts are recognised, from 0.45 on they are not, in between in part.
- Where tasks come in variants, these are neighbours so close that hardly any prompts pass. So a second unit is that at
  which the closest tenth of the tasks has its nearest neighbour that is no relative (`relatives`). Where the distance,
  estimated more cautiously yet, is as short in it, prompts are recognised that lie where chance puts those of the task,
  within a few deviations for P of them and the N by which it is remembered. All others there are taken for a variant
  that was never seen: half of the task's own is better for it than nothing of it, and than all.

Legend: B tasks in the batch, P prompts of a task, D width of an embedding, T known tasks, K features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperconv.errors import HyperConvError
from hyperconv.ridge import relatives

__all__ = ["TaskMemory"]

_SURE, _UNKNOWN = 0.25, 0.45
# Deviations from what chance makes of a task's own prompts. Of two zoos' tasks eight fresh prompts were at 2.8 or less
# in 19 of 20, those of a task that was left out from its variants or twins in wording at 12 and 30 in the median.
_LIKELY, _UNLIKELY = 3.0, 6.0
# Of variants that were left out: 1.76 nats per answer token, where nothing of the nearest one was 2.11, and all 1.84.
_OF_A_VARIANT = 0.5
# Of the distance to tasks that are no relatives, added to the deviation: distances are no more exact than that.
_ROUNDING = 1e-4
_TINY = torch.finfo(torch.float32).tiny
_QUANTILE = 0.1
# Of the mean variance, added to every direction: few prompts say little of those in which they hardly vary.
_SHRINKAGE = 0.1


class TaskMemory(nn.Module):
    """Recognises the prompts of T training tasks; until `fit` is called, none.

    >>> memory = TaskMemory(num_tasks=2, condition_dim=2)
    >>> prompts_PD = torch.tensor([[0.9, 0.1], [1.1, -0.1], [1.0, 0.0], [1.0, 0.0]])
    >>> memory.fit([prompts_PD, prompts_PD + 4])
    >>> memory(torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([4, 4])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """

    whitening_DD: Tensor
    centroid_TD: Tensor
    spread_T: Tensor
    deviation_T: Tensor
    num_prompts_T: Tensor
    unit: Tensor
    reach: Tensor

    def __init__(self, num_tasks: int, condition_dim: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "whitening_DD", torch.zeros(condition_dim, condition_dim, device=device, dtype=torch.float32)
        )
        self.register_buffer("centroid_TD", torch.zeros(num_tasks, condition_dim, device=device, dtype=torch.float32))
        self.register_buffer("spread_T", torch.zeros(num_tasks, device=device, dtype=torch.float32))
        self.register_buffer("deviation_T", torch.zeros(num_tasks, device=device, dtype=torch.float32))
        self.register_buffer("num_prompts_T", torch.ones(num_tasks, device=device, dtype=torch.float32))
        # At zero nothing is near enough.
        self.register_buffer("unit", torch.zeros((), device=device, dtype=torch.float32))
        self.register_buffer("reach", torch.zeros((), device=device, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, prompts: Sequence[Tensor]) -> None:
        """Remember the tasks by the embeddings [P, D] of the prompts of each.

        A single task is not recognised, nor is any where all have the same centroid: what would tell them apart? Where
        some have, the first of these is recognised for all of them.

        Raises:
            HyperConvError: another number of tasks, embeddings of another width, or none of a task.
        """
        num_tasks, condition_dim = self.centroid_TD.shape
        if len(prompts) != num_tasks:
            raise HyperConvError(f"prompts are of {len(prompts)} task(s), expected num_tasks={num_tasks}.")
        for task, prompts_PD in enumerate(prompts):
            if prompts_PD.ndim != 2 or prompts_PD.shape[1] != condition_dim or not len(prompts_PD):
                shape = list(prompts_PD.shape)
                raise HyperConvError(f"prompts of task {task} have shape {shape}, expected [P, D={condition_dim}].")
        whitening_DD = _whitening([prompts_PD.double() - prompts_PD.double().mean(0) for prompts_PD in prompts])
        self.whitening_DD.copy_(whitening_DD)
        for task, prompts_PD in enumerate(prompts):
            prompts_PD = prompts_PD.double() @ whitening_DD
            variance_R = torch.linalg.svdvals(prompts_PD - prompts_PD.mean(0)).square() / len(prompts_PD)
            self.centroid_TD[task] = prompts_PD.mean(0)
            self.spread_T[task] = variance_R.sum()
            # Of a sum of independent squares, as many as there are directions.
            self.deviation_T[task] = (2 * variance_R.square().sum()).sqrt()
        self.num_prompts_T.copy_(torch.tensor([len(prompts_PD) for prompts_PD in prompts]))
        means_TD = torch.stack([prompts_PD.mean(0) for prompts_PD in prompts])
        distance_TT = torch.cdist(self.centroid_TD.double(), self.centroid_TD.double()).square()
        itself_TT = torch.eye(num_tasks, dtype=torch.bool, device=distance_TT.device)
        self.unit.fill_(_closest(distance_TT, itself_TT))
        self.reach.fill_(_closest(distance_TT, relatives(means_TD[:, None])))

    def forward(self, condition_BD: Tensor, num_prompts_B: Tensor) -> Tensor:
        """How far the mean embeddings [B, D] of so many prompts are recognised as each task's, [B, T] from 0 to 1.

        At most one task of a row is not at 0.
        """
        x_BD = condition_BD.float() @ self.whitening_DD.float()
        distance_BT = torch.cdist(x_BD, self.centroid_TD.float()).square()
        spread_T, deviation_T = self.spread_T.float(), self.deviation_T.float()
        cautious_BT = distance_BT + (deviation_T - spread_T) / num_prompts_B[:, None]
        # The spread is taken about the centroid, which leaves 1 / N of it out; and the centroid is a mean of N itself.
        num_T = self.num_prompts_T.float()
        chance_BT = num_T / (num_T - 1).clamp(min=1) * (1 / num_prompts_B[:, None] + 1 / num_T)
        deviation_BT = (chance_BT * deviation_T + _ROUNDING * self.reach.float()).clamp(min=_TINY)
        like_its_own_BT = _ramp((distance_BT - chance_BT * spread_T) / deviation_BT, _LIKELY, _UNLIKELY)
        near_BT = _ramp(_over(cautious_BT, self.unit), _SURE, _UNKNOWN)
        very_cautious_BT = distance_BT + (_LIKELY * deviation_T - spread_T) / num_prompts_B[:, None]
        within_reach_BT = _ramp(_over(very_cautious_BT, self.reach), _SURE, _UNKNOWN)
        known_BT = torch.maximum(near_BT, within_reach_BT * (_OF_A_VARIANT + (1 - _OF_A_VARIANT) * like_its_own_BT))
        is_nearest_BT = torch.nn.functional.one_hot(cautious_BT.argmin(dim=1), known_BT.shape[1])
        return known_BT * is_nearest_BT

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}spread_T" in state_dict:
            # Memories once did not know of variants: nothing is within a reach of zero.
            spread_T = state_dict[f"{prefix}spread_T"]
            state_dict.setdefault(f"{prefix}reach", spread_T.new_zeros(()))
            state_dict.setdefault(f"{prefix}num_prompts_T", torch.ones_like(spread_T))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _closest(distance_TT: Tensor, left_out_TT: Tensor) -> float:
    """The distance at which the closest tenth of the tasks has its nearest other one; 0 where there is none."""
    if len(distance_TT) < 2:
        return 0.0
    return float(distance_TT.masked_fill(left_out_TT, torch.inf).amin(dim=1).quantile(_QUANTILE))


def _over(distance_BT: Tensor, unit: Tensor) -> Tensor:
    """Distances in so long units; in units of zero nothing is near, not even what is at no distance."""
    return distance_BT / unit.float().clamp(min=_TINY) + torch.where(unit > 0, 0.0, torch.inf)


def _ramp(value_BT: Tensor, sure: float, unknown: float) -> Tensor:
    """1 up to one value, 0 from the other on, linear in between."""
    return ((unknown - value_BT) / (unknown - sure)).clamp(0.0, 1.0)


def _whitening(centered: Sequence[Tensor]) -> Tensor:
    """The symmetric matrix [D, D] that makes the pooled covariance of centred prompts [P, D] a multiple of one."""
    width = centered[0].shape[1]
    covariance_DD = torch.zeros(width, width).to(centered[0])
    for part_PD in centered:
        covariance_DD += part_PD.T @ part_PD / (len(part_PD) * len(centered))
    # Prompts that are all alike leave nothing to whiten by.
    shrinkage = _SHRINKAGE * float(covariance_DD.trace()) / width or 1.0
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    whitening_DD: Tensor = (vectors_DD * (values_D.clamp(min=0.0) + shrinkage).rsqrt()) @ vectors_DD.T
    return whitening_DD
