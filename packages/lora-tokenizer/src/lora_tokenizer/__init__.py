"""LoRA checkpoints in, a fixed token tensor out, and back to the bit.

Names are imported when they are first used, so that `python -m lora_tokenizer --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_tokenizer.adapter import LoraAdapter
    from lora_tokenizer.canonical import canonical_form
    from lora_tokenizer.config import AdapterConfig
    from lora_tokenizer.errors import LoraTokenizerError
    from lora_tokenizer.finding import find_adapters
    from lora_tokenizer.inspecting import (
        AdapterReport,
        FolderReport,
        ModuleReport,
        RoundTripReport,
        analyze_checkpoints,
        check_round_trip,
        encode_many,
        inspect_adapter,
        same_bits,
    )
    from lora_tokenizer.layout import TokenLayout
    from lora_tokenizer.reading import read_adapter
    from lora_tokenizer.stats import TokenStats
    from lora_tokenizer.store import TokenStore
    from lora_tokenizer.token_set import TokenSet
    from lora_tokenizer.writing import write_adapter

__all__ = [
    "AdapterConfig",
    "AdapterReport",
    "FolderReport",
    "LoraAdapter",
    "LoraTokenizerError",
    "ModuleReport",
    "RoundTripReport",
    "TokenLayout",
    "TokenSet",
    "TokenStats",
    "TokenStore",
    "analyze_checkpoints",
    "canonical_form",
    "check_round_trip",
    "encode_many",
    "find_adapters",
    "inspect_adapter",
    "read_adapter",
    "same_bits",
    "write_adapter",
]

_HOMES = {
    "AdapterConfig": "config",
    "AdapterReport": "inspecting",
    "FolderReport": "inspecting",
    "LoraAdapter": "adapter",
    "LoraTokenizerError": "errors",
    "ModuleReport": "inspecting",
    "RoundTripReport": "inspecting",
    "TokenLayout": "layout",
    "TokenSet": "token_set",
    "TokenStats": "stats",
    "TokenStore": "store",
    "analyze_checkpoints": "inspecting",
    "canonical_form": "canonical",
    "check_round_trip": "inspecting",
    "encode_many": "inspecting",
    "find_adapters": "finding",
    "inspect_adapter": "inspecting",
    "read_adapter": "reading",
    "same_bits": "inspecting",
    "write_adapter": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
