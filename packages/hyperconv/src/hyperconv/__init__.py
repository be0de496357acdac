"""HyperConv layers, and the generator network from prompt embeddings to LoRA tokens; needs torch only."""

from hyperconv import reference
from hyperconv.config import GeneratorConfig
from hyperconv.errors import HyperConvError
from hyperconv.generator import HyperConvGenerator
from hyperconv.layers.blocks import DualHyperConvBlock, SequentialHyperConvBlock
from hyperconv.layers.conv import HyperConv
from hyperconv.layers.decoder import HyperConvDecoder
from hyperconv.layers.published import decoder_from_published, from_published, published_shapes, to_published

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
    "reference",
    "to_published",
]
