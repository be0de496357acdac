"""What torch.save writes (.pt, .pth, .ckpt, .bin): the zip's directory, its inert pickle, and where each tensor lies.

Only stored (uncompressed) zip members are read, as torch writes them, so nothing can unpack to more than the file
holds.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.io import inert_pickle
from lora_tokenizer.io.inert_pickle import Inert, Persistent
from lora_tokenizer.io.tensor_ranges import TensorRange, num_values, row_major

_ENTRY = struct.Struct("<I4xHH8xIIHHH8xI").unpack_from  # of the zip's directory
MAX_DIRECTORY_BYTES = 16 << 20
MAX_PICKLE_BYTES = 16 << 20
"""Enough for a hundred thousand tensors; a hostile stream makes at most some 80 times its length of objects."""
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
}


class _Member(NamedTuple):
    """One file of the zip: where its local header starts and how long its data is."""

    header: int
    size: int


class TorchFile:
    """One open file of torch.save: `root` is its inert content, `locate` the place of a tensor of it.

    Raises:
        LoraTokenizerError: not such a file, damaged, compressed, or larger than the limits.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._size = os.fstat(descriptor).st_size
        self._members = self._directory()
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise LoraTokenizerError(f"{path} is a zip without a data.pkl, so torch.save did not write it")
        self._root_name = pickles[0].removesuffix("data.pkl")
        order = self._members.get(f"{self._root_name}byteorder")
        if order is not None and self._read(order, 16) != b"little":
            raise LoraTokenizerError(
                f"{path} was written on a big-endian machine: save it again on a little-endian one"
            )
        member = self._members[pickles[0]]
        if member.size > MAX_PICKLE_BYTES:
            raise LoraTokenizerError(
                f"{path} has a data.pkl of {member.size} bytes, over the limit of {MAX_PICKLE_BYTES}"
            )
        self.root: Any = inert_pickle.load(self._read(member, member.size), str(path))

    def _pread(self, count: int, position: int) -> bytes:
        data = os.pread(self._descriptor, count, position) if position >= 0 else b""
        if len(data) != count:
            raise LoraTokenizerError(f"{self._path} is damaged or cut off at byte {position}: copy the file again")
        return data

    def _directory(self) -> dict[str, _Member]:
        """The zip's central directory (APPNOTE 4.3.12 to 4.3.16, zip64 included)."""
        start, length = self._directory_place()
        if length > MAX_DIRECTORY_BYTES:
            raise LoraTokenizerError(f"{self._path} has a zip directory of {length} bytes, over {MAX_DIRECTORY_BYTES}")
        data, at, members = self._pread(length, start), 0, {}
        while at + 46 <= length:
            signature, flags, method, packed, size, name_length, extra_length, comment_length, header = _ENTRY(data, at)
            if signature != 0x02014B50:
                raise LoraTokenizerError(f"{self._path} has a damaged zip directory")
            name_end = at + 46 + name_length
            name = data[at + 46 : name_end].decode("utf-8", "replace")
            if 0xFFFFFFFF in (size, packed, header):
                size, packed, header = _zip64(data[name_end : name_end + extra_length], size, packed, header)
            if method != 0 or flags & 1 or size != packed:
                raise LoraTokenizerError(
                    f"{self._path}: member {name[:200]!r} is compressed or encrypted, which torch.save never does"
                )
            if name in members:
                raise LoraTokenizerError(f"{self._path}: the zip has two members named {name[:200]!r}")
            members[name] = _Member(header, size)
            at = name_end + extra_length + comment_length
        return members

    def _directory_place(self) -> tuple[int, int]:
        tail_start = max(0, self._size - 66_000)
        tail = os.pread(self._descriptor, self._size - tail_start, tail_start)
        at = tail.rfind(b"PK\x05\x06")
        if not tail or at < 0 or at + 22 > len(tail):
            raise LoraTokenizerError(
                f"{self._path} is not a whole file of torch.save (no zip directory): copy it again, or save it "
                f"again with "
                f"a torch from this decade"
            )
        length, start = struct.unpack_from("<II", tail, at + 12)
        if start == 0xFFFFFFFF or length == 0xFFFFFFFF:
            locator = self._pread(20, tail_start + at - 20)
            (position,) = struct.unpack_from("<8xQ", locator)
            if position > self._size:
                raise LoraTokenizerError(f"{self._path} has a damaged zip directory")
            length, start = struct.unpack_from("<QQ", self._pread(56, position), 40)
        if start > self._size or length > self._size:
            raise LoraTokenizerError(f"{self._path} has a damaged zip directory")
        return start, length

    def _data_start(self, member: _Member) -> int:
        if member.header > self._size:
            raise LoraTokenizerError(f"{self._path} has a damaged zip directory")
        header = self._pread(30, member.header)
        signature, name_length, extra_length = struct.unpack("<I22xHH", header)
        start: int = member.header + 30 + name_length + extra_length
        if signature != 0x04034B50 or start + member.size > self._size:
            raise LoraTokenizerError(f"{self._path} is damaged or cut off: copy the file again")
        return start

    def _read(self, member: _Member, limit: int) -> bytes:
        start = self._data_start(member)  # checks that the member lies inside the file
        return self._pread(min(member.size, limit), start)

    def locate(self, name: str, value: object) -> TensorRange:
        """Where the tensor lies that `value` of the pickle stands for.

        Raises:
            LoraTokenizerError: not a dense float tensor, or it reaches outside its storage.
        """
        storage, offset, shape, stride = self._unwrap(name, value)
        match storage:
            case Persistent(key=("storage", Inert(name=storage_type), str(key), _, int(num_stored))):
                dtype = _STORAGES.get(storage_type)
            case _:
                raise self._odd(name)
        if dtype is None:
            raise LoraTokenizerError(
                f"{self._path}: tensor {name!r} is a {storage_type[:80]}: LoRA tensors must be float32, float16, "
                f"bfloat16 "
                f"or float64"
            )
        member = self._members.get(f"{self._root_name}data/{key}")
        if member is None or num_stored * dtype.itemsize != member.size:
            raise LoraTokenizerError(f"{self._path}: the storage of tensor {name!r} is missing or of another size")
        if num_values(shape) == 0:
            return TensorRange(dtype, shape, 0, 0)
        extent = 1 + sum((axis - 1) * step for axis, step in zip(shape, stride, strict=True))
        if offset + extent > num_stored or num_values(shape) > num_stored:
            raise LoraTokenizerError(
                f"{self._path}: tensor {name!r} of shape {shape[:8]} reaches outside its storage of {num_stored} values"
            )
        start = self._data_start(member) + offset * dtype.itemsize
        contiguous = stride == row_major(shape)
        return TensorRange(dtype, shape, start, extent * dtype.itemsize, None if contiguous else stride)

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


def _zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replace the fields that are full by those of the zip64 extra field (APPNOTE 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = [n for (n,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            fields = [size, packed, header]
            for index, value in enumerate(fields):
                if value == 0xFFFFFFFF and numbers:
                    fields[index] = numbers.pop(0)
            return fields[0], fields[1], fields[2]
        at += 4 + length
    return size, packed, header
