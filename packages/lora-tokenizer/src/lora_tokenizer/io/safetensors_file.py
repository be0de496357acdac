"""Where the LoRA tensors of a .safetensors file lie, and the adapter config that its metadata may hold.

`safetensors.safe_open` checks the header; only the places are taken from it, because its tensors are views of a
writable map of the whole file, which fails for a checkpoint larger than the memory.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.ranges import TensorRange
from lora_tokenizer.names import is_lora_name

MAX_HEADER_BYTES = 16 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class LoraTensors(NamedTuple):
    """What a .safetensors file holds."""

    places: dict[str, TensorRange]
    """The place of every LoRA tensor."""
    others: list[str]
    """The names of the other tensors, which may have any dtype."""
    settings: dict[str, Any]
    """PEFT's config, where the metadata has it as JSON under `adapter_config`; empty where not."""


def find_lora_tensors(path: Path) -> LoraTensors:
    """Where the LoRA tensors lie, and what else there is."""
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
def _places(header: bytes) -> LoraTensors:
    found: dict[str, TensorRange] = {}
    others: list[str] = []
    entries = json.loads(header)
    for name, entry in entries.items():
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
    return LoraTensors(found, others, _settings((entries.get("__metadata__") or {}).get("adapter_config", "{}")))


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"adapter_config in its metadata is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError("adapter_config in its metadata is not a JSON object")  # as what else is damaged
    return settings
