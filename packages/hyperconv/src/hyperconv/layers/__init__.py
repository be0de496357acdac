"""HyperConv layers: one hyper-convolution, the two blocks made of three, and a chain of blocks."""

from hyperconv.layers.blocks import DualHyperConvBlock, SequentialHyperConvBlock
from hyperconv.layers.conv import HyperConv
from hyperconv.layers.decoder import HyperConvDecoder
from hyperconv.layers.published import decoder_from_published, from_published, published_shapes, to_published

__all__ = [
    "DualHyperConvBlock",
    "HyperConv",
    "HyperConvDecoder",
    "SequentialHyperConvBlock",
    "decoder_from_published",
    "from_published",
    "published_shapes",
    "to_published",
]
