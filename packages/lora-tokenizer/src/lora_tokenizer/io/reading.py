"""Reading an adapter from whatever holds one: a PEFT folder, a bare .safetensors, or a file of torch.save.

Decides which file of a folder counts, which tensors of a file belong to the adapter, and where its config comes from:
what the caller gives, then the folder's adapter_config.json, then what the file itself says (the metadata of
.safetensors, the hyper-parameters of a checkpoint), then the shapes.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.config import AdapterConfig, refuse_unrepresentable
from lora_tokenizer.errors import LoraTokenizerError, warn_once
from lora_tokenizer.io.finite import check_finite
from lora_tokenizer.io.ranges import map_tensors
from lora_tokenizer.io.safetensors_file import find_lora_tensors
from lora_tokenizer.io.settings import adapter_settings, find_state_dict
from lora_tokenizer.io.torch_file import TorchFile
from lora_tokenizer.io.writing import CONFIG_NAME, WEIGHTS_NAME
from lora_tokenizer.names import is_lora_name, join_name, parse_raw_name, split_name

BIN_NAME = "adapter_model.bin"
TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
MAX_CONFIG_BYTES = 16 << 20
_NOT_LORA = (".modules_to_save.", ".trainable_tokens_delta", ".token_adapter.")


class _Content(NamedTuple):
    """What one weights file holds."""

    tensors: dict[str, Tensor]
    others: list[str]
    settings: dict[str, Any]


def read_adapter(
    path: str | Path,
    *,
    config: AdapterConfig | Mapping[str, Any] | None = None,
    r: int | None = None,
    lora_alpha: float | None = None,
    adapter_name: str | None = None,
    prefix: str | None = None,
    allow_bin: bool = False,
    check_values: bool = True,
) -> LoraAdapter:
    """Read one adapter; of a checkpoint that holds more, only the LoRA tensors are read.

    Args:
        path: a PEFT folder, or a .safetensors, .pt, .pth, .ckpt (or, with `allow_bin`, .bin) file.
        config: settings to use instead of those beside or in the file; a mapping is merged over them.
        r: rank, in place of what the settings and the shapes say.
        lora_alpha: alpha, in place of what the settings say; needed where none do.
        adapter_name: which adapter, where the file holds several.
        prefix: what to cut off the front of every tensor name; by default everything up to `base_model.model.`.
        allow_bin: read .bin files (no code of theirs is run, as with every file).
        check_values: refuse NaN and Inf.

    Raises:
        LoraTokenizerError: nothing to read, damaged, not representable, NaN or Inf, or the alpha is unknown.

    >>> read_adapter("nowhere")
    Traceback (most recent call last):
    ...
    lora_tokenizer.errors.LoraTokenizerError: nowhere does not exist: give an adapter folder or a checkpoint file
    """
    source = Path(path)
    try:
        file = _weights_file(source, allow_bin)
        settings = read_settings(file.parent)
        if config is None:
            refuse_unrepresentable(settings, where=f"{file.parent / CONFIG_NAME}: ")
        content = _read_file(file, adapter_name, prefix)
    except OSError as error:
        raise LoraTokenizerError(f"cannot read {source}: {error.strerror or error}") from error
    _refuse_others(file, content.others)
    if not content.tensors:
        raise LoraTokenizerError(f"{file} holds no LoRA tensors ({len(content.others)} others): give a LoRA checkpoint")
    try:
        given = _merged({"r": r, "lora_alpha": lora_alpha})
        if isinstance(config, AdapterConfig):
            chosen = replace(config, **given)
        else:
            chosen = _complete(_merged(content.settings, settings, config or {}, given), content.tensors)
        adapter = LoraAdapter(config=chosen, tensors=content.tensors)
    except LoraTokenizerError as error:
        raise LoraTokenizerError(f"{source}: {error}") from error
    if check_values:
        check_finite(adapter, str(source))
    return adapter


def _weights_file(path: Path, allow_bin: bool) -> Path:
    names = [path / WEIGHTS_NAME, path / BIN_NAME] if path.is_dir() else [path]
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        wrong = f"holds no {WEIGHTS_NAME}" if path.is_dir() else "is not a regular file"
        wrong = wrong if path.exists() else "does not exist"
        raise LoraTokenizerError(f"{path} {wrong}: give an adapter folder or a checkpoint file")
    if file.suffix == ".bin" and not allow_bin:
        raise LoraTokenizerError(f"{file} is a pickle file: pass allow_bin=True to read it (no code in it is run)")
    if file.suffix not in (".safetensors", ".bin", *TORCH_SUFFIXES):
        raise LoraTokenizerError(
            f"{file} has the ending {file.suffix!r}: give a .safetensors, {', '.join(TORCH_SUFFIXES)} or .bin file"
        )
    return file


def read_settings(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of a folder, which counts for every checkpoint in it; empty where there is none."""
    path = folder / CONFIG_NAME
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        settings = json.loads(raw) if len(raw) <= MAX_CONFIG_BYTES else f"of over {MAX_CONFIG_BYTES} bytes"
    except (ValueError, RecursionError) as error:
        raise LoraTokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise LoraTokenizerError(f"{path} is not a JSON object that an adapter config could be")
    return settings


