"""Weights of the published dual decoder: decides how its names and kernels map to HyperConvDecoder, both ways.

The published decoder (Drag-and-Drop LLMs, arXiv:2506.16406) names its parameters
`decoder.module_list.{i}.linear1.{norm.weight,norm.bias,conv1w.weight,conv1h.weight,conv2h.weight,conv2w.weight,bias}`
and `decoder.module_list.{i}.linear2.{weight,bias}`; 1 is the width-first and 2 the height-first branch.
Its W convolutions slide over (H, L) where ours slide over (L, H), so their kernels are transposed on the way.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from hyperconv.checks import GridShape
from hyperconv.errors import HyperConvError
from hyperconv.layers.decoder import HyperConvDecoder

__all__ = ["decoder_from_published", "from_published", "published_shapes", "to_published"]

_NAMES = {
    "norm.weight": "linear1.norm.weight",
    "norm.bias": "linear1.norm.bias",
    "conv_w1.weight": "linear1.conv1w.weight",
    "conv_h1.weight": "linear1.conv1h.weight",
    "conv_h2.weight": "linear1.conv2h.weight",
    "conv_w2.weight": "linear1.conv2w.weight",
    "bias": "linear1.bias",
    "conv_l.weight": "linear2.weight",
    "conv_l.bias": "linear2.bias",
}
_BACK = {theirs: ours for ours, theirs in _NAMES.items()}
_OURS = re.compile(r"blocks\.(\d+)\.(.+)")
_THEIRS = re.compile(r"decoder\.module_list\.(\d+)\.(.+)")


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `HyperConvDecoder(block="dual")` from that of the published decoder.

    Args:
        state_dict: the published names above; a wrapper's prefix must be taken off first.

    Returns:
        a new dict; only the kernels of the W convolutions are copied, the other tensors are shared.

    Raises:
        HyperConvError: a key outside the published names, or a block with a key missing.

    >>> decoder = HyperConvDecoder([(4, 3, 8), (4, 5, 6)], kernel_size=3, block="dual")
    >>> published = to_published(decoder.state_dict())
    >>> sorted(published)[0]
    'decoder.module_list.0.linear1.bias'
    >>> _ = decoder.load_state_dict(from_published(published))
    """
    return _rename(state_dict, _THEIRS, _BACK, "blocks", "decoder.module_list.{i}.linear1/linear2")


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict from that of a `HyperConvDecoder(block="dual")`; the inverse of `from_published`."""
    return _rename(state_dict, _OURS, _NAMES, "decoder.module_list", 'blocks.{i} of a HyperConvDecoder(block="dual")')


def published_shapes(state_dict: Mapping[str, Tensor]) -> list[GridShape]:
    """The shapes [(L, H, W), …] that a published state dict was trained with, read off its tensors.

    Raises:
        HyperConvError: keys missing or unknown, a tensor of the wrong rank, or blocks that do not follow each other.
    """
    ours = from_published(state_dict)
    shapes: list[GridShape] = []
    for i in range(len(ours) // len(_NAMES)):
        norm, bias, conv_l = (ours[f"blocks.{i}.{name}"] for name in ("norm.weight", "bias", "conv_l.weight"))
        if (norm.ndim, bias.ndim, conv_l.ndim) != (2, 2, 4) or not conv_l.is_floating_point():
            raise HyperConvError(
                f"block {i} of the state dict has a norm of shape {list(norm.shape)}, a bias of {list(bias.shape)} and "
                f"a conv_l of {list(conv_l.shape)} ({conv_l.dtype}), expected 2, 2 and 4 axes of floating point."
            )
        before, after = (conv_l.shape[1], *norm.shape), (conv_l.shape[0], *bias.shape)
        if shapes and shapes[-1] != before:
            raise HyperConvError(
                f"block {i} of the state dict takes {before}, expected {shapes[-1]} from block {i - 1}."
            )
        shapes += [after] if shapes else [before, after]
    return shapes


def decoder_from_published(state_dict: Mapping[str, Tensor]) -> HyperConvDecoder:
    """Build the dual decoder that a published state dict belongs to and load it, in the dtype of its tensors.

    Kernels longer than an axis are accepted, since some published decoders have them.

    Raises:
        HyperConvError: as `published_shapes`, or a tensor whose shape does not fit the rest.
    """
    shapes = published_shapes(state_dict)
    ours = from_published(state_dict)
    conv_l = ours["blocks.0.conv_l.weight"]
    # Made without storage first: a billion numbers would only be drawn to be overwritten, or to meet a shape error.
    decoder = HyperConvDecoder(
        shapes, conv_l.shape[-1], "dual", allow_oversized_kernel=True, device="meta", dtype=conv_l.dtype
    )
    for name, expected in decoder.state_dict().items():
        if ours[name].shape != expected.shape:
            raise HyperConvError(
                f"{name} of the state dict has shape {list(ours[name].shape)}, expected {list(expected.shape)}."
            )
    decoder.to_empty(device=conv_l.device).load_state_dict(ours)
    return decoder


def _rename(
    state_dict: Mapping[str, Tensor], pattern: re.Pattern[str], names: dict[str, str], prefix: str, expected: str
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        found = pattern.fullmatch(key)
        if found is None or found.group(2) not in names:
            raise HyperConvError(f"state dict has the key {key!r}, expected only names under {expected}.")
        name = names[found.group(2)]
        is_conv_w = "conv_w" in name or "conv_w" in found.group(2)
        if is_conv_w and tensor.ndim != 4:
            raise HyperConvError(f"{key} of the state dict has shape {list(tensor.shape)}, expected 4 axes.")
        renamed[f"{prefix}.{found.group(1)}.{name}"] = tensor.transpose(-1, -2).contiguous() if is_conv_w else tensor
    count = len({key.split(prefix)[1].split(".")[1] for key in renamed})
    wanted = {f"{prefix}.{i}.{name}" for i in range(max(count, 1)) for name in names.values()}
    missing = sorted(wanted - set(renamed))
    if missing:
        raise HyperConvError(
            f"state dict lacks {len(missing)} tensor(s), first {missing[0]!r} (as renamed), expected all."
        )
    return renamed
