"""Several adapters of one base model as one, whose effect is the weighted sum of theirs.

The three ways are those of PEFT's ``add_weighted_adapter``. Legend: r rank, i and o the features into and out of a
layer, k the smaller of a product's sides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from lora_tokenizer import LoraAdapter
from torch import Tensor
from torch.nn.functional import pad

from loragen_infer.errors import LoragenInferError

__all__ = ["Combination", "merge_adapters"]

Combination = Literal["cat", "linear", "svd"]
_Factors = tuple[Tensor, Tensor]


def merge_adapters(
    adapters: Sequence[LoraAdapter], weights: Sequence[float], *, combination: Combination = "cat"
) -> LoraAdapter:
    """Return the adapter that does to the base model what ``adapters`` do together, each ``weights`` times.

    ``cat`` stacks the ranks, which is exact; the rank is the sum of theirs. ``svd`` is the best approximation at the
    largest of their ranks. ``linear`` adds the factors themselves, which is cheap and rough, and needs equal ranks. A
    module that only some adapters have is merged from those; a negative weight takes an effect away.

    Raises:
        LoragenInferError: There is no adapter, a weight is missing or not finite, the adapters are of different models
            or are more than two factors per layer (DoRA, lora_bias), or the result would hold NaN or Inf.

    Example:
        >>> from lora_tokenizer import AdapterConfig
        >>> config = AdapterConfig(r=1, lora_alpha=1, target_modules=("q",))
        >>> name = "base_model.model.q.lora_{}.weight"
        >>> tensors = {name.format("A"): torch.ones(1, 3), name.format("B"): torch.ones(2, 1)}
        >>> adapter = LoraAdapter(config=config, tensors=tensors)
        >>> merged = merge_adapters([adapter, adapter], [1.0, 0.5])
        >>> merged.config.r, merged.delta_weight("q")[0, 0].item()
        (2, 1.5)
    """
    _check(adapters, weights, combination)
    combine = {"cat": _stacked, "linear": _added, "svd": _decomposed}[combination]
    ranks = [max(adapter.config.rank(module) for module in adapter.modules) for adapter in adapters]
    rank = sum(ranks) if combination == "cat" else max(ranks)
    if combination == "linear" and len(set(ranks)) > 1:
        raise LoragenInferError(
            f"The adapters have the ranks {', '.join(map(str, ranks))}, whose factors cannot be added; merge them with "
            "cat or svd."
        )
    modules = dict.fromkeys(module for adapter in adapters for module in adapter.modules)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        tensors |= _merged_module(module, adapters, weights, combine, rank)
    layers = {(adapter.config.layers_to_transform, adapter.config.layers_pattern) for adapter in adapters}
    targets = {name for adapter in adapters for name in adapter.config.target_modules}
    config = replace(
        adapters[0].config,
        r=rank,
        lora_alpha=rank,
        use_rslora=False,  # the scaling is in the factors
        rank_pattern=(),
        alpha_pattern=(),
        # Which layers the adapters leave out may differ; full names say it.
        target_modules=tuple(targets) if len(layers) == 1 else tuple(modules),
        layers_to_transform=adapters[0].config.layers_to_transform if len(layers) == 1 else None,
        layers_pattern=adapters[0].config.layers_pattern if len(layers) == 1 else None,
    )
    return LoraAdapter(config=config, tensors=tensors)


def _merged_module(
    module: str,
    adapters: Sequence[LoraAdapter],
    weights: Sequence[float],
    combine: Callable[[list[_Factors], list[float], int], _Factors],
    rank: int,
) -> dict[str, Tensor]:
    """A ``[r, in]`` and B ``[out, r]`` of one module under their names."""
    chosen = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if module in adapter.modules]
    factors = [adapter.factors(module) for adapter, _ in chosen]
    if len({(a_ri.shape[1], b_or.shape[0]) for a_ri, b_or in factors}) > 1:
        raise LoragenInferError(f"The adapters have different shapes in {module!r}; they are of different models.")
    dtype = factors[0][0].dtype
    for a_ri, b_or in factors:
        dtype = torch.promote_types(torch.promote_types(dtype, a_ri.dtype), b_or.dtype)
    precise = torch.promote_types(dtype, torch.float32)
    scales = [weight * adapter.scaling(module) for adapter, weight in chosen]
    a_ri, b_or = combine([(a.to(precise), b.to(precise)) for a, b in factors], scales, rank)
    padding = rank - len(a_ri)
    a_ri, b_or = pad(a_ri, (0, 0, 0, padding)).to(dtype), pad(b_or, (0, padding)).to(dtype)
    if not (torch.isfinite(a_ri).all() and torch.isfinite(b_or).all()):
        raise LoragenInferError(f"The merged adapter would hold NaN or Inf in {module!r}; use smaller weights.")
    first = chosen[0][0]
    is_embedding = f"base_model.model.{module}.lora_embedding_A" in first.tensors
    name_a, name_b = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
    return {f"base_model.model.{module}.{name_a}": a_ri, f"base_model.model.{module}.{name_b}": b_or}


def _stacked(factors: list[_Factors], scales: list[float], _rank: int) -> _Factors:
    a_ri = torch.cat([scale * a for (a, _), scale in zip(factors, scales, strict=True)])
    return a_ri, torch.cat([b for _, b in factors], dim=1)


def _added(factors: list[_Factors], scales: list[float], _rank: int) -> _Factors:
    roots = [math.sqrt(abs(scale)) for scale in scales]
    terms_a = [math.copysign(root, scale) * a for (a, _), root, scale in zip(factors, roots, scales, strict=True)]
    terms_b = [root * b for (_, b), root in zip(factors, roots, strict=True)]
    if len({term.shape for term in terms_a}) > 1:
        raise LoragenInferError("The adapters have different ranks in a module; merge them with cat or svd.")
    return torch.stack(terms_a).sum(dim=0), torch.stack(terms_b).sum(dim=0)


def _decomposed(factors: list[_Factors], scales: list[float], rank: int) -> _Factors:
    a_ri, b_or = _stacked(factors, scales, rank)
    # The singular values of the product are those of the small triangles, without the product itself.
    basis_a_ik, triangle_a_kr = torch.linalg.qr(a_ri.T)
    basis_b_ok, triangle_b_kr = torch.linalg.qr(b_or)
    left, values, right = torch.linalg.svd(triangle_b_kr @ triangle_a_kr.T, full_matrices=False)
    return right[:rank] @ basis_a_ik.T, basis_b_ok @ left[:, :rank] * values[:rank]


def _check(adapters: Sequence[LoraAdapter], weights: Sequence[float], combination: str) -> None:
    if combination not in get_args(Combination):
        raise LoragenInferError(
            f"The combination is {combination!r}, where one of {', '.join(get_args(Combination))} belongs."
        )
    if not adapters:
        raise LoragenInferError("There are no adapters to merge; give one at least.")
    if len(adapters) != len(weights):
        raise LoragenInferError(f"There are {len(adapters)} adapters and {len(weights)} weights; give one for each.")
    if wrong := [weight for weight in weights if not math.isfinite(weight)]:
        raise LoragenInferError(f"A weight is {wrong[0]}, where a finite number belongs.")
    for option in ("use_dora", "lora_bias"):
        if any(getattr(adapter.config, option) for adapter in adapters):
            raise LoragenInferError(
                f"An adapter with {option} is more than two factors per layer; it cannot be merged."
            )
    names = dict.fromkeys(filter(None, (adapter.config.base_model_name_or_path for adapter in adapters)))
    if len(names) > 1:
        raise LoragenInferError(
            f"The adapters are of different base models, {' and '.join(map(repr, names))}; merge those of one model."
        )
