"""The PEFT settings that give LoRA tensors their meaning, and the refusal of those that this package cannot represent.

Kept: whatever changes what the tensors do to the base model or how PEFT finds their modules again. Dropped: what only
mattered in training (dropout, ways of initialising that leave the base model alone). Refused by name: whatever puts
something outside the LoRA tensors (`modules_to_save`, trained biases), changes the base model (PiSSA, OLoRA, CorDA, …)
or makes the tensors mean something else (KaSA, BD-LoRA, activated LoRA, …).
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.patterns import check_patterns, first_match

MAX_RANK = 1 << 20

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80

_TRAINING_ONLY = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
        "velora_config",
    }
)
_BASE_CHANGING_INITS = ("corda", "loftq", "lora_ga", "mica", "olora", "pissa")
REFUSED = {
    "alora_invocation_tokens": "activated LoRA acts on some positions only",
    "arrow_config": "Arrow routes between several adapters",
    "ensure_weight_tying": "tied adapters share tensors",
    "kasa_config": "KaSA changes the base weights and puts a diagonal between A and B",
    "layer_replication": "it changes the layers of the base model",
    "megatron_config": "Megatron layers are split over ranks",
    "modules_to_save": "those modules are full weights and not LoRA; train without it, or merge them into the base "
    "model",
    "monteclora_config": "MonteCLoRA has tensors beside A and B",
    "target_parameters": "it adapts bare parameters and not linear or embedding layers",
    "trainable_token_indices": "those are embedding rows and not LoRA",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "use_qalora": "QA-LoRA pools the input of A",
}


def _one_line(value: object) -> str:
    """A short text of any value, however it is nested or refers to itself."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"


def _wrong(name: str, value: object, wanted: str) -> LoraTokenizerError:
    return LoraTokenizerError(f"{name} in the adapter config is {_one_line(value)}, where {wanted} belongs")


