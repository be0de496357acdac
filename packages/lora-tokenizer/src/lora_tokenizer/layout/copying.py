"""Moving values from tensors into tokens: one copy of each value, no Python work per token, no index tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {torch.bfloat16: torch.int16}  # numpy has no bfloat16; its bits are copied


class Span(NamedTuple):
    """Where the values of one tensor go in the flat tokens, and where the padding behind them ends."""

    name: str
    start: int
    end: int
    padded_end: int


def are_plain(tensors: Mapping[str, Tensor]) -> bool:
    """Whether `copy_bytes` can take them: row-major CPU tensors of one dtype that need no gradient."""
    values = tensors.values()
    one_dtype = len({tensor.dtype for tensor in values}) == 1
    return one_dtype and all(t.is_cpu and t.is_contiguous() and not t.requires_grad for t in values)


def copy_bytes(tensors: Mapping[str, Tensor], spans: Sequence[Span], dtype: torch.dtype) -> Tensor:
    """Flat tokens of plain tensors of one dtype.

    numpy copies each piece in the calling thread. torch would wake its thread pool once per matrix, which is not
    faster for pieces of this size and hundreds of times slower when the cores are busy with something else. numpy
    also asks the system for large pages, which makes new memory several times cheaper to write to.
    """
    as_integer = _INTEGERS.get(dtype)
    kind = torch.empty(0, dtype=as_integer or dtype).numpy().dtype
    flat = np.empty(spans[-1].padded_end, kind)
    for name, start, end, padded_end in spans:
        tensor = tensors[name] if as_integer is None else tensors[name].view(as_integer)
        flat[start:end] = tensor.numpy().reshape(-1)
        flat[end:padded_end] = 0
    tokens = torch.from_numpy(flat)
    return tokens if as_integer is None else tokens.view(dtype)


def concatenate(tensors: Mapping[str, Tensor], spans: Sequence[Span], dtype: torch.dtype) -> Tensor:
    """Flat tokens of tensors of any dtype on any device; gradients flow."""
    device = next(iter(tensors.values())).device
    zeros = torch.zeros(max(span.padded_end - span.end for span in spans), dtype=dtype, device=device)
    pieces = []
    for name, _, end, padded_end in spans:
        pieces.append(tensors[name].reshape(-1))
        if padded_end > end:
            pieces.append(zeros[: padded_end - end])
    return torch.cat(pieces)
