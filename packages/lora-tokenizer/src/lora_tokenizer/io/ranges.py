"""Chosen tensors of a large file as views of a map of it: of a checkpoint of a gigabyte, only the LoRA is ever read.

Both formats end in this form, a tensor as a run of bytes of the file. The map is private, so writing to a tensor does
not reach the file. As with every map, whoever rewrites the file in place changes the tensors, and whoever cuts it short
kills the reader; files that are replaced by renaming, as here, are safe.
"""

from __future__ import annotations

import functools
import math
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError

_WITHOUT_RESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE: a file may be larger than the memory


class TensorRange(NamedTuple):
    """Where one tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    num_bytes: int
    """Bytes from the first to the last value."""
    stride: tuple[int, ...] | None = None
    """Strides in values where the tensor does not lie in row-major order."""


def map_tensors(path: Path, ranges: Mapping[str, TensorRange]) -> dict[str, Tensor]:
    """The tensors, row-major: views of one map, and copies where the file has another order or alignment."""
    with path.open("rb") as stream:
        flags, protection = mmap.MAP_PRIVATE | _WITHOUT_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        mapped = mmap.mmap(stream.fileno(), 0, flags=flags, prot=protection)
    size = len(mapped)
    needed = sum(math.prod(place.shape) * place.dtype.itemsize for place in ranges.values())
    if needed > size or any(place.start + place.num_bytes > size for place in ranges.values()):
        raise LoraTokenizerError(
            f"{path} has {size} bytes and its LoRA tensors {needed}: they overlap or it was cut off: save it again"
        )
    file_bytes = torch.frombuffer(mapped, dtype=torch.uint8)
    typed = {
        dtype: file_bytes[: size // dtype.itemsize * dtype.itemsize].view(dtype)
        for dtype in {place.dtype for place in ranges.values()}
    }
    tensors = {}
    for name, (dtype, shape, start, num_bytes, stride) in ranges.items():
        values, (offset, remainder) = typed[dtype], divmod(start, dtype.itemsize)
        if remainder:  # a view needs whole values from the start of the file
            values, offset = file_bytes[start : start + num_bytes].clone().view(dtype), 0
        tensor = values.as_strided(shape, stride or row_major(shape), offset)
        tensors[name] = tensor if stride is None else tensor.contiguous()
    return tensors


@functools.lru_cache(maxsize=4096)
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in values, of a tensor that lies in row-major order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
