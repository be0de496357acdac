"""From prompts to embeddings."""

from loragen_infer.encoder.encoder import PromptEncoder

__all__ = [
    "PromptEncoder",
]
