"""Adapters on disk: every format that is read, and the one that is written."""

from lora_tokenizer.io.finding import find_adapters
from lora_tokenizer.io.reading import read_adapter
from lora_tokenizer.io.writing import write_adapter

__all__ = [
    "find_adapters",
    "read_adapter",
    "write_adapter",
]
