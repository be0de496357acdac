"""Finding the state dict and the LoRA settings inside a checkpoint of torch.save, whose layout nobody prescribes.

Lightning keeps weights under `state_dict` and settings under `hyper_parameters`; other trainers use `model` or write
the state dict bare. The settings are the first mapping (or object) that has a `lora_alpha`, searched from the
outside in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_tokenizer.config import REFUSED, AdapterConfig
from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io.inert_pickle import Inert
from lora_tokenizer.names import is_lora_name

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "weights", "adapter")
_SETTING_KEYS = ("hyper_parameters", "hparams", "peft_config", "lora_config", "adapter_config", "config", "args")
_RANK_ALIASES = ("lora_r", "lora_rank", "rank")
_MAX_NODES = 10_000


def find_state_dict(root: object, file: Path) -> dict[str, Any]:
    """The mapping of names to tensors: the content itself, or the first of the usual keys that holds LoRA tensors.

    Raises:
        LoraTokenizerError: no mapping with LoRA tensor names is there.
    """
    content = as_mapping(root)
    candidates = [content, *(as_mapping(content[key]) for key in _STATE_KEYS if key in content)]
    for candidate in candidates:
        named = {name: value for name, value in candidate.items() if isinstance(name, str)}
        if any(is_lora_name(name) for name in named):
            return named
    raise LoraTokenizerError(
        f"{file} holds no LoRA tensors, neither bare nor under {', '.join(_STATE_KEYS)}: give a LoRA checkpoint"
    )


def adapter_settings(root: object) -> dict[str, Any]:
    """The LoRA settings among a checkpoint's hyper-parameters, in PEFT's names; empty where there are none."""
    content = as_mapping(root)
    waiting = deque(content[key] for key in _SETTING_KEYS if key in content)
    for _ in range(_MAX_NODES):
        if not waiting:
            break
        mapping = as_mapping(waiting.popleft())
        if isinstance(mapping.get("lora_alpha"), int | float):
            return _pick(mapping)
        waiting.extend(value for value in mapping.values() if isinstance(value, dict | Inert))
    return {}


def _pick(mapping: dict[Any, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(AdapterConfig)} | set(REFUSED) | {"bias", "exclude_modules", "init_lora_weights"}
    picked = {name: plain(mapping[name]) for name in known if name in mapping}
    if not isinstance(picked.get("bias", "none"), str):
        picked.pop("bias")  # an unrelated switch of the trainer
    for alias in _RANK_ALIASES:
        if picked.get("r") is None and isinstance(mapping.get(alias), int):
            picked["r"] = mapping[alias]
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
