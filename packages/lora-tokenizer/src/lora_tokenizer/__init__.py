"""LoRA checkpoints in, a fixed token tensor out, and back to the bit."""

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.canonical import canonical_form
from lora_tokenizer.config import AdapterConfig
from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.finding import find_adapters
from lora_tokenizer.layout import TokenLayout
from lora_tokenizer.reading import read_adapter
from lora_tokenizer.stats import TokenStats
from lora_tokenizer.writing import write_adapter

__all__ = [
    "AdapterConfig",
    "LoraAdapter",
    "LoraTokenizerError",
    "TokenLayout",
    "TokenStats",
    "canonical_form",
    "find_adapters",
    "read_adapter",
    "write_adapter",
]
