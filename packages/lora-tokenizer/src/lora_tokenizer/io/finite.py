"""Refusing NaN and Inf by the name of the tensor that holds them, at the cost of reading every value once.

A sum is several times cheaper than looking at each value: it is finite only if all values are. It can overflow without
a fault, so it only acquits; where it does not, each tensor is looked at. numpy sums in the calling thread, where torch
would wake its thread pool, which is slower for adapters of this size as soon as the cores have something else to do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.errors import LoraTokenizerError

_EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""Exponent bits of the dtypes in which a sum soon overflows; only NaN and Inf have all of them set."""
_CHUNK_VALUES = 1 << 15


def check_finite(adapter: LoraAdapter, where: str) -> None:
    """Refuse an adapter with NaN or Inf.

    Raises:
        LoraTokenizerError: there is one; the message begins with `where` and names the first such tensor.
    """
    if all(_is_finite(values) for values in _stretches(adapter)):
        return
    for name, tensor in adapter.tensors.items():
        finite = torch.isfinite(tensor)
        if not finite.all():
            count = int((~finite).sum())
            raise LoraTokenizerError(
                f"{where}: tensor {name!r} holds {count} NaN or Inf values: leave this adapter out"
            )


def _is_finite(values: Tensor) -> bool:
    """True only if all values are finite; a sum that overflows makes it False for finite values too."""
    if not values.is_cpu:
        return bool(torch.isfinite(values).all())
    if values.dtype in _EXPONENTS:
        return _has_no_full_exponent(values.reshape(-1).view(torch.int16), _EXPONENTS[values.dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.einsum("i->", values.numpy().reshape(-1))))  # a sum, faster than np.sum


def _has_no_full_exponent(bits: Tensor, exponent: int) -> bool:
    array, mask = bits.numpy(), np.int16(exponent)
    buffer = np.empty(_CHUNK_VALUES, np.int16)
    for start in range(0, len(array), _CHUNK_VALUES):
        piece = array[start : start + _CHUNK_VALUES]
        if np.bitwise_and(piece, mask, out=buffer[: len(piece)]).max() == mask:
            return False
    return True


def _stretches(adapter: LoraAdapter) -> Iterator[Tensor]:
    """All values of the adapter; tensors that share memory, as those of one file do, come as one stretch of it."""
    groups: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for tensor in adapter.tensors.values():
        plain = tensor.detach()
        if plain.is_contiguous():
            groups.setdefault((plain.untyped_storage().data_ptr(), plain.dtype), []).append(plain)
        else:
            yield plain
    for tensors in groups.values():
        start = min(tensor.storage_offset() for tensor in tensors)
        end = max(tensor.storage_offset() + tensor.numel() for tensor in tensors)
        if end - start <= 2 * sum(tensor.numel() for tensor in tensors):
            yield tensors[0].as_strided((end - start,), (1,), start)
        else:
            yield from tensors
