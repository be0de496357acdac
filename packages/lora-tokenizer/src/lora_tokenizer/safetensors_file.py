"""The header of a .safetensors file: where each tensor lies, checked before anything is read or allocated; and a writer
that takes its data in pieces, so that a file of any size needs the memory of one piece.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here and not by the library because that
opens a map and builds every tensor of the file, while a LoRA reader wants the place of a few.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.tensor_ranges import TensorRange, num_values

MAX_HEADER_BYTES = 64 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_header(path: Path, descriptor: int) -> tuple[dict[str, Any], int]:
    """The header's JSON and the position of the first data byte.

    Raises:
        LoraTokenizerError: the header is cut off, too large, not JSON, or names a tensor twice.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 8, 0)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        raise LoraTokenizerError(
            f"{path} is not a whole safetensors file: it has {size} bytes and its header claims {length}"
        )
    if length > MAX_HEADER_BYTES:
        raise LoraTokenizerError(
            f"{path} has a safetensors header of {length} bytes, over the limit of {MAX_HEADER_BYTES}"
        )
    try:
        header = json.loads(os.pread(descriptor, length, 8), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise LoraTokenizerError(f"{path} has a safetensors header that cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise LoraTokenizerError(f"{path} has a safetensors header that is not a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:200]!r} comes twice")
    return out


def header_bytes(tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """The header of a file whose data follow in the order of `tensors` (name, dtype, shape)."""
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, shape in tensors:
        end = at + num_values(shape) * dtype.itemsize
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)  # so that every mapped tensor is aligned
    text += b" " * 56
    return len(text).to_bytes(8, "little") + text


def locate(path: Path, descriptor: int, wanted: Callable[[str], bool]) -> tuple[dict[str, TensorRange], list[str]]:
    """The places of the tensors whose name is wanted, and the names of the others.

    Raises:
        LoraTokenizerError: an entry is malformed, lies outside the file, overlaps another, or has an unknown dtype.
    """
    header, data_start = read_header(path, descriptor)
    header.pop("__metadata__", None)
    num_data = os.fstat(descriptor).st_size - data_start
    found: dict[str, TensorRange] = {}
    others: list[str] = []
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        begin, end = _offsets(path, name, entry, num_data)
        spans.append((begin, end, name))
        if wanted(name):
            found[name] = _range(path, name, entry, begin, end, data_start)
        else:
            others.append(name)
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise LoraTokenizerError(f"{path}: tensors {first[:200]!r} and {second[:200]!r} overlap")
    return found, others


def _offsets(path: Path, name: str, entry: object, num_data: int) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int(begin), int(end)], "dtype": str(), "shape": [*shape]} if (
            0 <= begin <= end <= num_data
        ):
            if all(type(axis) is int and axis >= 0 for axis in shape):
                return begin, end
    raise LoraTokenizerError(
        f"{path}: the header entry of tensor {name[:200]!r} is malformed or lies outside the file of {num_data} "
        f"data bytes"
    )


def _range(path: Path, name: str, entry: dict[str, Any], begin: int, end: int, data_start: int) -> TensorRange:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise LoraTokenizerError(
            f"{path}: tensor {name[:200]!r} has the dtype {entry['dtype'][:40]!r}: LoRA tensors must be one of "
            f"{', '.join(_DTYPES)}"
        )
    shape = tuple(entry["shape"])
    if len(shape) > 8:
        raise LoraTokenizerError(f"{path}: tensor {name[:200]!r} has {len(shape)} axes")
    needed = num_values(shape) * dtype.itemsize
    if needed != end - begin:
        raise LoraTokenizerError(
            f"{path}: tensor {name[:200]!r} of shape {shape[:8]} needs {needed} bytes and the header gives it "
            f"{end - begin}"
        )
    return TensorRange(dtype, shape, data_start + begin, end - begin)
