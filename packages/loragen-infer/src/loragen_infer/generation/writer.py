"""The four forms in which one generated adapter lies on disk, each whole or not at all, and each knowing its request.

peft: a folder with adapter_config.json, adapter_model.safetensors and a README.md. safetensors: one file, the config in
its metadata. pt: one file, a plain dict of tensors. tokens: one safetensors file, the tokens ``[N, W]``, the layout in
its metadata. Where the request's fingerprint stands in each is decided here, for writing and for reading.
"""

import json
import zipfile
from pathlib import Path
from typing import Literal

import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, write_adapter
from safetensors import SafetensorError, safe_open

from loragen_infer.bundle.sealed_file import write_sealed
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_file, atomic_folder
from loragen_infer.generation.card import CARD_NAME, read_request_fingerprint

__all__ = ["AdapterFormat", "file_suffix", "mark_torch_file", "read_mark", "save_torch_file", "write_in_format"]

AdapterFormat = Literal["peft", "safetensors", "pt", "tokens"]
_MARK = "loragen_request"


def file_suffix(kind: AdapterFormat) -> str:
    """Return how the names of files in this form end; folders end in nothing.

    Example:
        >>> file_suffix("tokens")
        '.tokens.safetensors'
    """
    return {"peft": "", "safetensors": ".safetensors", "pt": ".pt", "tokens": ".tokens.safetensors"}[kind]


def write_in_format(
    adapter: LoraAdapter, path: Path, kind: AdapterFormat, *, layout: TokenLayout, request_fingerprint: str, card: str
) -> None:
    """Write ``adapter`` to ``path``, which for a folder must be missing or empty.

    Raises:
        LoragenInferError: The disk refuses, or the adapter holds NaN or Inf.
    """
    if kind == "peft":
        with atomic_folder(path) as part:
            try:
                write_adapter(adapter, part)
            except LoraTokenizerError as error:
                # The folder that it names is gone by the time anyone reads this.
                raise LoragenInferError(str(error).replace(str(part), str(path))) from error
            (part / CARD_NAME).write_text(card, encoding="utf-8")
        return
    with atomic_file(path) as part:
        if kind == "pt":
            save_torch_file({name: tensor.clone() for name, tensor in adapter.tensors.items()}, part, path)
            mark_torch_file(part, request_fingerprint)
            return
        metadata = {"format": "pt", _MARK: request_fingerprint}
        if kind == "tokens":
            tensors, metadata["layout"] = {"tokens": layout.encode(adapter)}, layout.to_json()
        else:
            tensors, metadata["adapter_config"] = dict(adapter.tensors), json.dumps(adapter.config.to_peft())
        try:
            write_sealed(part, tensors, metadata)
        except SafetensorError as error:
            raise LoragenInferError(f"{path} cannot be written: {error}; choose another place or free it.") from error


def read_mark(path: Path) -> str | None:
    """Return the fingerprint of the request that ``path``, in whatever form, was made from, or None if it has none."""
    if path.is_dir():
        return read_request_fingerprint(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name, _, value = archive.comment.decode("utf-8", errors="replace").partition(": ")
            return value if name == _MARK else None
        with safe_open(path, framework="pt") as reader:
            return (reader.metadata() or {}).get(_MARK)
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return None


def save_torch_file(content: object, part: Path, path: Path) -> None:
    """``torch.save``, with the sentence for a full disk, which torch reports in its own way.

    Raises:
        LoragenInferError: The disk refuses to take ``path``.
    """
    try:
        torch.save(content, part)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LoragenInferError(f"{path} cannot be written: {reason}; choose another place or free it.") from error


def mark_torch_file(path: Path, request_fingerprint: str) -> None:
    """Put the fingerprint into the comment of the archive that ``torch.save`` writes, beside the plain tensors."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = f"{_MARK}: {request_fingerprint}".encode()
