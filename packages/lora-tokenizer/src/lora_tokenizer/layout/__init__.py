"""The token layout: which slice of which tensor each token holds, and the way there and back."""

from lora_tokenizer.layout.layout import TokenLayout

__all__ = [
    "TokenLayout",
]
