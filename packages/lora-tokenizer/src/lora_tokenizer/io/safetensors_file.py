"""Where the LoRA tensors of a .safetensors file lie.

`safetensors.safe_open` checks the header; only the places are taken from it, because its tensors are views of a
writable map of the whole file, which fails for a checkpoint larger than the memory.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.ranges import TensorRange
from lora_tokenizer.names import is_lora_name

MAX_HEADER_BYTES = 16 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_lora_tensors(path: Path) -> tuple[dict[str, TensorRange], list[str]]:
    """The place of every LoRA tensor, and the names of the others, which may have any dtype."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise LoraTokenizerError(f"{path} is no safetensors file, or its header of {length} bytes is too large")
        header = stream.read(length)
    try:
        with safe_open(path, framework="np"):  # checks sizes, places and that they cover the file without a hole
            return _places(header)
    except (SafetensorError, ValueError, OSError) as error:
        raise LoraTokenizerError(f"{path} is not a whole safetensors file: {str(error)[:200]}") from error


@functools.lru_cache(maxsize=8)  # the checkpoints of one training run have the same header
def _places(header: bytes) -> tuple[dict[str, TensorRange], list[str]]:
    found: dict[str, TensorRange] = {}
    others: list[str] = []
    for name, entry in json.loads(header).items():
        if is_lora_name(name):
            if entry["dtype"] not in _DTYPES:
                raise ValueError(
                    f"tensor {name[:200]!r} has the dtype {entry['dtype']}: use one of {', '.join(_DTYPES)}"
                )
            start, end = entry["data_offsets"]
            place = TensorRange(_DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + len(header) + start, end - start)
            found[name] = place
        elif name != "__metadata__":
            others.append(name)
    return found, others
