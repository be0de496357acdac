"""HyperConv layers, and the generator network from prompt embeddings to LoRA tokens; needs torch only.

Layers and network, and torch with them, are imported when they are first asked for, so that a config is made at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hyperconv.config import GeneratorConfig, num_basis_for
from hyperconv.errors import HyperConvError

if TYPE_CHECKING:
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
    from hyperconv.ridge import LeftOutFit, RidgeFit, fit_ridge, left_out_fits, relatives

__all__ = [
    "DualHyperConvBlock",
    "GeneratorConfig",
    "HyperConv",
    "HyperConvDecoder",
    "HyperConvError",
    "HyperConvGenerator",
    "LeftOutFit",
    "RidgeFit",
    "SequentialHyperConvBlock",
    "decoder_from_published",
    "fit_ridge",
    "from_published",
    "left_out_fits",
    "num_basis_for",
    "published_shapes",
    "relatives",
    "to_published",
]

_HOMES = {
    "HyperConvGenerator": "hyperconv.generator",
    **dict.fromkeys(("LeftOutFit", "RidgeFit", "fit_ridge", "left_out_fits", "relatives"), "hyperconv.ridge"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "hyperconv.layers")), name)
