"""Chosen tensors of a large file, read into memory of their own: of a checkpoint of a gigabyte, only the LoRA.

Both formats end in this form, a tensor as a run of bytes of the file. Nothing is mapped, so a checkpoint may be larger
than the memory, and whoever rewrites or cuts the file afterwards changes nothing here.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError

_ALIGNMENT = 8


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


def read_tensors(path: Path, ranges: Mapping[str, TensorRange]) -> dict[str, Tensor]:
    """The tensors, row-major, as views of one new buffer (copies where the file holds them in another order).

    Raises:
        LoraTokenizerError: the file ends before a tensor does, or together they are larger than it is.
    """
    needed = sum(max(place.num_bytes, math.prod(place.shape) * place.dtype.itemsize) for place in ranges.values())
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if needed > size:
            raise LoraTokenizerError(
                f"{path} has {size} bytes and its LoRA tensors {needed}: they overlap or the file was cut off: save it "
                f"again"
            )
        ordered = sorted(ranges.items(), key=lambda item: item[1].start)
        offsets, total = {}, 0
        for name, place in ordered:
            total = -(-total // _ALIGNMENT) * _ALIGNMENT
            offsets[name] = total
            total += place.num_bytes
        buffer = torch.from_numpy(np.empty(-(-total // _ALIGNMENT) * _ALIGNMENT, np.uint8))
        run_start = run_end = at = 0  # neighbours in the file are read at once
        bytes_of_buffer = buffer.numpy().data
        for name, place in ordered:
            if place.start != run_end or offsets[name] - at != run_end - run_start:
                _fill(path, stream.fileno(), bytes_of_buffer[at : at + run_end - run_start], run_start)
                run_start, at = place.start, offsets[name]
            run_end = place.start + place.num_bytes
        _fill(path, stream.fileno(), bytes_of_buffer[at : at + run_end - run_start], run_start)
    typed = {dtype: buffer.view(dtype) for dtype in {place.dtype for place in ranges.values()}}
    tensors = {}
    for name, (dtype, shape, _, _, stride) in ranges.items():
        tensor = typed[dtype].as_strided(shape, stride or row_major(shape), offsets[name] // dtype.itemsize)
        tensors[name] = tensor if stride is None else tensor.contiguous()
    return tensors


def _fill(path: Path, descriptor: int, target: memoryview, position: int) -> None:
    while target:
        count = os.preadv(descriptor, [target], position)  # at most 2 GB at a time
        if count == 0:
            raise LoraTokenizerError(f"{path} ends inside a tensor: copy the file again")
        target, position = target[count:], position + count


@functools.lru_cache(maxsize=4096)
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in values, of a tensor that lies in row-major order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
