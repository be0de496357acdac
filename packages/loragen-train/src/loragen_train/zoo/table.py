"""What is to be imported: the rows of a table, or what two folders hold under the same names."""

import csv
import dataclasses
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from loragen_infer.samples import read_jsonl
from loragen_infer.words import nearest
from pydantic import TypeAdapter, ValidationError

from loragen_train.configs.collect import check_task_names
from loragen_train.configs.importing import ImportConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.sources import Source

__all__ = ["ImportRow", "read_rows"]

_SAMPLE_SUFFIXES = (".jsonl", ".json")
_ADAPTER_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Nested lists of YAML may be far longer as text than in the file.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist = 2, 3
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ImportRow:
    """One task to import, as its table says it."""

    name: str
    """Name of the task."""
    prompts: str
    """Where its prompts are, as for collect and prepare."""
    adapter: str | None = None
    """A folder, a file, or the id of a repository of the hub; only a held-out task needs none."""
    revision: str | None = None
    """Branch, tag or commit of that repository."""
    prompt_column: str | None = None
    response_column: str | None = None
    split: str = "train"
    """Split of a data set of the hub."""
    test: str | None = None
    """Where further samples with responses are."""
    test_split: str | None = None
    """Split of the data set that ``test`` names; None: that of the prompts."""
    held_out: bool = False
    """Whether training must see nothing of the task."""
    folder: Path = Path()
    """What relative paths are relative to; no column."""

    @property
    def local_adapter(self) -> Path | None:
        """The adapter on disk; None where there is none of that name."""
        return None if self.adapter is None else _existing(self.folder, self.adapter)

    @property
    def repository(self) -> tuple[str, str | None] | None:
        """Id and revision of the adapter's repository on the hub; None of what can only be meant as a path."""
        if self.adapter is None or self.local_adapter is not None or _HUB_ID.fullmatch(self.adapter) is None:
            return None
        return self.adapter, self.revision

    def source(self, location: str, *, split: str | None = None) -> Source:
        """Return where to read samples, ``prompts`` or ``test``; ``split``: None for that of the prompts."""
        library, colon, name = location.partition(":")
        if library == "lm-eval" and name.endswith((".yaml", ".yml")):
            raise LoragenTrainError(f"{location} could run code, which no table may; write its samples to a file.")
        if Source(location=location).library is None:
            location = str(self.folder / location)
        elif library == "hf":
            path = _existing(self.folder, name)
            # A configuration of a data set in a folder, as opposed to a data set of the hub.
            with_config = _existing(self.folder, f"{name.rpartition('/')[0]}/README.md") if "/" in name else None
            location = f"{library}{colon}{self.folder / Path(name).expanduser()}" if path or with_config else location
        columns = {"prompt_column": self.prompt_column, "response_column": self.response_column}
        return Source(location=location, task=self.name, split=split or self.split, **columns)


_COLUMNS = [field.name for field in dataclasses.fields(ImportRow) if field.name != "folder"]


def read_rows(config: ImportConfig) -> tuple[list[ImportRow], list[str]]:
    """Return the tasks that ``config`` names, and a sentence for everything that cannot be one.

    Raises:
        LoragenTrainError: The table, or a folder, cannot be read at all, or has nothing in it.
    """
    if config.table is not None:
        rows, problems = _read_table(Path(config.table))
    else:
        rows, problems = _match(Path(str(config.adapters)), Path(str(config.prompts)))
    counts = Counter(row.name for row in rows)
    twice = [name for name, count in counts.items() if count > 1]
    problems += [f"The name {name!r} is used {counts[name]} times; every task needs its own." for name in twice]
    return [row for row in rows if counts[row.name] == 1], problems


def _read_table(table: Path) -> tuple[list[ImportRow], list[str]]:
    rows: list[ImportRow] = []
    problems: list[str] = []
    for number, content in enumerate(_contents(table), start=1):
        try:
            rows.append(_row(content, table.absolute().parent))
        except LoragenTrainError as error:
            problems.append(f"{table}, row {number}: {error}")
    return rows, problems


