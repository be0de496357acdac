"""LoRA checkpoints in, a fixed token tensor out, and back to the bit."""

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
