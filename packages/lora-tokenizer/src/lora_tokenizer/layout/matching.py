"""Whether an adapter is one of those that a layout was made for; the error names the first difference."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch

from lora_tokenizer.adapter import DTYPES, LoraAdapter, dtype_name
from lora_tokenizer.config import AdapterConfig
from lora_tokenizer.errors import LoraTokenizerError, warn_once
from lora_tokenizer.layout.packing import Slot
from lora_tokenizer.names import split_name


@functools.lru_cache(maxsize=64)
def fits(dtype: torch.dtype, stored: str) -> bool:
    """Whether every value of `dtype` is one of the stored dtype."""
    return torch.promote_types(dtype, DTYPES[stored]) == DTYPES[stored]


def check_same(adapter: LoraAdapter, config: AdapterConfig, slots: Sequence[Slot]) -> None:
    """Refuse an adapter whose tensors are not those of the slots or whose settings act in another way."""
    for slot in slots:
        tensor = adapter.tensors.get(slot.name)
        if tensor is None:
            raise LoraTokenizerError(f"the adapter lacks tensor {slot.name!r} of the layout")
        if tuple(tensor.shape) != slot.shape:
            raise LoraTokenizerError(
                f"tensor {slot.name!r} has the shape {tuple(tensor.shape)} where the layout has {slot.shape}"
            )
        if not fits(tensor.dtype, slot.dtype):
            raise LoraTokenizerError(
                f"tensor {slot.name!r} is {dtype_name(tensor.dtype)} and the layout stores {slot.dtype}, which would "
                f"round it: convert it with adapter.to(torch.{slot.dtype}) or make the layout from this adapter"
            )
    names = {slot.name for slot in slots}
    if len(adapter.tensors) != len(names):
        extra = next(name for name in adapter.tensors if name not in names)
        raise LoraTokenizerError(f"tensor {extra!r} of the adapter is not in the layout")
    if adapter.config != config:
        _check_config(adapter.config, config, dict.fromkeys(split_name(slot.name)[0] for slot in slots))


def _check_config(found: AdapterConfig, wanted: AdapterConfig, modules: Iterable[str]) -> None:
    """Settings must act alike on every module; how the targets are spelled may differ."""
    for module in modules:
        for what, is_, should_be in zip(
            ("rank", "alpha", "scaling"), found.effect(module), wanted.effect(module), strict=True
        ):
            if is_ != should_be:
                raise LoraTokenizerError(
                    f"module {module!r} has the {what} {is_} where the layout has {should_be}: adapters of one layout "
                    f"must share r, lora_alpha, use_rslora and the patterns"
                )
    if found.fan_in_fan_out != wanted.fan_in_fan_out:
        raise LoraTokenizerError(
            f"fan_in_fan_out is {found.fan_in_fan_out} where the layout has {wanted.fan_in_fan_out}"
        )
    if found.base_model_name_or_path != wanted.base_model_name_or_path:
        warn_once(
            f"an adapter names the base model {found.base_model_name_or_path!r} where the layout has "
            f"{wanted.base_model_name_or_path!r}; it is encoded all the same"
        )
