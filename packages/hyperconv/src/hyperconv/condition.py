"""From the prompts of a task to one condition vector: decides centering, input projection and pooling.

Legend: B tasks in the batch, P prompts per task, T token states per prompt, D width of an embedding, C hidden_dim.
Every prompt is projected by itself and then averaged, so the order of the prompts cannot matter.
"""

import torch
from torch import Tensor, nn

from hyperconv.config import GeneratorConfig

__all__ = ["ConditionEncoder", "RunningCentering"]


class RunningCentering(nn.Module):
    """Subtract the mean of all embeddings seen in training and divide by their root-mean-square distance from it.

    Sentence embeddings of different tasks share most of their direction (cosines of 0.3 to 0.9); what is left after
    the mean is what tells tasks apart. The statistics are exact averages over all training batches, kept in the
    state dict, frozen in `eval()`, and untouched by gradients.

    Where torch.distributed is initialised, a batch is that of all ranks of the default process group together, so that
    every rank holds the same statistics as one process with the whole batch. Two small all-reduces per training forward
    do it: every rank must then make the same number of forward passes in training mode.

    >>> centering = RunningCentering(3)
    >>> x_BPD = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    >>> centering(x_BPD, torch.ones(2, 1)).squeeze(1)
    tensor([[ 1.2247, -1.2247,  0.0000],
            [-1.2247,  1.2247,  0.0000]])
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, condition_dim: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        # float32 whatever the parameters are: a running sum in bfloat16 stops growing after a few hundred batches.
        self.register_buffer("count", torch.zeros((), device=device, dtype=torch.float32))
        self.register_buffer("mean", torch.zeros(condition_dim, device=device, dtype=torch.float32))
        self.register_buffer("square", torch.ones((), device=device, dtype=torch.float32))

    def forward(self, x_BPD: Tensor, weight_BP: Tensor) -> Tensor:
        """[B, P, D] to [B, P, D]; in training mode the statistics first take in the prompts of positive weight."""
        if self.training:
            with torch.no_grad():
                self._update(x_BPD.float(), (weight_BP > 0).float()[..., None])
        centred = (x_BPD - self.mean) * torch.rsqrt(self.square + 1e-12)
        return centred.to(x_BPD.dtype)

    def _update(self, x_BPD: Tensor, kept_BP1: Tensor) -> None:
        # A masked place may hold anything, and 0 times infinity is NaN.
        x_BPD = torch.where(kept_BP1 > 0, x_BPD, 0.0)
        sums = _sum_over_ranks(torch.cat([x_BPD.sum((0, 1)), kept_BP1.sum()[None]]))
        fresh, fresh_mean = sums[-1], sums[:-1] / sums[-1]
        fresh_square = _sum_over_ranks(((x_BPD - fresh_mean).square() * kept_BP1).sum()) / (fresh * x_BPD.shape[-1])
        share = fresh / (self.count + fresh)
        between = (fresh_mean - self.mean).square().mean() * share * (1 - share)
        self.square.copy_(torch.lerp(self.square, fresh_square, share) + between)
        self.mean.copy_(torch.lerp(self.mean, fresh_mean, share))
        self.count.add_(fresh)


def _sum_over_ranks(x: Tensor) -> Tensor:
    """`x` summed over all processes of the default process group; `x` itself where there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x


class ConditionEncoder(nn.Module):
    """Input projection and pooling: [B, P, D] or [B, P, T, D] to one vector [B, C] per task."""

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.centering = (
            RunningCentering(config.condition_dim, device=device) if config.centering == "running" else None
        )
        self.input_projection = nn.Linear(config.condition_dim, config.hidden_dim, device=device, dtype=dtype)
        self.score = (
            nn.Linear(config.hidden_dim, 1, device=device, dtype=dtype) if config.pooling == "attention" else None
        )
        self.norm = nn.LayerNorm(config.hidden_dim, device=device, dtype=dtype)
        self.mix = nn.Linear(config.hidden_dim, config.hidden_dim, device=device, dtype=dtype)

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a condition that `check_condition` has passed."""
        x_BPD, weight_BP = _mean_over_token_states(condition, mask)
        if self.centering is not None:
            x_BPD = self.centering(x_BPD, weight_BP)
        # What stands in a masked place may be huge enough to overflow, and 0 times infinity is NaN.
        x_BPD = torch.where(weight_BP[..., None] > 0, x_BPD, 0.0)
        x_BPC = nn.functional.gelu(self.input_projection(x_BPD))
        if self.score is not None:
            score_BP = self.score(x_BPC).squeeze(-1).float().masked_fill(weight_BP == 0, -torch.inf)
            weight_BP = torch.softmax(score_BP, dim=1)
        else:
            weight_BP = weight_BP / weight_BP.sum(dim=1, keepdim=True)
        pooled_BC = (x_BPC * weight_BP[..., None].to(x_BPC.dtype)).sum(dim=1)
        return nn.functional.gelu(self.mix(self.norm(pooled_BC)))


def _mean_over_token_states(condition: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B, P, T, D] to [B, P, D] by the masked mean over T, and the weight (1 or 0) of every prompt [B, P]."""
    if condition.ndim == 3:
        x_BPD = condition
        weight_BP = torch.ones_like(condition[..., 0]) if mask is None else mask.to(condition.dtype)
        return x_BPD, weight_BP
    if mask is None or mask.ndim == 2:
        weight_BP = torch.ones_like(condition[..., 0, 0]) if mask is None else mask.to(condition.dtype)
        return condition.mean(dim=2), weight_BP
    kept_BPT1 = mask[..., None]
    total_BP1 = kept_BPT1.sum(dim=2)
    x_BPD = torch.where(kept_BPT1, condition, 0.0).sum(dim=2) / total_BP1.clamp(min=1)
    return x_BPD, (total_BP1[..., 0] > 0).to(condition.dtype)
