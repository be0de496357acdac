"""The header of a .safetensors file: where each tensor lies, checked before anything is read or allocated; and a writer
that takes its data in pieces, so that a file of any size needs the memory of one piece.

Format: https://github.com/huggingface/safetensors#format. The header is parsed here and not by the library because that
opens a map and builds every tensor of the file, while a LoRA reader wants the place of a few.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.tensor_ranges import TensorRange, num_values
from lora_tokenizer.names import is_lora_name

MAX_HEADER_BYTES = 16 << 20
_CACHED_HEADER_BYTES = 1 << 20
_MAX_AXES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one file says."""

    places: dict[str, TensorRange]
    """Where the wanted tensors lie."""
    others: list[str]
    """Names of the tensors that were not wanted."""
    metadata: dict[str, str]
    """The free text that the format allows."""


def read_header(path: Path, descriptor: int, *, lora_only: bool = False) -> Header:
    """Read and check a header; with `lora_only`, other tensors may have any dtype and are only named.

    The headers of a training run's checkpoints are the same byte for byte, so those seen last are not parsed again.

    Raises:
        LoraTokenizerError: the header is cut off, too large or not JSON, names a tensor twice, has a malformed entry,
            or its tensors do not cover the rest of the file exactly.
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
    raw = os.pread(descriptor, length, 8)
    try:
        parse = _parse_cached if length <= _CACHED_HEADER_BYTES else _parse
        return parse(raw, size - 8 - length, lora_only)
    except (ValueError, RecursionError) as error:
        raise LoraTokenizerError(f"{path} has a safetensors header that cannot be used: {error}") from error


def _parse(raw: bytes, num_data: int, lora_only: bool) -> Header:
    content = json.loads(raw, object_pairs_hook=_unique)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not a mapping of text")
    places: dict[str, TensorRange] = {}
    others: list[str] = []
    spans: list[tuple[int, int]] = []
    for name, entry in content.items():
        begin, end = _offsets(name, entry)
        spans.append((begin, end))
        if not lora_only or is_lora_name(name):
            places[name] = _range(name, entry, begin, end, 8 + len(raw))
        else:
            others.append(name)
    at = 0
    for begin, end in sorted(spans):
        if begin != at or end < begin:
            raise ValueError(f"its tensors overlap or leave a hole at data byte {min(begin, at)}")
        at = end
    if at != num_data:
        raise ValueError(f"its tensors end at data byte {at} and the file has {num_data}")
    return Header(places, others, metadata)


_parse_cached = functools.lru_cache(maxsize=8)(_parse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {name[:200]!r} comes twice")
            seen.add(name)
    return out


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    if type(entry) is dict and entry.keys() == {"data_offsets", "dtype", "shape"}:
        offsets, shape = entry["data_offsets"], entry["shape"]
        are_lists = type(offsets) is type(shape) is list and len(offsets) == 2 and len(shape) <= _MAX_AXES
        if are_lists and type(entry["dtype"]) is str and all(type(n) is int and n >= 0 for n in (*offsets, *shape)):
            return offsets[0], offsets[1]  # that they do not cross shows when all are laid side by side
    raise ValueError(f"the entry of tensor {name[:200]!r} is malformed")


def _range(name: str, entry: dict[str, Any], begin: int, end: int, data_start: int) -> TensorRange:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(
            f"tensor {name[:200]!r} has the dtype {entry['dtype'][:40]!r}, where one of {', '.join(_DTYPES)} belongs"
        )
    shape = tuple(entry["shape"])
    needed = num_values(shape) * dtype.itemsize
    if needed != end - begin:
        raise ValueError(f"tensor {name[:200]!r} of shape {shape} needs {needed} bytes and is given {end - begin}")
    return TensorRange(dtype, shape, data_start + begin, end - begin)


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
