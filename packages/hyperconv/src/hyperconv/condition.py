"""From the prompts of a task to one condition vector: decides centering, input projection and pooling.

Legend: B tasks in the batch, P prompts per task, M prompts of all training tasks, D width of an embedding,
C hidden_dim. Every prompt is projected by itself and then averaged, so the order of the prompts cannot matter.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hyperconv.config import GeneratorConfig
from hyperconv.layers.conv import Factory

__all__ = ["Centering", "ConditionEncoder"]


class Centering(nn.Module):
    """Subtract the mean of the training prompts' embeddings and divide by their root-mean-square distance from it.

    Sentence embeddings of different tasks share most of their direction (cosines of 0.3 to 0.9); what is left after
    the mean is what tells tasks apart. Until `fit` is called the mean is 0 and the spread 1, which changes nothing.

    >>> centering = Centering(3)
    >>> x_MD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> centering.fit(x_MD)
    >>> centering(x_MD)
    tensor([[ 1.2247, -1.2247,  0.0000],
            [-1.2247,  1.2247,  0.0000]])
    """

    mean: Tensor
    square: Tensor

    def __init__(self, condition_dim: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(condition_dim, device=device, dtype=torch.float32))
        self.register_buffer("square", torch.ones((), device=device, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, x_MD: Tensor) -> None:
        """Take mean and spread from these embeddings; the spread stays 1 where they are all the same."""
        x_MD = x_MD.double()
        mean_D = x_MD.mean(0)
        square = (x_MD - mean_D).square().mean()
        self.mean.copy_(mean_D)
        self.square.copy_(torch.where(square > 1e-12, square, 1.0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Version 0.1 also kept the number of prompts that the statistics were taken from.
        state_dict.pop(f"{prefix}count", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same in float32 or wider: in bfloat16 little is left of a difference of like embeddings."""
        return (x - self.mean.float()) * torch.rsqrt(self.square.float() + 1e-12)


class ConditionEncoder(nn.Module):
    """Input projection and pooling: [B, P, D] to one vector [B, C] per task."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        D, C = config.condition_dim, config.hidden_dim
        self.centering = Centering(D, device=factory["device"]) if config.centering == "prompts" else None
        self.input_projection = nn.Linear(D, C, **factory)
        self.score = nn.Linear(C, 1, **factory) if config.pooling == "attention" else None
        self.norm = nn.LayerNorm(C, **factory)
        self.mix = nn.Linear(C, C, **factory)

    def forward(self, condition_BPD: Tensor, mask_BP: Tensor | None = None) -> Tensor:
        """Encode a condition that `check_condition` has passed."""
        if mask_BP is None:
            mask_BP = torch.ones(condition_BPD.shape[:2], dtype=torch.bool, device=condition_BPD.device)
        x_BPD = condition_BPD if self.centering is None else self.centering(condition_BPD)
        # What stands in a masked place may be huge enough to overflow, and 0 times infinity is NaN.
        x_BPD = x_BPD.to(self.input_projection.weight.dtype).masked_fill(~mask_BP[..., None], 0.0)
        x_BPC = nn.functional.gelu(self.input_projection(x_BPD))
        if self.score is None:
            weight_BP = mask_BP / mask_BP.sum(dim=1, keepdim=True)
        else:
            score_BP = self.score(x_BPC).squeeze(-1).float().masked_fill(~mask_BP, -torch.inf)
            weight_BP = torch.softmax(score_BP, dim=1)
        pooled_BC = (x_BPC * weight_BP[..., None].to(x_BPC.dtype)).sum(dim=1)
        return nn.functional.gelu(self.mix(self.norm(pooled_BC)))
