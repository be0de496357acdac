"""Refusing NaN and Inf by the name of the tensor that holds them, at the cost of reading every value once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.errors import LoraTokenizerError

_INFINITY_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""Of the dtypes in which a sum soon overflows; NaN has more than these."""


def check_finite(adapter: LoraAdapter, where: str) -> None:
    """Refuse an adapter with NaN or Inf."""
    name = find_not_finite(adapter)
    if name is not None:
        count = int((~torch.isfinite(adapter.tensors[name])).sum())
        raise LoraTokenizerError(f"{where}: tensor {name!r} holds {count} NaN or Inf values: leave this adapter out")


def find_not_finite(adapter: LoraAdapter) -> str | None:
    """Name of the first tensor that holds NaN or Inf; None if all values are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if all(map(_is_surely_finite, _stretches(adapter))):
            return None
    return next((name for name, tensor in adapter.tensors.items() if not torch.isfinite(tensor).all()), None)


def _is_surely_finite(values: Tensor) -> bool:
    """True only if all values are finite.

    A sum, which is finite only if all values are, is several times cheaper than a look at each; numpy takes it in the
    calling thread, where torch would wake its thread pool.
    """
    if not values.is_cpu:
        return False
    if values.dtype in _INFINITY_BITS:
        bits, infinity = values.reshape(-1).view(torch.int16).numpy(), _INFINITY_BITS[values.dtype]
        return bool(bits.max() < infinity and bits.view(np.uint16).max() < infinity | 0x8000)
    return bool(np.isfinite(np.einsum("i->", values.numpy().reshape(-1))))  # faster than np.sum


def _stretches(adapter: LoraAdapter) -> Iterator[Tensor]:
    """All values of the adapter; tensors that lie close together in memory, as those of a file do, in one piece."""
    groups: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for tensor in adapter.tensors.values():
        groups.setdefault((tensor.untyped_storage().data_ptr(), tensor.dtype), []).append(tensor.detach())
    for tensors in groups.values():
        start = min(tensor.storage_offset() for tensor in tensors)
        end = max(tensor.storage_offset() + tensor.numel() for tensor in tensors)
        is_dense = end - start <= 2 * sum(tensor.numel() for tensor in tensors)
        if is_dense and all(tensor.is_contiguous() for tensor in tensors):
            yield tensors[0].as_strided((end - start,), (1,), start)
        else:
            yield from tensors
