"""What torch.save writes (.pt, .pth, .ckpt, .bin): a zip with an inert pickle, and where each tensor lies in it.

Only stored (uncompressed) zip members are read, as torch writes them, so nothing can unpack to more than the file
holds.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io import inert_pickle
from lora_tokenizer.io.inert_pickle import Inert, Persistent
from lora_tokenizer.io.ranges import TensorRange, row_major

MAX_DIRECTORY_BYTES = 16 << 20
MAX_PICKLE_BYTES = 16 << 20
"""Enough for a hundred thousand tensors; a hostile stream makes at most some 80 times its length of objects."""
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
}


class _CappedFile(io.FileIO):
    """A file of which zipfile cannot read more at once than a directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = MAX_DIRECTORY_BYTES
        if size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a zip directory of {size} bytes is over {MAX_DIRECTORY_BYTES}")
        return super().read(size)


class TorchFile:
    """One open file of torch.save: `root` is its inert content, `locate` the place of a tensor of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _CappedFile(path)
        try:
            self._read_directory()
            self.root: Any = inert_pickle.load(self._read(f"{self._root_name}data.pkl", MAX_PICKLE_BYTES), str(path))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _read_directory(self) -> None:
        path = self._path
        try:
            infos = zipfile.ZipFile(self._file).infolist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
            raise LoraTokenizerError(
                f"{path} is not a whole file of torch.save ({error}): copy it again, or save it again with a torch "
                f"from this decade"
            ) from error
        self._members = {info.filename: info for info in infos}
        if len(self._members) < len(infos):
            raise LoraTokenizerError(f"{path}: the zip has two members of one name, which torch.save never writes")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise LoraTokenizerError(
                    f"{path}: member {info.filename[:200]!r} is compressed or encrypted, which torch.save never does"
                )
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise LoraTokenizerError(f"{path} is a zip without a data.pkl, so torch.save did not write it")
        self._root_name = pickles[0].removesuffix("data.pkl")
        order = f"{self._root_name}byteorder"
        if order in self._members and self._read(order, 16) != b"little":
            raise LoraTokenizerError(
                f"{path} was written on a big-endian machine: save it again on a little-endian one"
            )

    def _read(self, member: str, limit: int) -> bytes:
        size = self._members[member].file_size
        if size > limit:
            raise LoraTokenizerError(f"{self._path} has a {member[:200]!r} of {size} bytes, over the limit of {limit}")
        self._file.seek(self._data_start(member))
        data = self._file.read(size)
        if len(data) != size:
            raise LoraTokenizerError(f"{self._path} is damaged or cut off: copy the file again")
        return data

    def _data_start(self, member: str) -> int:
        """First byte of a member's data, behind its own header (APPNOTE 4.3.7)."""
        info = self._members[member]
        header = os.pread(self._file.fileno(), 30, max(0, info.header_offset))
        if len(header) != 30 or not header.startswith(b"PK\3\4"):
            raise LoraTokenizerError(f"{self._path} is damaged or cut off: copy the file again")
        name_length, extra_length = struct.unpack("<26xHH", header)
        start: int = info.header_offset + 30 + name_length + extra_length
        return start

    def locate(self, name: str, value: object) -> TensorRange:
        """Where the tensor lies that `value` of the pickle stands for."""
        storage, offset, shape, stride = self._unwrap(name, value)
        match storage:
            case Persistent(key=("storage", Inert(name=storage_type), str(key), _, int(num_stored))):
                dtype = _STORAGES.get(storage_type)
            case _:
                raise self._odd(name)
        if dtype is None:
            raise LoraTokenizerError(
                f"{self._path}: tensor {name!r} is a {storage_type[:80]}: LoRA tensors must be float32, float16, "
                f"bfloat16 or float64"
            )
        member = f"{self._root_name}data/{key}"
        if member not in self._members or num_stored * dtype.itemsize != self._members[member].file_size:
            raise LoraTokenizerError(f"{self._path}: the storage of tensor {name!r} is missing or of another size")
        num_values = math.prod(shape)
        if num_values == 0:
            return TensorRange(dtype, shape, 0, 0)
        extent = 1 + sum((axis - 1) * step for axis, step in zip(shape, stride, strict=True))
        if offset + extent > num_stored or num_values > num_stored:
            raise LoraTokenizerError(
                f"{self._path}: tensor {name!r} of shape {shape} reaches outside its storage of {num_stored} values"
            )
        start = self._data_start(member) + offset * dtype.itemsize
        return TensorRange(dtype, shape, start, extent * dtype.itemsize, None if stride == row_major(shape) else stride)

    def _unwrap(self, name: str, value: object) -> tuple[object, int, tuple[int, ...], tuple[int, ...]]:
        for _ in range(4):  # a Parameter around a subclass around a tensor
            match value:
                case Inert(
                    name="torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", args=(x, *_)
                ):
                    value = x
                case Inert(name="torch._tensor._rebuild_from_type_v2", args=(Inert(name=function), _, args, *_)):
                    value = Inert(function, args)
                case Inert(
                    name="torch._utils._rebuild_tensor_v2", args=(storage, int(offset), tuple(shape), tuple(stride), *_)
                ):
                    numbers = (offset, *shape, *stride)
                    if len(shape) == len(stride) <= 8 and all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
                        return storage, offset, shape, stride
                    break
                case _:
                    break
        raise self._odd(name)

    def _odd(self, name: str) -> LoraTokenizerError:
        return LoraTokenizerError(f"{self._path}: {name!r} is not a plain dense tensor: save LoRA weights as such")
