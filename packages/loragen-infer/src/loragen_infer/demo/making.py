"""Adapters for the page: made once, kept in a folder, and packed for the way out."""

import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loragen_infer.files import atomic_file
from loragen_infer.generation.card import model_card
from loragen_infer.generation.prompt_file import Request
from loragen_infer.generation.writer import read_mark, write_in_format
from loragen_infer.generator import LoraGenerator

__all__ = ["MadeAdapter", "Maker", "zip_folder"]


@dataclass(frozen=True, kw_only=True)
class MadeAdapter:
    id: str
    path: Path


class Maker:
    def __init__(self, folder: Path, generator: LoraGenerator) -> None:
        self._folder, self._generator, self._lock = folder, generator, threading.Lock()

    def get_or_create(self, prompts: Sequence[str], *, scale: float = 1.0) -> MadeAdapter:
        settings = ["peft", repr(float(scale)), self._generator.base_model or ""]
        fingerprint = Request(id="adapter", prompts=tuple(prompts)).fingerprint(self._generator.fingerprint, settings)
        path = self._folder / fingerprint
        with self._lock:
            if read_mark(path) != fingerprint:
                adapter = self._generator.generate(prompts, scale=scale)
                card = model_card(
                    Request(id=fingerprint, prompts=tuple(prompts)),
                    base_model=self._generator.base_model,
                    generator_fingerprint=self._generator.bundle.fingerprint,
                    request_fingerprint=fingerprint,
                    scale=scale,
                    omit_prompts=False,
                )
                layout = self._generator.bundle.layout
                write_in_format(adapter, path, "peft", layout=layout, request_fingerprint=fingerprint, card=card)
        return MadeAdapter(id=fingerprint, path=path)


def zip_folder(folder: Path, path: Path) -> Path:
    """Write the files of ``folder``, under its name, into the zip ``path``, whole or not at all."""
    with atomic_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(folder.name) / file.relative_to(folder))
    return path
