"""Writing an adapter as the folder that `PeftModel.from_pretrained` loads, whole or not at all.

Decides what may be replaced and what may be written; how a folder appears whole is `atomic`'s business.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, TensorSpec, serialize_file

from lora_tokenizer.adapter import LoraAdapter, dtype_name
from lora_tokenizer.errors import LoraTokenizerError, writing
from lora_tokenizer.io.atomic import atomic_folder
from lora_tokenizer.io.finite import check_finite

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_METADATA = {"format": "pt"}


def write_adapter(adapter: LoraAdapter, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a new folder.

    The folder appears under its name only when both files are on the disk. With `overwrite`, an adapter folder (and no
    other kind of folder) of that name is replaced, with everything in it, as `atomic_folder` does.

    Raises:
        LoraTokenizerError: the folder holds something, a tensor holds NaN or Inf, or the disk refuses.

    >>> import tempfile, torch
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
    with writing(target):
        place = target.resolve()  # what a link points to is written to, the link stays
        _check_target(place, overwrite)
    with writing(target), atomic_folder(place, replace=overwrite) as folder_to_fill:
        fill_folder(adapter, folder_to_fill, target)
    return target


def fill_folder(adapter: LoraAdapter, folder: Path, target: Path) -> None:
    """Write both files into `folder`, an empty one that will become `target`, which is what errors name.

    Raises:
        LoraTokenizerError: a tensor holds NaN or Inf, or safetensors cannot write.
        OSError: the disk refuses.
    """
    check_finite(adapter, str(target))
    text = json.dumps(adapter.config.to_peft(), indent=2) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    try:
        _save(adapter, folder / WEIGHTS_NAME)
    except SafetensorError as error:  # how a full disk comes back
        raise LoraTokenizerError(f"cannot write {target / WEIGHTS_NAME}: {error}") from error


def _save(adapter: LoraAdapter, path: Path) -> None:
    """Write the tensors, row-major, to a file of safetensors.

    Its writer for the tensors of torch checks each of many small ones for what these cannot be (sparse, tied), which
    takes longer than to write them.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    if sys.byteorder == "big":  # that writer swaps the bytes
        safetensors.torch.save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, _METADATA)
        return
    specs = {
        name: TensorSpec(
            dtype=dtype_name(tensor.dtype), shape=tensor.shape, data_ptr=tensor.data_ptr(), data_len=tensor.nbytes
        )
        for name, tensor in tensors.items()
    }
    serialize_file(specs, path, metadata=_METADATA)


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
