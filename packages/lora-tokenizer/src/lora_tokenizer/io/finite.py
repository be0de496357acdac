"""Refusing NaN and Inf by the name of the tensor that holds them, at the cost of reading every value once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.errors import LoraTokenizerError

_EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""Exponent bits of the dtypes in which a sum soon overflows; only NaN and Inf have all of them set."""


def check_finite(adapter: LoraAdapter, where: str) -> None:
    """Refuse an adapter with NaN or Inf.

    Raises:
        LoraTokenizerError: there is one; the message begins with `where` and names the first such tensor.
    """
    for name, tensor in adapter.tensors.items():
        if not _is_surely_finite(tensor.detach()):
            count = int((~torch.isfinite(tensor)).sum())
            if count:
                raise LoraTokenizerError(
                    f"{where}: tensor {name!r} holds {count} NaN or Inf values: leave this adapter out"
                )


def _is_surely_finite(tensor: Tensor) -> bool:
    """True only if all values are finite.

    A sum, which is finite only if all values are, is several times cheaper than a look at each; numpy takes it in the
    calling thread, where torch would wake its thread pool.
    """
    if not tensor.is_cpu or not tensor.is_contiguous():
        return False
    if tensor.dtype in _EXPONENTS:
        mask = np.int16(_EXPONENTS[tensor.dtype])
        return bool(np.bitwise_and(tensor.view(torch.int16).numpy(), mask).max() != mask)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.einsum("i->", tensor.numpy().reshape(-1))))  # faster than np.sum
