"""Writing an adapter as the folder that `PeftModel.from_pretrained` loads, whole or not at all.

Decides what may be replaced and what may be written; how a folder appears whole is `atomic`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.atomic import atomic_folder
from lora_tokenizer.errors import LoraTokenizerError, writing

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def write_adapter(adapter: LoraAdapter, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a new folder.

    The folder appears under its name only when both files are on the disk. With `overwrite`, an adapter folder (and no
    other kind of folder) of that name is replaced, with everything in it: on Linux in one step, so that readers see
    the old adapter or the new one; elsewhere see `atomic_folder` for the moment between two renames.

    Raises:
        LoraTokenizerError: the folder holds something, a tensor holds NaN or Inf, or the disk refuses.

    >>> import tempfile
    >>> from lora_tokenizer import AdapterConfig, read_adapter
    >>> config = AdapterConfig(r=1, lora_alpha=2, target_modules=("q",))
    >>> name = "base_model.model.q.lora_{}.weight"
    >>> tensors = {name.format("A"): torch.ones(1, 3), name.format("B"): torch.ones(2, 1)}
    >>> adapter = LoraAdapter(config=config, tensors=tensors)
    >>> with tempfile.TemporaryDirectory() as root:
    ...     read_adapter(write_adapter(adapter, f"{root}/mine")).modules
    ('q',)
    """
    target = Path(folder).absolute()
    check_finite(adapter, str(target))
    with writing(target):
        place = target.resolve()  # what a link points to is written to, the link stays
        _check_target(place, overwrite)
    with writing(target), atomic_folder(place, replace=overwrite) as folder_to_fill:
        text = json.dumps(adapter.config.to_peft(), indent=2) + "\n"
        (folder_to_fill / CONFIG_NAME).write_text(text, encoding="utf-8")
        try:
            save_file(_separate(adapter), folder_to_fill / WEIGHTS_NAME, metadata={"format": "pt"})
        except SafetensorError as error:  # how a full disk comes back
            raise LoraTokenizerError(f"cannot write {target / WEIGHTS_NAME}: {error}") from error
    return target


def check_finite(adapter: LoraAdapter, where: str) -> None:
    """Refuse NaN and Inf by the name of the tensor that holds them."""
    if all(torch.isfinite(values.sum(dtype=_SUM_DTYPES.get(values.dtype))) for values in _stretches(adapter)):
        return  # sums are several times cheaper than isfinite; they can overflow without a fault, so they only acquit
    for name, tensor in adapter.tensors.items():
        finite = torch.isfinite(tensor)
        if not finite.all():
            count = int((~finite).sum())
            raise LoraTokenizerError(
                f"{where}: tensor {name!r} holds {count} NaN or Inf values: leave this adapter out"
            )


_SUM_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def _stretches(adapter: LoraAdapter) -> Iterator[Tensor]:
    """All values of the adapter; tensors that share memory, as those of one file do, come as one stretch of it."""
    groups: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for tensor in adapter.tensors.values():
        if tensor.is_contiguous():
            groups.setdefault((tensor.untyped_storage().data_ptr(), tensor.dtype), []).append(tensor)
        else:
            yield tensor
    for tensors in groups.values():
        start = min(tensor.storage_offset() for tensor in tensors)
        end = max(tensor.storage_offset() + tensor.numel() for tensor in tensors)
        if end - start <= 2 * sum(tensor.numel() for tensor in tensors):
            yield tensors[0].detach().as_strided((end - start,), (1,), start)
        else:
            yield from tensors


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise LoraTokenizerError(f"{target} is a file: give the name of a folder to write the adapter to")
    is_empty = next(target.iterdir(), None) is None
    if is_empty:
        return
    if not overwrite:
        raise LoraTokenizerError(f"{target} exists: pass overwrite=True to replace it")
    if not (target / CONFIG_NAME).is_file():
        raise LoraTokenizerError(
            f"{target} holds something else than an adapter (no {CONFIG_NAME}), so it is not replaced"
        )


def _separate(adapter: LoraAdapter) -> dict[str, Tensor]:
    """Row-major CPU tensors of which no two share memory, as safetensors demands."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    end = 0
    for name, tensor in sorted(plain.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            plain[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return plain