def _merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of which the last that is not None counts."""
    return {name: value for source in sources for name, value in source.items() if value is not None}


def _read_file(file: Path, adapter_name: str | None, prefix: str | None) -> _Content:
    if file.suffix == ".safetensors":
        ranges, others, settings = find_lora_tensors(file)
        renamed = _rename(file, ranges, adapter_name, prefix)
        places = {new: ranges[name] for name, new in renamed.items()}
    else:
        with TorchFile(file) as opened:
            state = find_state_dict(opened.root, file)
            renamed = _rename(file, filter(is_lora_name, state), adapter_name, prefix)
            places = {new: opened.locate(name, state[name]) for name, new in renamed.items()}
            others = [name for name in state if not is_lora_name(name)]
            settings = adapter_settings(opened.root)
    return _Content(map_tensors(file, places), others, settings)


def _rename(file: Path, names: Iterable[str], adapter_name: str | None, prefix: str | None) -> dict[str, str]:
    try:
        return _canonical_names(tuple(names), adapter_name, prefix)
    except LoraTokenizerError as error:
        raise LoraTokenizerError(f"{file}: {error}") from error


@functools.lru_cache(maxsize=8)
def _canonical_names(names: tuple[str, ...], adapter_name: str | None, prefix: str | None) -> dict[str, str]:
    """PEFT's name for each tensor of the chosen adapter; the checkpoints of one training run name them alike."""
    parsed = {name: parse_raw_name(name, prefix=prefix) for name in names}
    present = {raw.adapter for raw in parsed.values()}
    if len(present) > 1 and adapter_name is None:
        listed = ", ".join(sorted(str(name)[:40] for name in present)[:8])
        raise LoraTokenizerError(f"it holds {len(present)} adapters ({listed}): pick one with adapter_name=…")
    if adapter_name is not None and present and adapter_name not in present and present != {None}:
        raise LoraTokenizerError(f"it holds no adapter named {adapter_name!r}")
    renamed: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name, raw in parsed.items():
        if len(present) > 1 and raw.adapter != adapter_name:
            continue
        new = join_name(raw.module, raw.part)
        if new in taken:
            raise LoraTokenizerError(f"tensors {taken[new]!r} and {name!r} are both {new!r} once prefixes are off")
        renamed[name] = new
        taken[new] = name
    return renamed


def _refuse_others(file: Path, others: list[str]) -> None:
    """Say what is not read: copies of base weights are dropped, what was trained beside LoRA is refused."""
    for name in others:
        if any(mark in f".{name}" for mark in _NOT_LORA):
            raise LoraTokenizerError(
                f"{file}: tensor {name[:200]!r} is a fully trained module (modules_to_save) or token, which is not "
                f"LoRA and cannot be tokenized"
            )
    if file.name not in (WEIGHTS_NAME, BIN_NAME):
        return  # a training checkpoint, which holds the base weights too
    for name in others:
        if ".base_layer." not in name:
            raise LoraTokenizerError(
                f"{file}: tensor {name[:200]!r} is not a LoRA tensor and cannot be tokenized: save the adapter without "
                f"it (modules_to_save, trained biases, save_embedding_layers=False)"
            )
    if others:
        warn_once(f"the frozen base weight {others[0][:200]!r} that PEFT saved beside the adapter is not read")


def _complete(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> AdapterConfig:
    """Fill in what can be seen from the tensors: ranks, full module names, DoRA and biases."""
    full = dict(settings)
    if full.get("r") is None:
        full.update(_ranks(full.get("rank_pattern"), tensors))
    for setting, part in (("use_dora", ".lora_magnitude_vector"), ("lora_bias", ".lora_B.bias")):
        if full.get(setting) is None:
            full[setting] = any(name.endswith(part) for name in tensors)
    return AdapterConfig.from_peft(full, modules=dict.fromkeys(split_name(name)[0] for name in tensors))


def _ranks(pattern: object, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`r` and, unless there is one, `rank_pattern`, as the first axis of every A has them."""
    ranks = {}
    for name, tensor in tensors.items():
        module, part = split_name(name)
        if part in ("lora_A.weight", "lora_embedding_A") and tensor.dim() > 0 and tensor.shape[0] > 0:
            ranks[module] = tensor.shape[0]
    if not ranks:
        return {}
    most = Counter(ranks.values()).most_common(1)[0][0]
    odd = {f"^{module.replace('.', chr(92) + '.')}": rank for module, rank in ranks.items() if rank != most}
    return {"r": most, "rank_pattern": pattern or odd}
