"""The two files that a bundle may be, with the same content: safetensors with a seal, and torch's own ``.pt``.

The content is a dictionary: sections of tensors (``state_dict``, ``stats``, ``text_encoder_state``,
``training_task_hashes``) and plain values beside them. In the ``.pt`` file it lies as it is, and
``torch.load(…, weights_only=True)`` gives it back; in the safetensors file a section is a prefix of tensor names, and
the values are metadata. Nothing in either is code.
"""

import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from loragen_infer.bundle.sealed_file import read_sealed, write_sealed
from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.files import atomic_file, reading, save_torch
from loragen_infer.models.locate import hub_is_forbidden

__all__ = ["BUNDLE_NAME", "TORCH_BUNDLE_NAME", "find_bundle", "read_bundle_file", "write_bundle_file"]

BUNDLE_NAME = "generator.safetensors"
TORCH_BUNDLE_NAME = "generator_model.pt"

_FORMAT = "loragen-bundle"
_PREFIXES = {
    "state_dict": "generator.",
    "stats": "stats.",
    "text_encoder_state": "text_encoder.",
    "training_task_hashes": "training_tasks.",
    "task_means": "tasks.",  # only in bundles of older versions
}
_AS_JSON = ("format_version", "generator_config", "versions", "provenance", "training_tasks", "task_names")


def write_bundle_file(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path``, as torch's file if it ends in ``.pt`` and as safetensors otherwise.

    The file appears whole or not at all, and equal content gives equal bytes.
    """
    content = {"format": _FORMAT, **{key: value for key, value in content.items() if value is not None}}
    with atomic_file(path) as part:
        if path.suffix == ".pt":
            save_torch(content, part)
        else:
            _write_safetensors(part, content)


def read_bundle_file(file: Path) -> dict[str, Any]:
    """Return the content of the bundle ``file``, its tensors mapped from the file; of either kind."""
    is_torch = file.suffix.lower() in (".pt", ".pth", ".bin", ".ckpt") or zipfile.is_zipfile(file)
    content = _read_torch(file) if is_torch else _read_safetensors(file)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise LoragenInferError(f"{file} is no generator bundle; give one that fit wrote.")
    return content


def find_bundle(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the bundle file that ``path`` means: a file, a ``final_model`` or experiment folder, or a hub name.

    ``revision`` is the branch, tag or commit that the hub is asked for, ``token`` what lets one read there; by default
    that of ``hf auth login`` or ``HF_TOKEN``. Of the hub only the safetensors file is taken.

    Raises:
        LoragenInferError: There is none.
    """
    place = Path(path).expanduser()
    with reading(place):
        if revision is not None and place.exists():
            raise LoragenInferError(
                f"{path} is here and not on the hub, so it has no revision {revision!r}; leave it out."
            )
        if place.is_file():
            return place
        for folder in (place, place / "results" / "final_model"):
            for name in (BUNDLE_NAME, TORCH_BUNDLE_NAME):
                if (folder / name).is_file():
                    return folder / name
        is_there = place.exists()
    if is_there:
        raise LoragenInferError(f"{path} holds no {BUNDLE_NAME}; give a bundle, a final_model or an experiment folder.")
    return _find_on_hub(str(path), revision, token)


def _find_on_hub(name: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(name, BUNDLE_NAME, revision=revision, token=token))
    except RevisionNotFoundError as error:
        raise LoragenInferError(
            f"The model {name} has no revision {revision!r} on the hub; give a branch, tag or commit of it."
        ) from error
    except RemoteEntryNotFoundError as error:
        raise LoragenInferError(
            f"The hub's repository {name} holds no {BUNDLE_NAME}; give one that push_to_hub wrote."
        ) from error
    except Exception as error:  # of the hub's client, whose transport differs between releases, or of the disk
        ways = "a bundle, a final_model or experiment folder"
        if hub_is_forbidden() or isinstance(error, HFValidationError | RepositoryNotFoundError):
            at = f" at revision {revision}" if revision else ""
            forbidden = ", and HF_HUB_OFFLINE forbids the hub" if hub_is_forbidden() else ""
            raise LoragenInferError(
                f"The model {name} does not exist; give {ways}, or a repository that the hub lets you read (not found "
                f"there{at}{forbidden})."
            ) from error
        raise LoragenInferError(
            f"The model {name} is not here, and cannot be had from the hub: {reason_of(error)}; try again, or give "
            f"{ways}."
        ) from error


def _write_safetensors(part: Path, content: dict[str, Any]) -> None:
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for key, value in content.items():
        if key in _PREFIXES:
            # The format demands that no two share memory, as tied weights do.
            tensors |= {
                _PREFIXES[key] + name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in value.items()
            }
        else:
            name = "generator_config" if key == "config" else key
            metadata[name] = json.dumps(value, sort_keys=True) if name in _AS_JSON else value
    write_sealed(part, tensors, metadata)


def _read_safetensors(file: Path) -> dict[str, Any]:
    tensors, metadata = read_sealed(file)
    content: dict[str, Any] = {
        key: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for key, prefix in _PREFIXES.items()
    }
    for name, text in metadata.items():
        try:
            value = json.loads(text) if name in _AS_JSON else text
        except (ValueError, RecursionError) as error:
            raise LoragenInferError(f"{file} is a damaged bundle ({name}: {error}); copy or train it again.") from error
        content["config" if name == "generator_config" else name] = value
    return content


def _read_torch(file: Path) -> Any:
    try:
        is_archive = zipfile.is_zipfile(file)
        content = torch.load(file, weights_only=True, mmap=is_archive, map_location="cpu")
        damaged = zipfile.ZipFile(file).testzip() if is_archive else None
    # torch reads what ends in .safetensors as that
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        UnpicklingError,
        zipfile.BadZipFile,
        SafetensorError,
    ) as error:
        raise LoragenInferError(
            f"{file} is not a readable bundle ({reason_of(error)}); copy or train it again."
        ) from error
    if damaged is not None:
        raise LoragenInferError(f"{file} is damaged: {damaged} does not match its checksum; copy it again.")
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        beside = file.absolute().parent.parent / "results" / "final_model" / BUNDLE_NAME
        bundle = beside if beside.is_file() else f"results/final_model/{BUNDLE_NAME} of its experiment"
        raise LoragenInferError(f"{file} is a checkpoint for going on with training; the model to give is {bundle}.")
    # The first version of this file named no format.
    if isinstance(content, dict) and {"state_dict", "config", "stats"} <= content.keys():
        return {"format": _FORMAT, "format_version": 1, **content}
    return content
