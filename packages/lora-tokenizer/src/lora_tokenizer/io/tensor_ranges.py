"""Chosen tensors of a large file, mapped into memory: what is not touched is not read.

Both checkpoint formats end in this form: a tensor is a run of bytes of the file. The map is private, so writing to a
tensor does not reach the file. As with every mapped file, whoever rewrites it in place changes the tensors under the
reader, and whoever cuts it short kills the reader; files that are replaced by renaming, as here, are safe.
"""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Where one tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    num_bytes: int
    """Bytes from the first to the last value."""
    stride: tuple[int, ...] | None = None
    """Strides in values where the tensor does not lie in row-major order."""


def map_tensors(path: Path, descriptor: int, ranges: Mapping[str, TensorRange]) -> dict[str, Tensor]:
    """Tensors as views of one private map of the file; those that are not in row-major order are copied.

    Raises:
        LoraTokenizerError: the file ends before a tensor does.
    """
    if not ranges:
        return {}
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    num_mapped, file_bytes = len(mapped), torch.frombuffer(mapped, dtype=torch.uint8)
    typed: dict[torch.dtype, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, place in ranges.items():
        if place.start + place.num_bytes > num_mapped:
            raise LoraTokenizerError(f"{path} ends inside tensor {name!r}: copy the file again")
        size = place.dtype.itemsize
        offset, remainder = divmod(place.start, size)
        if remainder:  # a view needs whole values from the start of the file
            values = file_bytes[place.start : place.start + place.num_bytes].clone().view(place.dtype)
            offset = 0
        elif place.dtype in typed:
            values = typed[place.dtype]
        else:
            values = typed[place.dtype] = file_bytes[: num_mapped // size * size].view(place.dtype)
        tensor = values.as_strided(place.shape, place.stride or row_major(place.shape), offset)
        out[name] = tensor if place.stride is None else tensor.contiguous()
    return out


@functools.lru_cache(maxsize=4096)
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in values, of a tensor that lies in row-major order.

    >>> row_major((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(num_values(shape[axis + 1 :]) for axis in range(len(shape)))


def num_values(shape: Sequence[int]) -> int:
    """Product of the axes, in Python's unbounded integers."""
    return math.prod(shape)
