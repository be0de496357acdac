"""Several adapters of one base model as one, by the definitions of PEFT's ``add_weighted_adapter``.

cat: the factors side by side, so ΔW is the weighted sum itself and the ranks add up. svd: the ΔW closest to it of the
highest rank among the adapters. linear: A and B are added by themselves, which puts products of one adapter's B with
another's A into ΔW and so is rough, but keeps the rank.

Legend: r rank, R the sum of the ranks, i and o the features into and out of a layer, K adapters.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from lora_tokenizer import LoraAdapter
from torch import Tensor

from loragen_infer.errors import LoragenInferError
from loragen_infer.models.locate import is_same_model

__all__ = ["COMBINATIONS", "Combination", "merge_adapters"]

Combination = Literal["cat", "linear", "svd"]
_Factors = Sequence[tuple[Tensor, Tensor, float]]
"""Of one module and every adapter: A, B, and weight times scaling."""


def merge_adapters(
    adapters: Sequence[LoraAdapter], weights: Sequence[float], *, combination: Combination = "cat"
) -> LoraAdapter:
    """Return one adapter for the sum of what ``adapters`` do, each times its weight, in the dtypes of the first.

    Raises:
        LoragenInferError: No adapters, another number of weights, a weight that is not finite; adapters of different
            base models, modules or shapes; DoRA or a bias, whose effects do not add up; different ranks where
            ``linear`` needs equal ones; or the result would hold NaN or Inf.
    """
    if combination not in COMBINATIONS:
        raise LoragenInferError(f"The combination is {combination!r}; give one of {', '.join(COMBINATIONS)}.")
    if not adapters or len(weights) != len(adapters):
        raise LoragenInferError(
            f"There are {len(weights)} weights for {len(adapters)} adapters; give one for each of one or more adapters."
        )
    for weight in weights:
        if not math.isfinite(weight):
            raise LoragenInferError(f"A weight is {weight}, where a finite number belongs.")
    for number, adapter in enumerate(adapters, start=1):
        _check_fits(adapters[0], adapter, number)
    highest = [max(adapter.config.rank(module) for module in adapter.modules) for adapter in adapters]
    rank = sum(highest) if combination == "cat" else max(highest)
    tensors: dict[str, Tensor] = {}
    for module in adapters[0].modules:
        factors = [
            (_wide(a_ri), _wide(b_or), weight * adapter.scaling(module))
            for adapter, weight in zip(adapters, weights, strict=True)
            for a_ri, b_or in (adapter.factors(module),)
        ]
        if combination == "linear" and len({len(a_ri) for a_ri, _, _ in factors}) > 1:
            ranks = ", ".join(str(len(a_ri)) for a_ri, _, _ in factors)
            raise LoragenInferError(f"linear needs equal ranks, but {module} has {ranks}; use cat or svd.")
        a_ri, b_or = COMBINATIONS[combination](factors, rank)
        is_embedding = f"base_model.model.{module}.lora_embedding_A" in adapters[0].tensors
        ends = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        for end, factor in zip(ends, (_padded(a_ri, 0, rank), _padded(b_or, 1, rank)), strict=True):
            name = f"base_model.model.{module}.{end}"
            tensors[name] = factor.to(adapters[0].tensors[name].dtype).contiguous()
            if not tensors[name].isfinite().all():
                raise LoragenInferError(f"The merged adapter would hold NaN or Inf in {name}; use smaller weights.")
    bases = (adapter.config.base_model_name_or_path for adapter in adapters)
    config = dataclasses.replace(
        adapters[0].config,
        r=rank,
        # The scaling is in the factors, so what is left of it is 1.
        lora_alpha=rank,
        use_rslora=False,
        rank_pattern=(),
        alpha_pattern=(),
        base_model_name_or_path=next((base for base in bases if base), None),
    )
    return LoraAdapter(config=config, tensors=tensors)


def _check_fits(first: LoraAdapter, adapter: LoraAdapter, number: int) -> None:
    """Refuse what cannot be added up with the first adapter."""
    for setting in ("use_dora", "lora_bias"):
        if getattr(adapter.config, setting):
            raise LoragenInferError(
                f"Adapter {number} has {setting}, and its effect does not add up with others'; merge plain LoRA only."
            )
    bases = first.config.base_model_name_or_path, adapter.config.base_model_name_or_path
    if bases[0] and bases[1] and not is_same_model(bases[0], bases[1]):
        raise LoragenInferError(
            f"Adapter {number} is one of {bases[1]}, and adapter 1 one of {bases[0]}; merge adapters of one base model."
        )
    if other := set(first.modules) ^ set(adapter.modules):
        module = min(other)
        has, lacks = (number, 1) if module in adapter.modules else (1, number)
        raise LoragenInferError(
            f"Adapter {has} has the module {module}, and adapter {lacks} has not; merge adapters of the same modules."
        )
    for module in first.modules:
        shapes = [(a_ri.shape[1], b_or.shape[0]) for a_ri, b_or in (one.factors(module) for one in (first, adapter))]
        if shapes[0] != shapes[1]:
            raise LoragenInferError(
                f"{module} takes {shapes[1][0]} features to {shapes[1][1]} in adapter {number}, and {shapes[0][0]} to "
                f"{shapes[0][1]} in adapter 1; merge adapters of one base model."
            )


def _wide(factor: Tensor) -> Tensor:
    """Half precision as float32, float64 as it is."""
    return factor.to(torch.promote_types(factor.dtype, torch.float32))


def _cat(factors: _Factors, _rank: int) -> tuple[Tensor, Tensor]:
    a_Ri = torch.cat([factor * a_ri for a_ri, _, factor in factors])
    return a_Ri, torch.cat([b_or for _, b_or, _ in factors], dim=1)


def _linear(factors: _Factors, _rank: int) -> tuple[Tensor, Tensor]:
    # Both factors carry the root; the sign must be on one only.
    a_Kri = torch.stack([math.copysign(math.sqrt(abs(factor)), factor) * a_ri for a_ri, _, factor in factors])
    b_Kor = torch.stack([math.sqrt(abs(factor)) * b_or for _, b_or, factor in factors])
    return a_Kri.sum(0), b_Kor.sum(0)


def _svd(factors: _Factors, rank: int) -> tuple[Tensor, Tensor]:
    # Of the small [R, R] core between two orthogonal bases, which has the singular values of ΔW `[o, i]`.
    a_Ri, b_oR = (factor.double() for factor in _cat(factors, rank))
    basis_oR, upper_b = torch.linalg.qr(b_oR)
    basis_iR, upper_a = torch.linalg.qr(a_Ri.T)
    u, s, vh = torch.linalg.svd(upper_b @ upper_a.T)
    kept = min(rank, len(s))
    return vh[:kept] @ basis_iR.T, basis_oR @ (u[:, :kept] * s[:kept])


COMBINATIONS: dict[str, Callable[[_Factors, int], tuple[Tensor, Tensor]]] = {
    "cat": _cat,
    "linear": _linear,
    "svd": _svd,
}
"""The ways of adding adapters up, by PEFT's names of them."""


def _padded(factor: Tensor, axis: int, rank: int) -> Tensor:
    """Return ``factor`` with zeros up to ``rank``, which modules of lower rank need: vLLM knows one rank only."""
    missing = rank - factor.shape[axis]
    if not missing:
        return factor
    shape = (missing, factor.shape[1]) if axis == 0 else (factor.shape[0], missing)
    return torch.cat([factor, factor.new_zeros(shape)], dim=axis)
