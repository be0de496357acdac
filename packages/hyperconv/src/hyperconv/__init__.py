"""HyperConv layers, and the generator network from prompt embeddings to LoRA tokens; needs torch only."""

from hyperconv.blocks import DualHyperConvBlock, SequentialHyperConvBlock
from hyperconv.config import GeneratorConfig
from hyperconv.conv import HyperConv
from hyperconv.decoder import HyperConvDecoder
from hyperconv.errors import HyperConvError
from hyperconv.generator import HyperConvGenerator

__all__ = [
    "DualHyperConvBlock",
    "GeneratorConfig",
    "HyperConv",
    "HyperConvDecoder",
    "HyperConvError",
    "HyperConvGenerator",
    "SequentialHyperConvBlock",
]