def _strings(value: object, name: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if isinstance(items, Iterable) and not isinstance(items, Mapping):
        out = tuple(items)
        if all(isinstance(item, str) and item for item in out):
            return out
    raise _wrong(name, value, "a list of names")


def _pairs(value: object, name: str) -> tuple[tuple[str, Any], ...]:
    """A mapping, or pairs as JSON has them, as ordered pairs; of two with one key the first counts."""
    items = value.items() if isinstance(value, Mapping) else () if value is None else value
    pairs: dict[str, Any] = {}
    try:
        for key, number in items:  # type: ignore[attr-defined]  # anything may be given
            if not isinstance(key, str):
                raise TypeError
            pairs.setdefault(key, number)
    except (TypeError, ValueError):
        raise _wrong(name, value, "a mapping") from None
    return tuple(pairs.items())


def _layers(value: object) -> tuple[int, ...]:
    items = (value,) if isinstance(value, int) else value
    if isinstance(items, list | tuple) and all(isinstance(item, int) and 0 <= item < 1 << 31 for item in items):
        return tuple(items)
    raise _wrong("layers_to_transform", value, "a list of layer numbers")


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_RANK


def _is_alpha(value: object) -> bool:
    # a comparison and not math.isfinite, which overflows on the whole numbers that JSON may hold
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What PEFT must know to load the tensors of one LoRA adapter.

    >>> config = AdapterConfig(r=8, lora_alpha=16, target_modules=("q_proj", "v_proj"))
    >>> config.scaling("model.layers.0.self_attn.q_proj")
    2.0
    """

    r: int
    """Rank of A and B where no rank_pattern says otherwise."""
    lora_alpha: float
    """Numerator of the scaling where no alpha_pattern says otherwise."""
    target_modules: tuple[str, ...]
    """Module names or their endings, sorted; a regular expression is resolved to full names when an adapter is read."""
    base_model_name_or_path: str | None = None
    """Base model as the adapter names it."""
    revision: str | None = None
    """Revision of the base model."""
    task_type: str | None = None
    """PEFT task, such as CAUSAL_LM."""
    use_rslora: bool = False
    """Scaling is alpha / sqrt(r) instead of alpha / r (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Modules carry a magnitude vector (https://arxiv.org/abs/2402.09353)."""
    lora_bias: bool = False
    """lora_B carries a bias."""
    fan_in_fan_out: bool = False
    """The base layers store their weight as [in, out] (GPT-2's Conv1D); A and B keep their shapes."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Pairs of module pattern and rank, of which the first match counts; a mapping is taken too."""
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    """Pairs of module pattern and alpha, likewise."""
    layers_to_transform: tuple[int, ...] | None = None
    """Layer numbers that carry LoRA; None for all."""
    layers_pattern: tuple[str, ...] | None = None
    """Name of the list of layers that layers_to_transform counts in."""

    def __post_init__(self) -> None:
        targets = tuple(sorted(set(_strings(self.target_modules, "target_modules"))))
        if not targets:
            raise LoraTokenizerError("target_modules is empty: name the modules that carry LoRA")
        object.__setattr__(self, "target_modules", targets)
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, _pairs(getattr(self, name), name))
            check_patterns(getattr(self, name))
        if self.layers_pattern is not None:
            object.__setattr__(self, "layers_pattern", _strings(self.layers_pattern, "layers_pattern") or None)
        if self.layers_to_transform is not None:
            object.__setattr__(self, "layers_to_transform", _layers(self.layers_to_transform))
        elif self.layers_pattern is not None:
            raise LoraTokenizerError("layers_pattern is given without layers_to_transform, which PEFT refuses to load")
        for name, rank in (("r", self.r), *((f"rank_pattern[{key!r}]", rank) for key, rank in self.rank_pattern)):
            if not _is_rank(rank):
                raise _wrong(name, rank, f"a whole number from 1 to {MAX_RANK}")
        alphas = ((f"alpha_pattern[{key!r}]", alpha) for key, alpha in self.alpha_pattern)
        for name, alpha in (("lora_alpha", self.lora_alpha), *alphas):
            if not _is_alpha(alpha):
                raise _wrong(name, alpha, "a finite number")
        for name in ("base_model_name_or_path", "revision", "task_type"):
            if not isinstance(getattr(self, name), str | None):
                raise _wrong(name, getattr(self, name), "text")
        for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")

    def rank(self, module: str) -> int:
        """The rank PEFT gives to `module`."""
        return first_match(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float:
        """The alpha PEFT gives to `module`."""
        return first_match(self.alpha_pattern, module, self.lora_alpha)

    def scaling(self, module: str) -> float:
        """The factor on B @ A: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        rank = self.rank(module)
        return self.alpha(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def effect(self, module: str) -> tuple[int, float, float]:
        """Rank, alpha and scaling of one module: what settings do to it, however they are spelt."""
        return self.rank(module), self.alpha(module), self.scaling(module)

    @classmethod
    def from_peft(cls, data: Mapping[str, Any], *, modules: Iterable[str] | None = None) -> AdapterConfig:
        """Read the content of an `adapter_config.json`.

        Args:
            data: the parsed JSON.
            modules: full names of the modules that carry LoRA, to stand in for `target_modules` where that is a regular
                expression, missing, or narrowed by `exclude_modules`.

        Raises:
            LoraTokenizerError: not LoRA, a setting that cannot be represented, or a missing or impossible value.

        >>> AdapterConfig.from_peft({"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"]}).target_modules
        ('q_proj', 'v_proj')
        """
        if not isinstance(data, Mapping):
            raise LoraTokenizerError(f"the adapter config is {_one_line(data)}, where a JSON object belongs")
        refuse_unrepresentable(data)
        for name in ("r", "lora_alpha"):
            if data.get(name) is None:
                raise LoraTokenizerError(f"{name} is missing from the adapter config: pass {name}=…")
        kept = {f.name: data[f.name] for f in fields(cls) if data.get(f.name) is not None}
        targets = data.get("target_modules")
        if targets is None or isinstance(targets, str) or data.get("exclude_modules"):
            if modules is None:
                raise LoraTokenizerError(
                    f"target_modules is {_one_line(targets)} and not a plain list: pass the full module names as "
                    f"modules=…"
                )
            kept["target_modules"] = tuple(modules)
            kept.pop("layers_to_transform", None)
            kept.pop("layers_pattern", None)
        if isinstance(kept.get("layers_to_transform"), list | tuple) and not kept["layers_to_transform"]:
            kept.pop("layers_to_transform")  # an empty list means all layers in PEFT
        return cls(**kept)

    def to_peft(self) -> dict[str, Any]:
        """What `adapter_config.json` needs so that PEFT 0.21 loads the adapter."""
        return {
            **asdict(self),
            **{name: list(value) for name, value in asdict(self).items() if isinstance(value, tuple)},
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "peft_type": "LORA",
            "bias": "none",
            "inference_mode": True,
        }


def refuse_unrepresentable(data: Mapping[str, Any], where: str = "") -> None:
    """Raise a LoraTokenizerError that names the first setting which this package cannot represent."""
    peft_type = data.get("peft_type", "LORA")
    if peft_type != "LORA":
        raise LoraTokenizerError(f"{where}peft_type is {_one_line(peft_type)}: only LORA adapters can be tokenized")
    if data.get("bias", "none") not in ("none", None):
        raise LoraTokenizerError(
            f"{where}bias is {_one_line(data['bias'])}: trained biases of the base model are not LoRA; train "
            f"with bias='none'"
        )
    init = data.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise LoraTokenizerError(
            f"{where}init_lora_weights is {_one_line(init)}, which changes the base weights: save it as plain LoRA "
            f"with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    known = {f.name for f in fields(AdapterConfig)} | _TRAINING_ONLY | {"bias", "exclude_modules"}
    for name, value in data.items():
        if name not in known and value:
            why = REFUSED.get(name, "this version does not know what it means")
            raise LoraTokenizerError(
                f"{where}{str(name)[:80]} is {_one_line(value)}, which cannot be represented: {why}"
            )
