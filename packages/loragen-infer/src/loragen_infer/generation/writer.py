"""The four forms in which one generated adapter lies on disk, each whole or not at all, and each knowing its request.

peft: a folder with adapter_config.json, adapter_model.safetensors and a README.md. safetensors: one file, the config in
its metadata. pt: one file, a plain dict of tensors. tokens: one safetensors file, the tokens ``[N, W]``, the layout in
its metadata. A batch may also be one .pt file. Where the request's fingerprint stands in each is decided here.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout
from lora_tokenizer.io.writing import fill_folder
from safetensors import SafetensorError, safe_open

from loragen_infer.bundle.sealed_file import write_sealed
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_file, atomic_folder, save_torch
from loragen_infer.generation.card import CARD_NAME, read_request_fingerprint

__all__ = ["SUFFIXES", "read_mark", "reserve", "values_of", "write_in_format", "write_peft_folder", "write_torch_file"]

SUFFIXES = {"peft": "", "safetensors": ".safetensors", "pt": ".pt", "tokens": ".tokens.safetensors"}
"""How the names in a batch end, by format."""
_MARK = "loragen_request"


def values_of(adapter: LoraAdapter, kind: str, layout: TokenLayout) -> Mapping[str, torch.Tensor]:
    """Return the tensors of ``adapter`` that a file of form ``kind`` holds."""
    if kind != "tokens":
        return adapter.tensors
    # Those it was decoded from: a canonical form would be another spelling of them.
    as_written = layout if layout.canonical is None else replace(layout, canonical=None)
    return {"tokens": as_written.encode(adapter)}


def reserve(example: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Return room in memory for ``count`` adapters such as ``example``, stacked tensor by tensor; refuse too many."""
    needed, free = count * sum(tensor.nbytes for tensor in example.values()), _free_memory()
    if needed > free:
        raise LoragenInferError(
            f"{count:,} adapters in one file take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free; give a folder for --output, which takes one adapter at a time."
        )
    return {name: torch.empty(count, *tensor.shape, dtype=tensor.dtype) for name, tensor in example.items()}


def write_in_format(
    adapter: LoraAdapter, path: Path, kind: str, *, layout: TokenLayout, request_fingerprint: str, card: str
) -> None:
    """Write ``adapter`` to ``path``, which for a folder must be missing or empty."""
    if kind == "peft":
        write_peft_folder(adapter, path, card=card)
        return
    tensors = values_of(adapter, kind, layout)
    if kind == "pt":
        write_torch_file({name: tensor.clone() for name, tensor in tensors.items()}, path, request_fingerprint)
        return
    is_tokens = kind == "tokens"
    meaning = {"layout": layout.to_json()} if is_tokens else {"adapter_config": json.dumps(adapter.config.to_peft())}
    with atomic_file(path) as part:
        write_sealed(part, tensors, {"format": "pt", _MARK: request_fingerprint, **meaning})


def write_peft_folder(adapter: LoraAdapter, path: Path, *, card: str) -> None:
    """Write ``adapter`` to the folder ``path``, which must be missing or empty; its request's mark is in ``card``."""
    with atomic_folder(path) as part:
        try:
            fill_folder(adapter, part, path)
        except LoraTokenizerError as error:
            raise LoragenInferError(str(error)) from error
        (part / CARD_NAME).write_text(card, encoding="utf-8")


def write_torch_file(content: object, path: Path, request_fingerprint: str) -> None:
    """``torch.save`` of ``content`` to ``path``, with the fingerprint in the comment of its archive."""
    with atomic_file(path) as part:
        save_torch(content, part)
        with zipfile.ZipFile(part, "a") as archive:
            archive.comment = f"{_MARK}: {request_fingerprint}".encode()


def read_mark(path: Path) -> str | None:
    """Return the fingerprint of the request that ``path``, in whatever form, was made from, or None if it has none."""
    if path.is_dir():
        return read_request_fingerprint(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name, _, value = archive.comment.decode(errors="replace").partition(": ")
            return value if name == _MARK else None
        with safe_open(path, framework="pt") as reader:
            return (reader.metadata() or {}).get(_MARK)
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return None


def _free_memory() -> int:
    """Bytes that a process may still take: what Linux calls available, elsewhere all that the machine has."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
