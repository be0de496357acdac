"""Reading chosen tensors out of a large file by position, without touching the rest of it.

Both checkpoint formats end in this form: a tensor is a run of bytes of the file. Ranges that touch are read in one go
into memory of our own. A plain read is used and not a memory map, because a mapped file that its writer cuts short
kills the reader with SIGBUS, and because one read of 17 MB is faster than the page faults of a map.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError

_GAP = 4096


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


def read_ranges(path: Path, descriptor: int, ranges: Mapping[str, TensorRange]) -> dict[str, Tensor]:
    """Read tensors into one buffer per run of neighbouring ranges.

    Raises:
        LoraTokenizerError: the file ends before a tensor does.
    """
    out: dict[str, Tensor] = {}
    for run in _runs(ranges):
        start = run[0][1].start
        buffer = torch.empty(max(r.start + r.num_bytes for _, r in run) - start, dtype=torch.uint8)
        _read_exactly(path, descriptor, start, buffer)
        raw = buffer.numpy()
        for name, place in run:
            offset = place.start - start
            if offset % place.dtype.itemsize:
                raw_part = buffer[offset : offset + place.num_bytes].clone().numpy()
                flat = torch.frombuffer(raw_part, dtype=place.dtype)
            else:
                count = place.num_bytes // place.dtype.itemsize
                flat = torch.frombuffer(raw, dtype=place.dtype, count=count, offset=offset)
            if place.stride is None:
                out[name] = flat.view(place.shape)
            else:
                out[name] = flat.as_strided(place.shape, place.stride).contiguous()
    return out


def _runs(ranges: Mapping[str, TensorRange]) -> list[list[tuple[str, TensorRange]]]:
    runs: list[list[tuple[str, TensorRange]]] = []
    end = -math.inf
    for name, place in sorted(ranges.items(), key=lambda item: item[1].start):
        if place.start > end + _GAP:
            runs.append([])
            end = place.start
        runs[-1].append((name, place))
        end = max(end, place.start + place.num_bytes)
    return runs


def _read_exactly(path: Path, descriptor: int, start: int, buffer: Tensor) -> None:
    view, done = buffer.numpy().data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            raise LoraTokenizerError(
                f"{path} ends at byte {start + done}, in the middle of a tensor: copy the file again"
            )
        done += count


def num_values(shape: Sequence[int]) -> int:
    """Product of the axes, in Python's unbounded integers."""
    return math.prod(shape)
