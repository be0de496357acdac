"""The input of a sharded run: JSONL and Parquet files, read once to check every line and to lay out the shards.

A shard is a stretch of the input, whatever the files are that it is split into, so neither they nor the number of
workers change what is generated together. It knows where in which files its requests begin, so that a worker reads them
itself, and a hash of them, so that a changed file is noticed. Of a hundred million requests only eight bytes each are
held.
"""

import glob
import hashlib
import itertools
import json
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.generation.prompt_file import Request, request_of
from loragen_infer.samples import PROMPT_COLUMNS, iter_lines, json_object

__all__ = ["Piece", "Shard", "find_files", "plan_shards"]

_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbouring requests of one file."""

    path: str
    """The file, from the root."""
    start: int
    """The byte at which the first line begins; of a Parquet file, the number of rows before the first."""
    count: int
    """How many requests."""
    numbers_before: int
    """Lines and rows of the whole input before it, since requests without an id are called by their number."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one file of adapters is made from."""

    number: int
    """Its place among the shards, from 0."""
    pieces: tuple[Piece, ...]
    """Where its requests are, in order."""
    content: str
    """A hash of the requests."""

    @property
    def num_adapters(self) -> int:
        """How many requests there are."""
        return sum(piece.count for piece in self.pieces)

    def read(self) -> list[Request]:
        """Return the requests.

        Raises:
            LoragenInferError: They are no longer those that the shard was laid out for.
        """
        requests = []
        for piece in self.pieces:
            with closing(_rows(Path(piece.path), piece.start)) as rows:
                for _, number, row in itertools.islice(rows, piece.count):
                    requests.append(request_of(row, piece.numbers_before + number, piece.path))
        if _digest(requests) != self.content:
            names = ", ".join(piece.path for piece in self.pieces)
            raise LoragenInferError(f"{names} changed after it was checked; start again when it is complete.")
        return requests

    def fingerprint(self, generator: str, settings: Sequence[str]) -> str:
        """Return sixteen hexadecimal digits over the requests, in order, the ``generator`` and the ``settings``."""
        return hashlib.sha256(json.dumps([self.content, generator, list(settings)]).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the shard as text, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the shard that :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "pieces": tuple(Piece(**piece) for piece in values["pieces"])})


class _Found(NamedTuple):
    """A request, and where it is."""

    path: Path
    start: int
    number: int
    """Of its line or row, counted through all files."""
    where: str
    request: Request


def find_files(path: str, *, without: Path | None = None) -> list[Path]:
    """Return the JSONL and Parquet files that ``path`` (a file, a folder, or a glob pattern) stands for, sorted.

    What is in the folder ``without``, where that is only a part of ``path``, is not meant.
    """
    place = Path(path)
    if place.is_dir():
        found = [file for file in place.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file()]
    elif place.exists():
        found = [place]
    else:
        found = [Path(name) for name in glob.glob(path, recursive=True)]  # noqa: PTH207  # absolute patterns too
    if without is not None and place.absolute() != without:
        found = [file for file in found if without not in file.absolute().parents]
    if not found:
        raise LoragenInferError(f"{path} is no file, folder or pattern with .jsonl or .parquet files; give one.")
    for file in found:
        if file.suffix.lower() not in _SUFFIXES:
            raise LoragenInferError(f"{file} is neither .jsonl nor .parquet; --ray reads no other files.")
    return sorted(file.absolute() for file in found)


def plan_shards(files: Sequence[Path], *, shard_size: int) -> list[Shard]:
    """Return the shards of ``shard_size`` requests that the files, one after the other, make.

    Raises:
        LoragenInferError: A line or row is no request, or an id is there twice; which one is said.
    """
    shards: list[Shard] = []
    hashes = array("Q")
    source = _requests(files)
    while group := list(itertools.islice(source, shard_size)):
        hashes.extend(_hash_id(found.request.id) for found in group)
        neighbours = (list(of_one_file) for _, of_one_file in itertools.groupby(group, lambda found: found.path))
        pieces = tuple(
            Piece(path=str(first.path), start=first.start, count=1 + len(others), numbers_before=first.number - 1)
            for first, *others in neighbours
        )
        content = _digest(found.request for found in group)
        shards.append(Shard(number=len(shards), pieces=pieces, content=content))
    if not shards:
        raise LoragenInferError(f"{files[0]} is empty; it needs one prompt per line.")
    _check_unique(hashes, files)
    return shards


def _check_unique(hashes: "array[int]", files: Sequence[Path]) -> None:
    import numpy as np

    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for found in _requests(files):
        name = found.request.id
        if _hash_id(name) in suspects and seen.setdefault(name, found.where) != found.where:
            raise LoragenInferError(
                f"{found.where}: the id {name!r} is there twice (also {seen[name]}); give every line its own."
            )


def _hash_id(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _digest(requests: Iterable[Request]) -> str:
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps([request.id, request.prompts]).encode() + b"\n")
    return digest.hexdigest()[:32]


def _requests(files: Sequence[Path]) -> Iterator[_Found]:
    before = 0
    for path in files:
        unit, number = "row" if _is_parquet(path) else "line", 0
        for start, number, row in _rows(path, 0):
            where = f"{path}, {unit} {number}"
            request = request_of(row, before + number, where)
            yield _Found(path=path, start=start, number=before + number, where=where, request=request)
        before += number


def _rows(path: Path, start: int) -> Generator[tuple[int, int, dict[str, Any]], None, None]:
    """Every row from ``start`` on: where it starts, its number counted from there, and its fields."""
    try:
        if _is_parquet(path):
            yield from _parquet_rows(path, start)
            return
        with path.open("rb") as stream:
            lines = _Lines(stream, start)
            for number, text in iter_lines(lines, str(path)):
                yield lines.start, number, json_object(text, f"{path}, line {number}")
    except OSError as error:
        raise LoragenInferError(f"{path} cannot be read: {error.strerror or reason_of(error)}.") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


class _Lines:
    """The lines of a stream from a byte on, and where the latest one started."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        stream.seek(start)
        self._stream, self._end = stream, start
        self.start = start

    def __iter__(self) -> Iterator[bytes]:
        for line in self._stream:
            self.start, self._end = self._end, self._end + len(line)
            yield line


def _parquet_rows(path: Path, start: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [name for name in ("prompts", *PROMPT_COLUMNS) if name in names]
            if not columns:
                raise LoragenInferError(
                    f"{path} has the columns {', '.join(names)}, but none of prompts, {', '.join(PROMPT_COLUMNS)}."
                )
            columns += ["id"] if "id" in names else []
            ends = itertools.accumulate(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            groups = [group for group, end in enumerate(ends) if end > start]
            place = sum(file.metadata.row_group(i).num_rows for i in range(groups[0])) if groups else 0
            for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns):
                for row in batch.to_pylist():
                    if place >= start:
                        # Every row has every column, so one that it would do without is null.
                        yield place, place - start + 1, {key: value for key, value in row.items() if value is not None}
                    place += 1
    except pyarrow.ArrowException as error:
        raise LoragenInferError(f"{path} cannot be read as Parquet: {reason_of(error)}.") from error
