"""Names of LoRA tensors and modules: what counts as a LoRA tensor, what PEFT calls it, and in which order names stand.

PEFT's own name is `base_model.model.<module>.<part>`, with `<part>` one of `PARTS`. Checkpoints of other tools put more
in front (`model.base_model.model.…`) and keep the adapter's name inside (`lora_A.default.weight`); both are taken off.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from lora_tokenizer.errors import LoraTokenizerError

PREFIX = "base_model.model."
"""What PEFT writes before every module path."""

PARTS = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)
"""The tensors a module may have, in the order in which a layout packs them."""

MAX_NAME_LENGTH = 512

_DIGITS = re.compile(r"(\d+)")
_SEGMENT = re.compile(r"[\w\-]+")
_WRAPPER_SEGMENTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_RAW_PART = re.compile(
    r"(?P<module>.+)\.(?:"
    r"lora_(?P<matrix>[AB])(?:\.(?P<adapter_of_matrix>[^.]+))?\.(?P<field>weight|bias)"
    r"|lora_embedding_(?P<embedding>[AB])(?:\.(?P<adapter_of_embedding>[^.]+))?"
    r"|lora_magnitude_vector(?:\.(?P<adapter_of_magnitude>(?!weight$)[^.]+))?(?:\.weight)?"
    r")"
)


@dataclass(frozen=True, slots=True)
class RawName:
    """One LoRA tensor's name as a checkpoint spells it, taken apart."""

    module: str
    part: str
    adapter: str | None


@functools.lru_cache(maxsize=65536)
def natural_key(text: str) -> tuple[str | int, ...]:
    """Sort key that reads digits as numbers."""
    pieces = _DIGITS.split(text)
    return tuple(int(piece[:4000]) if index % 2 else piece for index, piece in enumerate(pieces))


def is_lora_name(name: str) -> bool:
    """Whether a tensor of this name belongs to a LoRA adapter (known to this package or not)."""
    return ".lora_" in name or name.startswith("lora_")


@functools.lru_cache(maxsize=65536)
def parse_raw_name(name: str, *, prefix: str | None = None) -> RawName:
    """Take a checkpoint's LoRA tensor name apart.

    `prefix` is cut off the front; without it everything up to and including `base_model.model.` is.

    Raises:
        LoraTokenizerError: the name is not one that PEFT gives to a LoRA tensor of a linear or embedding layer.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise LoraTokenizerError(f"a tensor name of {len(name)} characters ({name[:60]!r}…) is over {MAX_NAME_LENGTH}")
    match = _RAW_PART.fullmatch(name)
    if match is None:
        raise LoraTokenizerError(
            f"tensor {name!r} is a LoRA tensor that linear and embedding layers do not have, so it cannot be tokenized"
        )
    module = _WRAPPER_SEGMENTS.sub("", match["module"])
    if prefix is not None:
        module = module.removeprefix(prefix)
    else:
        before, found, after = f".{module}".partition(f".{PREFIX}")
        module = after if found else before[1:]
    check_module_name(module, name)
    if match["matrix"]:
        part = f"lora_{match['matrix']}.{match['field']}"
    elif match["embedding"]:
        part = f"lora_embedding_{match['embedding']}"
    else:
        part = "lora_magnitude_vector"
    if part not in PARTS:
        raise LoraTokenizerError(f"tensor {name!r} is a bias of lora_A, which PEFT does not have")
    adapter = match["adapter_of_matrix"] or match["adapter_of_embedding"] or match["adapter_of_magnitude"]
    return RawName(module, part, adapter)


def check_module_name(module: str, name: str) -> None:
    """Refuse a module path that no Python module tree has: `../../x`, empty segments, control characters."""
    if not module or not all(_SEGMENT.fullmatch(segment) for segment in module.split(".")):
        raise LoraTokenizerError(f"tensor {name!r} has the module path {module!r}, which is not a dotted module name")


@functools.lru_cache(maxsize=65536)
def split_name(name: str) -> tuple[str, str]:
    """`base_model.model.<module>.<part>` as `(module, part)`; anything else is a LoraTokenizerError."""
    if name.startswith(PREFIX) and len(name) <= MAX_NAME_LENGTH:
        for part in PARTS:
            if name.endswith(f".{part}"):
                module = name[len(PREFIX) : -len(part) - 1]
                check_module_name(module, name)
                return module, part
    raise LoraTokenizerError(
        f"tensor {name[:MAX_NAME_LENGTH]!r} is not named as PEFT names LoRA tensors (base_model.model.<module>.<part> "
        f"with <part> one of {', '.join(PARTS)})"
    )


def join_name(module: str, part: str) -> str:
    """PEFT's name of a tensor."""
    return f"{PREFIX}{module}.{part}"


@functools.lru_cache(maxsize=65536)
def packing_key(name: str) -> tuple[tuple[str | int, ...], str, int]:
    """Sort key of tensors: modules in natural order, the parts of one module in the order of `PARTS`.

    The name itself decides between those that count alike (`layers.1`, `layers.01`), so that file order never does.
    """
    module, part = split_name(name)
    return natural_key(module), module, PARTS.index(part)


@functools.lru_cache(maxsize=65536)
def layer_of(module: str) -> tuple[str, int] | None:
    """The stack and layer number of a module, or None outside the layers; the first number in the path counts.

    >>> layer_of("encoder.block.3.layer.0.SelfAttention.q"), layer_of("lm_head")
    (('encoder.block', 3), None)
    """
    segments = module.split(".")
    for index, segment in enumerate(segments):
        if segment.isascii() and segment.isdigit():
            return ".".join(segments[:index]), int(segment)
    return None
