"""Moving values between tensors and tokens: one copy of each value, no Python work per token, no index tensor."""

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
    transposed: bool


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
    flat = np.empty(spans[-1].padded_end, _as_numpy(torch.empty(0, dtype=dtype)).dtype)
    for name, start, end, padded_end, transposed in spans:
        values = _as_numpy(tensors[name])
        if transposed:
            flat[start:end].reshape(values.shape[::-1])[:] = values.T
        else:
            flat[start:end] = values.reshape(-1)
        flat[end:padded_end] = 0
    return torch.from_numpy(flat).view(dtype)


def transpose_in_place(tokens: Tensor, spans: Sequence[Span], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Turn the values of every transposed span of plain tokens into its tensor's own, row-major order."""
    flat = _as_numpy(tokens).reshape(-1)
    for name, start, end, _, transposed in spans:
        if transposed:
            num_rows, num_columns = shapes[name]
            flat[start:end] = flat[start:end].reshape(num_columns, num_rows).T.reshape(-1)


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as numpy sees it; bfloat16 as integers."""
    return tensor.view(_INTEGERS.get(tensor.dtype, tensor.dtype)).numpy()


def concatenate(tensors: Mapping[str, Tensor], spans: Sequence[Span], dtype: torch.dtype) -> Tensor:
    """Flat tokens of tensors of any dtype on any device; gradients flow."""
    device = next(iter(tensors.values())).device
    zeros = torch.zeros(max(span.padded_end - span.end for span in spans), dtype=dtype, device=device)
    pieces = []
    for name, _, end, padded_end, transposed in spans:
        tensor = tensors[name].mT if transposed else tensors[name]
        pieces.append(tensor.reshape(-1))
        if padded_end > end:
            pieces.append(zeros[: padded_end - end])
    return torch.cat(pieces)
