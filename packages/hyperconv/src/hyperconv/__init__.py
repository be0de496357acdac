"""HyperConv layers, and the generator network from prompt embeddings to LoRA tokens; needs torch only."""

from hyperconv.config import GeneratorConfig
from hyperconv.errors import HyperConvError
from hyperconv.generator import HyperConvGenerator
from hyperconv.layers import (
    DualHyperConvBlock,
    HyperConv,
    HyperConvDecoder,
    SequentialHyperConvBlock,
    decoder_from_published,
    from_published,
    published_shapes,
    to_published,
)

__all__ = [
    "DualHyperConvBlock",
    "GeneratorConfig",
    "HyperConv",
    "HyperConvDecoder",
    "HyperConvError",
    "HyperConvGenerator",
    "SequentialHyperConvBlock",
    "decoder_from_published",
    "from_published",
    "published_shapes",
    "to_published",
]
