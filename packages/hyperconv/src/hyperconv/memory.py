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

Legend: B tasks in the batch, P prompts of a task, D width of an embedding, T known tasks, K features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyperconv.errors import HyperConvError

__all__ = ["TaskMemory"]

_SURE, _UNKNOWN = 0.25, 0.45
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
    unit: Tensor

    def __init__(self, num_tasks: int, condition_dim: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer(
            "whitening_DD", torch.zeros(condition_dim, condition_dim, device=device, dtype=torch.float32)
        )
        self.register_buffer("centroid_TD", torch.zeros(num_tasks, condition_dim, device=device, dtype=torch.float32))
        self.register_buffer("spread_T", torch.zeros(num_tasks, device=device, dtype=torch.float32))
        self.register_buffer("deviation_T", torch.zeros(num_tasks, device=device, dtype=torch.float32))
        # At zero nothing is near enough.
        self.register_buffer("unit", torch.zeros((), device=device, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, prompts: Sequence[Tensor]) -> None:
        """Remember the tasks by the embeddings [P, D] of the prompts of each.

        A single task is not recognised, nor is any where a tenth have another's centroid: what would tell them apart?
        Where fewer have, the first of those with the same centroid is recognised for all of them.

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
        distance_TT = torch.cdist(self.centroid_TD.double(), self.centroid_TD.double()).square()
        distance_TT.fill_diagonal_(torch.inf)
        nearest_T = distance_TT.amin(dim=1)
        self.unit.fill_(float(nearest_T.quantile(_QUANTILE)) if num_tasks > 1 else 0.0)

    def forward(self, condition_BD: Tensor, num_prompts_B: Tensor) -> Tensor:
        """How far the mean embeddings [B, D] of so many prompts are recognised as each task's, [B, T] from 0 to 1.

        At most one task of a row is not at 0.
        """
        x_BD = condition_BD.float() @ self.whitening_DD.float()
        distance_BT = torch.cdist(x_BD, self.centroid_TD.float()).square()
        noise_BT = (self.deviation_T - self.spread_T).float() / num_prompts_B[:, None]
        share_BT = (distance_BT + noise_BT) / self.unit.float().clamp(min=torch.finfo(torch.float32).tiny)
        known_BT = ((_UNKNOWN - share_BT) / (_UNKNOWN - _SURE)).clamp(0.0, 1.0) * (self.unit > 0)
        is_nearest_BT = torch.nn.functional.one_hot(share_BT.argmin(dim=1), known_BT.shape[1])
        return known_BT * is_nearest_BT


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
