"""Finding the state dict and the LoRA settings inside a checkpoint of torch.save, whose layout nobody prescribes.

Lightning keeps weights under `state_dict` and settings under `hyper_parameters`; other trainers use `model` or write
the state dict bare. The settings are the first mapping (or object) that has a `lora_alpha`, searched from the
outside in, and the base model's name is found likewise. A rank is not looked for under other names than `r`: the
shapes tell it, and what trainers call `rank` may be that of a process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_tokenizer.config import REFUSED, AdapterConfig
from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.inert_pickle import Inert
from lora_tokenizer.names import is_lora_name

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "weights", "adapter")
_SETTING_KEYS = ("hyper_parameters", "hparams", "peft_config", "lora_config", "adapter_config", "config", "args")
_BASE_MODEL_KEYS = (
    "base_model_name_or_path",
    "model_name_or_path",
    "pretrained_model_name_or_path",
    "base_model_name",
    "base_model",
    "model_name",
    "model_id",
)
_MAX_NODES = 10_000


def find_state_dict(root: object, file: Path) -> dict[str, Any]:
    """The mapping of names to tensors: the content itself, or the first of the usual keys that holds LoRA tensors."""
    content = as_mapping(root)
    candidates = [content, *(as_mapping(content[key]) for key in _STATE_KEYS if key in content)]
    for candidate in candidates:
        named = {
            name: value for name, value in candidate.items() if isinstance(name, str) and not _is_setting(name, value)
        }
        if any(is_lora_name(name) for name in named):
            return named
    raise LoraTokenizerError(
        f"{file} holds no LoRA tensors, neither bare nor under {', '.join(_STATE_KEYS)}: give a LoRA checkpoint"
    )


def _is_setting(name: str, value: object) -> bool:
    """Whether it only looks like a LoRA tensor of no module, as `lora_alpha` and `lora_config` beside tensors do."""
    is_tensor = isinstance(value, Inert) and value.name.startswith(("torch._utils.", "torch._tensor."))
    return name.startswith("lora_") and "." not in name and not is_tensor


def adapter_settings(root: object) -> dict[str, Any]:
    """The LoRA settings among a checkpoint's hyper-parameters, or beside its tensors, in PEFT's names; empty where
    there are none."""
    mappings = [as_mapping(root), *_mappings(root)]
    settings = next((_pick(m) for m in mappings if isinstance(m.get("lora_alpha"), int | float)), {})
    if settings.get("base_model_name_or_path") is None:
        names = (m[key] for m in mappings for key in _BASE_MODEL_KEYS if isinstance(m.get(key), str))
        settings["base_model_name_or_path"] = next(names, None)
    return settings


def _mappings(root: object) -> Iterator[dict[Any, Any]]:
    """The mappings of the hyper-parameters, from the outside in; each once, as they may refer to themselves."""
    content = as_mapping(root)
    waiting = deque(content[key] for key in _SETTING_KEYS if key in content)
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_NODES:
        mapping = as_mapping(waiting.popleft())
        if id(mapping) not in seen:
            seen.add(id(mapping))
            yield mapping
            waiting.extend(value for value in mapping.values() if isinstance(value, dict | Inert))


def _pick(mapping: dict[Any, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(AdapterConfig)} | set(REFUSED) | {"bias", "exclude_modules", "init_lora_weights"}
    picked = {name: plain(mapping[name]) for name in known if name in mapping}
    if not isinstance(picked.get("bias", "none"), str):
        picked.pop("bias")  # an unrelated switch of the trainer
    return {name: value for name, value in picked.items() if not isinstance(value, Inert)}


def as_mapping(value: object) -> dict[Any, Any]:
    """A dict, or what a dict subclass, namespace or dataclass of the pickle holds; empty for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Inert):
        if value.items:
            return value.items
        if isinstance(value.state, dict):
            return value.state
    return {}


def plain(value: object) -> Any:
    """Text of an enum, list of a set, dict of a mapping class; anything else as it is."""
    if isinstance(value, Inert):
        if value.name.endswith((".set", ".frozenset")):
            inner = value.args[0] if isinstance(value.args, tuple) and value.args else value.elements or []
            return list(inner) if isinstance(inner, list | tuple) else value
        if value.items or isinstance(value.state, dict):
            return as_mapping(value)
        if isinstance(value.args, tuple) and len(value.args) == 1 and isinstance(value.args[0], str):
            return value.args[0]
    return value