def _contents(table: Path) -> Iterable[object]:
    kind = table.suffix.lower()
    if kind in _SAMPLE_SUFFIXES:
        return read_jsonl(table)
    if kind not in (".csv", ".yaml", ".yml"):
        raise LoragenTrainError(f"The table {table} has the ending {kind!r}; give .csv, .jsonl, .json or .yaml.")
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            content = list(csv.DictReader(stream, strict=True)) if kind == ".csv" else yaml.safe_load(stream)
    # What YAML's reader makes of a tag with a value that does not fit it is any of the latter.
    except (OSError, csv.Error, yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise LoragenTrainError(f"The table {table} cannot be read: {reason}.") from error
    if isinstance(content, dict):
        content = content.get("tasks")
    if not isinstance(content, list) or not content:
        raise LoragenTrainError(f"The table {table} has no rows; it needs a list of tasks, each with its columns.")
    return content


def _row(content: object, folder: Path) -> ImportRow:
    if not isinstance(content, Mapping):
        raise LoragenTrainError(f"it is {_SHORT.repr(content)}, where columns and values belong.")
    if None in content:
        raise LoragenTrainError("it has more cells than the table has columns.")
    if unknown := next((key for key in content if key not in _COLUMNS), None):
        raise LoragenTrainError(f"there is no column {_SHORT.repr(unknown)}{nearest(str(unknown)[:60], _COLUMNS)}.")
    # An empty cell is one that was not filled in.
    given = {key: value for key, value in content.items() if value is not None and value != ""}
    try:
        row = TypeAdapter(ImportRow).validate_python({**given, "folder": folder})
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(map(str, first["loc"]))
        found = "" if first["type"].startswith("missing") else f" (it is {_SHORT.repr(first['input'])})"
        raise LoragenTrainError(f"{column}: {first['msg']}{found}.") from error
    check_task_names([row.name])
    return row


def _match(adapters: Path, prompts: Path) -> tuple[list[ImportRow], list[str]]:
    """Rows of what is called alike in two folders; what has no partner is a problem."""
    kinds = {"adapters": (adapters, _ADAPTER_SUFFIXES), "prompts": (prompts, _SAMPLE_SUFFIXES)}
    found: dict[str, dict[str, Path]] = {}
    problems: list[str] = []
    for kind, (folder, suffixes) in kinds.items():
        try:
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise LoragenTrainError(f"{kind} is {folder}, which cannot be read: {error.strerror}.") from error
        found[kind] = {}
        for path in paths:
            is_task = path.suffix in suffixes or (kind == "adapters" and path.is_dir())
            name = path.name if path.is_dir() else path.stem
            if is_task and found[kind].setdefault(name, path) != path:
                problems.append(f"{path} and {found[kind][name]} are called alike; every task needs a name of its own.")
    for kind, other in (("adapters", prompts), ("prompts", adapters)):
        partners = found["prompts" if kind == "adapters" else "adapters"]
        alone = [path for name, path in found[kind].items() if name not in partners]
        problems += [f"{path} has no partner in {other}{nearest(path.stem, partners)}." for path in alone]
    rows: list[ImportRow] = []
    for name, adapter in found["adapters"].items():
        if name in found["prompts"]:
            try:
                check_task_names([name])
            except LoragenTrainError as error:
                problems.append(f"{adapter}: {error}")
                continue
            partner = str(found["prompts"][name].absolute())
            rows.append(ImportRow(name=name, adapter=str(adapter.absolute()), prompts=partner))
    return rows, problems


def _existing(folder: Path, text: str) -> Path | None:
    """The path that ``text`` names relative to ``folder``, if it exists; the system may refuse the very name."""
    try:
        path = folder / Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None
