"""Where the LoRA tensors of a .safetensors file lie.

`safetensors.safe_open` checks the header; here only the places are taken from it, because its tensors are views of a
writable map of the whole file, which fails for a checkpoint larger than the memory.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.ranges import TensorRange
from lora_tokenizer.names import is_lora_name

MAX_HEADER_BYTES = 16 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_lora_tensors(path: Path) -> tuple[dict[str, TensorRange], list[str]]:
    """The place of every LoRA tensor, and the names of the others, which may have any dtype.

    Raises:
        LoraTokenizerError: the header is cut off, too large or inconsistent, or a LoRA tensor has another dtype.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if not 8 + length <= size:
        raise LoraTokenizerError(
            f"{path} is not a whole safetensors file: it has {size} bytes and its header claims {length}"
        )
    if length > MAX_HEADER_BYTES:
        raise LoraTokenizerError(
            f"{path} has a safetensors header of {length} bytes, over the limit of {MAX_HEADER_BYTES}"
        )
    found: dict[str, TensorRange] = {}
    others: list[str] = []
    at = 8 + length
    try:
        with safe_open(path, framework="np") as reader:
            for name in reader.offset_keys():  # one after the other, as safetensors leaves no holes
                entry = reader.get_slice(name)
                shape, dtype = tuple(entry.get_shape()), str(entry.get_dtype())
                num_bytes = math.prod(shape) * _num_bits(dtype) // 8
                if not is_lora_name(name):
                    others.append(name)
                elif dtype in _DTYPES:
                    found[name] = TensorRange(_DTYPES[dtype], shape, at, num_bytes)
                else:
                    raise LoraTokenizerError(
                        f"{path}: tensor {name[:200]!r} has the dtype {dtype}: use one of {', '.join(_DTYPES)}"
                    )
                at += num_bytes
    except (SafetensorError, OSError) as error:
        raise LoraTokenizerError(f"{path} has a safetensors header that cannot be used: {str(error)[:200]}") from error
    if at != size:
        raise LoraTokenizerError(f"{path}: its tensors end at byte {at} and the file has {size}: copy the file again")
    return found, others


def _num_bits(dtype: str) -> int:
    number = re.search(r"\d+", dtype)  # F32, BF16, F8_E4M3, U64; BOOL takes a byte
    return int(number[0]) if number else 8
