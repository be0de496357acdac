"""State dicts as checkpoints hold them, for the tests."""

from __future__ import annotations

import torch
from lora_tokenizer import LoraAdapter


def raw_state(adapter: LoraAdapter, before: str = "", adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """The state dict as a module tree has it: a prefix, and the adapter's name inside."""
    state = {}
    for name, tensor in adapter.tensors.items():
        stem, dot, field = name.rpartition(".")
        raw = f"{stem}.{adapter_name}{dot}{field}" if field in ("weight", "bias") else f"{name}.{adapter_name}"
        state[before + raw] = tensor
    return state
