"""From the prompts of a task to one vector: decides centering, input projection and pooling.

Legend: B tasks in the batch, P prompts per task, M prompts of all training tasks, D width of an embedding,
C hidden_dim. Every prompt is projected by itself and then averaged, so the order of the prompts cannot matter.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hyperconv.config import GeneratorConfig
from hyperconv.errors import HyperConvError
from hyperconv.layers.conv import Factory

__all__ = ["Centering", "ConditionEncoder", "check_condition", "check_embeddings", "mean_embedding"]


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


def mean_embedding(condition_BPD: Tensor, mask_BP: Tensor | None = None) -> Tensor:
    """The mean [B, D], in float32 or wider, of the prompts that count of a condition that `check_condition` has passed.

    >>> mean_embedding(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[False, True]]))
    tensor([[3., 4.]])
    """
    x_BPD = condition_BPD.to(torch.promote_types(condition_BPD.dtype, torch.float32))
    if mask_BP is None:
        return x_BPD.mean(dim=1)
    return x_BPD.masked_fill(~mask_BP[..., None], 0.0).sum(dim=1) / mask_BP.sum(dim=1, keepdim=True)


def check_condition(condition: Tensor, mask: Tensor | None, condition_dim: int) -> None:
    """Raise HyperConvError unless `condition` is finite [B, P, D] and `mask` boolean [B, P] with a true in each row.

    Values are looked at where there are any on the host to look at: not while a graph is traced, nor on "meta".
    """
    shape = list(condition.shape)
    wanted = f"[B, P, D={condition_dim}]"
    if condition.ndim != 3 or condition.shape[-1] != condition_dim or condition.numel() == 0:
        raise HyperConvError(f"condition has shape {shape}, expected {wanted} with B and P of at least 1.")
    if not condition.is_floating_point():
        raise HyperConvError(f"condition has dtype {condition.dtype}, expected a floating-point tensor {wanted}.")
    if mask is not None and list(mask.shape) != shape[:2]:
        raise HyperConvError(
            f"mask has shape {list(mask.shape)}, expected {shape[:2]} for a condition of shape {shape}."
        )
    if mask is not None and mask.dtype != torch.bool:
        raise HyperConvError(f"mask has dtype {mask.dtype}, expected torch.bool (true marks a prompt that counts).")
    if torch.compiler.is_compiling() or condition.is_meta:
        return
    if not bool(torch.isfinite(condition).all()):
        bad = int((~torch.isfinite(condition)).sum())
        raise HyperConvError(f"condition of shape {shape} holds {bad} NaN or infinite values, expected finite numbers.")
    if mask is not None and not bool(mask.any(dim=1).all()):
        rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
        raise HyperConvError(
            f"mask of shape {shape[:2]} is all false in batch row(s) {rows}, expected at least one true per row."
        )


def check_embeddings(embeddings: Tensor, condition_dim: int) -> None:
    """Raise HyperConvError unless `embeddings` is finite [M, D] with M of at least 1."""
    fits = embeddings.ndim == 2 and embeddings.shape[1] == condition_dim and embeddings.numel() > 0
    if not fits or not bool(torch.isfinite(embeddings).all()):
        what = f"shape {list(embeddings.shape)}" + (" and NaN or infinite values" if fits else "")
        raise HyperConvError(f"embeddings have {what}, expected finite numbers [M, D={condition_dim}], M at least 1.")
