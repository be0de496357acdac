"""A safetensors file with two promises: the same content gives the same bytes, and a changed bit is noticed.

The format library writes metadata in an order that differs from run to run and knows no checksum. So the header is put
into sorted order, which keeps its length, and the metadata ``sha256`` holds the SHA-256 of the whole file as it is with
64 zeros in that place. Any safetensors reader reads the result.
"""

import hashlib
import json
from collections.abc import Mapping
from io import BufferedRandom, BufferedReader
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loragen_infer.errors import LoragenInferError

__all__ = ["read_sealed", "write_sealed"]

_BLANK = "0" * 64


def write_sealed(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` and ``metadata`` to ``path``; not atomic by itself."""
    save_file(dict(tensors), path, {**metadata, "sha256": _BLANK})
    with path.open("r+b") as stream:
        size = stream.read(8)
        content = json.loads(stream.read(int.from_bytes(size, "little")))
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        header = text.encode().ljust(int.from_bytes(size, "little"))
        digest = _digest(size + header, stream)
        stream.seek(8)
        stream.write(header.replace(_seal(_BLANK), _seal(digest)))


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (mapped from the file) and the metadata; a file that does not match its seal is refused."""
    try:
        with safe_open(path, framework="pt") as reader:
            metadata = dict(reader.metadata() or {})
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118  # no iterator
        found = metadata.pop("sha256", None)
        if found is not None:
            with path.open("rb") as stream:
                size = stream.read(8)
                header = stream.read(int.from_bytes(size, "little"))
                digest = _digest(size + header.replace(_seal(found), _seal(_BLANK)), stream)
            if found != digest:
                raise LoragenInferError(
                    f"{path} is damaged: its content does not match the SHA-256 written with it; copy it again."
                )
    except (SafetensorError, OSError) as error:
        raise LoragenInferError(f"{path} is not a readable bundle ({error}); copy or train it again.") from error
    return tensors, metadata


def _digest(header: bytes, rest: BufferedReader | BufferedRandom) -> str:
    return hashlib.file_digest(rest, lambda: hashlib.sha256(header)).hexdigest()


def _seal(digest: str) -> bytes:
    # In any text of the header the quotation marks would be escaped, so this is there once.
    return f'"sha256":"{digest}"'.encode()
