"""All adapters of a batch in one .pt file of plain tensors, made without holding them in memory, and resumable.

The values go one adapter after the other into hidden files beside the target, one per dtype, with a list of what is
there; at the end torch writes the target from those files, mapped. An interrupted run leaves them, and the next one
with the same requests goes on from them. The file is ``{"ids": [...], "tensors": {name: [n, ...]}, ...}``.
"""

import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_file
from loragen_infer.generation.writer import mark_torch_file, save_torch_file

__all__ = ["Spool", "folder_lock"]

_INDEX = "requests.txt"
_CHUNK_BYTES = 1 << 20
_NAME_LENGTH_AT = 26  # in the header that a zip file has before each of its files


class Spool:
    """The values of many adapters, on disk.

    Args:
        target: The .pt file that they become; the spool is the hidden folder ``.NAME.partial`` beside it.
        shapes: Name to shape and dtype of the tensors that every adapter has.
    """

    def __init__(self, target: Path, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self.folder = target.with_name(f".{target.name[:60]}.partial")
        self._target = target
        self._shapes = shapes
        self._dtypes = list(dict.fromkeys(dtype for _, dtype in shapes.values()))
        self._streams: dict[torch.dtype, IO[bytes]] = {}
        self._index: IO[str] | None = None

    def resume(self, fingerprints: Iterator[str]) -> int:
        """Open the spool and return how many adapters, the first of ``fingerprints``, an earlier run left in it.

        Raises:
            LoragenInferError: The disk refuses.
        """
        with self._reported():
            self.folder.mkdir(parents=True, exist_ok=True)
            index = self.folder / _INDEX
            lines = index.read_text(encoding="utf-8").split() if index.is_file() else []
            kept = sum(1 for _ in _common_prefix(lines, fingerprints))
            for dtype in self._dtypes:
                file = self._file(dtype)
                kept = min(kept, file.stat().st_size // self._record_bytes(dtype) if file.is_file() else 0)
            for dtype in self._dtypes:
                self._streams[dtype] = stream = self._file(dtype).open("ab")
                stream.truncate(kept * self._record_bytes(dtype))
            self._index = index.open("w", encoding="utf-8")
            self._index.writelines(f"{line}\n" for line in lines[:kept])
            self._index.flush()
        return kept

    def append(self, tensors: Mapping[str, torch.Tensor], fingerprint: str) -> None:
        """Add one adapter.

        Raises:
            LoragenInferError: The disk refuses; what was there before stays.
        """
        with self._reported():
            for dtype, stream in self._streams.items():
                values = [tensors[name].reshape(-1) for name, (_, of) in self._shapes.items() if of == dtype]
                stream.write(torch.cat(values).view(torch.uint8).numpy().data)
                stream.flush()
            if self._index is not None:
                self._index.write(f"{fingerprint}\n")
                self._index.flush()

    def finish(self, extra: Mapping[str, object], fingerprint: str, count: int) -> None:
        """Write the target, ``extra`` and the ``count`` adapters stacked, and remove the spool.

        Raises:
            LoragenInferError: The disk refuses; the spool stays.
        """
        self.close()
        stacked: dict[str, torch.Tensor] = {}
        for dtype in self._dtypes:
            size = self._record_bytes(dtype) // dtype.itemsize
            values = torch.from_file(str(self._file(dtype)), shared=False, size=count * size, dtype=dtype)
            start = 0
            for name, (shape, of) in self._shapes.items():
                if of == dtype:
                    # A view of the mapped file, which nothing reads: the bytes are put in below.
                    strides = (size, *torch.empty(shape, device="meta").stride())
                    stacked[name] = values.as_strided((count, *shape), strides, start)
                    start += torch.Size(shape).numel()
        with self._reported(), atomic_file(self._target) as part:
            with torch.serialization.skip_data():
                save_torch_file({**extra, "tensors": stacked}, part, self._target)
            self._fill(part)
            mark_torch_file(part, fingerprint)
        shutil.rmtree(self.folder)

    def _fill(self, part: Path) -> None:
        """Put the values into the places that ``torch.save`` has left for them, and their checksums into the archive.

        torch would do both, but with the whole of the values in memory.
        """
        with zipfile.ZipFile(part, "a") as archive, part.open("r+b") as stream:
            for number, dtype in enumerate(self._dtypes):  # torch numbers storages in the order in which it meets them
                info = next(info for info in archive.infolist() if info.filename.endswith(f"/data/{number}"))
                stream.seek(info.header_offset + _NAME_LENGTH_AT)
                name_length, extra_length = struct.unpack("<HH", stream.read(4))
                stream.seek(name_length + extra_length, os.SEEK_CUR)
                checksum = 0
                with self._file(dtype).open("rb") as source:
                    while chunk := source.read(_CHUNK_BYTES):
                        checksum = zlib.crc32(chunk, checksum)
                        stream.write(chunk)
                info.CRC = checksum
            archive.comment = b"changed"  # so that the list of contents, with the checksums, is written again

    def close(self) -> None:
        """Close the files, which stay."""
        for stream in self._streams.values():
            stream.close()
        if self._index is not None:
            self._index.close()
        self._streams, self._index = {}, None

    def _file(self, dtype: torch.dtype) -> Path:
        return self.folder / f"{str(dtype).removeprefix('torch.')}.bin"

    def _record_bytes(self, dtype: torch.dtype) -> int:
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, of in self._shapes.values() if of == dtype)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LoragenInferError(
                f"{self._target} cannot be written: {error.strerror or error}; choose another place or free it."
            ) from error


def _common_prefix(lines: Sequence[str], fingerprints: Iterator[str]) -> Iterator[str]:
    for line, fingerprint in zip(lines, fingerprints, strict=False):
        if line != fingerprint:
            return
        yield line


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which must exist, for this process alone; the system lets go when the process ends.

    Raises:
        LoragenInferError: Another process holds it.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LoragenInferError(
                f"Another process is writing to {folder}; wait for it to end, or choose another --output."
            ) from error
        except OSError:  # a file system without locks: nothing appears half-written without them either
            pass
        yield
    finally:
        os.close(descriptor)
