"""Adapters as they act on one layer of a batch: whose sample is whose, and the sum of the layer's and their part.

Legend: K adapters, n samples times tokens, t those of one adapter, r rank, i and o the features into and out of a
layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout

from loragen_infer.errors import LoragenInferError

__all__ = ["Applied", "add_adapters", "check_layout", "find_misfit"]


@dataclass(frozen=True, eq=False)
class Applied:
    """K adapters for one batch, their factors on the devices of their layers."""

    a_Kri: dict[str, Tensor]
    b_Kor: dict[str, Tensor]
    scaling_K11: dict[str, Tensor]
    num_adapters: int
    sizes: tuple[int, ...] | None
    """Samples or tokens per adapter; None for as many each."""
    is_packed: bool
    dropout: float


def add_adapters(x: Tensor, output: Tensor, name: str, applied: Applied) -> Tensor:
    """Return ``output`` of a layer on ``x`` with the adapters' part."""
    x_ni, output_no = x.reshape(-1, x.shape[-1]), output.reshape(-1, output.shape[-1])
    number = len(x) if x.dim() > 2 and not applied.is_packed else len(x_ni)
    if misfit := find_misfit(number, applied, is_flat=x.dim() == 2 and not applied.is_packed):
        raise LoragenInferError(f"{name!r} sees the shape {list(x.shape)}, but {misfit}")
    # Scaled in full precision, and here, since a graph above that kept the scaling would allow one backward pass only.
    b_Kro = (applied.b_Kor[name] * applied.scaling_K11[name]).to(x.dtype).mT
    a_Kir = applied.a_Kri[name].to(x.dtype).mT
    if applied.dropout:
        x_ni = dropout(x_ni, applied.dropout)
    if applied.sizes is None or len(set(applied.sizes)) == 1:
        h_Ktr = torch.bmm(x_ni.view(applied.num_adapters, -1, x.shape[-1]), a_Kir)
        output_Kto = output_no.view(applied.num_adapters, -1, output.shape[-1])
        return torch.baddbmm(output_Kto, h_Ktr, b_Kro).view_as(output)
    per_count = x_ni.shape[0] // sum(applied.sizes)
    lengths = [size * per_count for size in applied.sizes]
    parts = zip(torch.split(x_ni, lengths), torch.split(output_no, lengths), a_Kir, b_Kro, strict=True)
    return torch.cat([torch.addmm(part, x_ti @ a_ir, b_ro) for x_ti, part, a_ir, b_ro in parts]).view_as(output)


def find_misfit(number: int, applied: Applied, *, is_flat: bool = False) -> str | None:
    """Compare how many samples or tokens there are with the counts; ``is_flat``: all tokens of the samples."""
    if applied.sizes is None:
        if number % applied.num_adapters == 0:
            return None
        return f"the adapters are {applied.num_adapters}, which do not divide it; give the counts of this batch."
    total = sum(applied.sizes)
    if number % total == 0 if is_flat else number == total:
        return None
    unit = "tokens" if applied.is_packed else "samples"
    counts = " + ".join(map(str, applied.sizes))
    return f"the adapters have {counts} {unit}; apply them with the counts of this batch."


def check_layout(name: str, x: Tensor, shape: tuple[int, int]) -> None:
    """Refuse a layer that sees other than the samples, or all their tokens in one row, of a batch of ``shape``."""
    num_samples, num_tokens = shape
    if x.shape[0] != (num_samples if x.dim() > 2 else num_samples * num_tokens):
        raise LoragenInferError(
            f"{name!r} sees the shape {list(x.shape)} of a batch of {num_samples} samples of {num_tokens} tokens, so "
            "which of them are whose is unknown; leave it out."
        )
