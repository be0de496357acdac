"""Where the samples of a task come from: a JSON/JSONL file, a generator of reasoning-gym, or a data set of the hub.

A sample's place in its source is its id; a prompt that occurs again is the same sample, for a copy would put one sample
on both sides of a split. The libraries are extras, imported when they are needed.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loragen_infer.samples import Example, example_of, prompt_hash, read_jsonl
from loragen_infer.words import nearest

from loragen_train.configs.collect import CollectTask
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["Samples", "Source", "read_samples"]

_LIBRARIES = {"reasoning-gym": "reasoning-gym", "hf": "datasets"}
# Generators make sample i of seed s from s + i alone, so streams of near seeds would share samples.
_SEED_OFFSET = {"collect": 0, "prepare": 2**31}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where samples are read from."""

    location: str
    """A JSON/JSONL file, ``reasoning-gym:NAME``, or ``hf:DATASET/CONFIG``."""
    task: str = ""
    """What its task is called."""
    prompt_column: str | None = None
    response_column: str | None = None
    split: str = "train"
    """Split of a data set of the hub."""

    @classmethod
    def of(cls, task: str, location: str, chosen: CollectTask | PrepareConfig) -> "Source":
        """Return the source at ``location``, of which ``chosen`` says columns and split."""
        columns = {"prompt_column": chosen.prompt_column, "response_column": chosen.response_column}
        return cls(location=location, task=task, split=chosen.split, **columns)

    @property
    def library(self) -> str | None:
        """The package that makes or reads the samples; None of a file."""
        return _LIBRARIES.get(self.location.partition(":")[0])

    @property
    def name(self) -> str:
        """The path of the file, or what is after the colon."""
        return self.location if self.library is None else self.location.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What was read of a source."""

    source: Source
    by_place: dict[int, Example]
    """The samples, each prompt once, by their 0-based places in the source."""
    num_duplicates: int
    """Number of further ones with a prompt that had occurred."""
    num_left_out: int
    """Number of those that were to be left out."""


def read_samples(
    source: Source,
    *,
    num_samples: int | None,
    seed: int,
    purpose: Literal["collect", "prepare"],
    leave_out: Collection[str] = (),
) -> Samples:
    """Return the first samples of different prompts: at most ``num_samples``, or all (a generator needs a number).

    ``collect`` needs responses and ``prepare`` does not; neither gets the other's samples of a generator with any seed.
    Prompts whose hashes are in ``leave_out`` are not taken.
    """
    samples: dict[int, Example] = {}
    seen: set[str] = set()
    num_left_out = num_duplicates = 0
    for place, row in enumerate(_rows(source, num_samples, seed + _SEED_OFFSET[purpose])):
        if len(samples) == num_samples:
            break
        example = example_of(
            row,
            f"{source.location}, row {place + 1}",
            prompt_column=source.prompt_column,
            response_column=source.response_column,
            need_response=purpose == "collect",
        )
        digest = prompt_hash(example.prompt)
        num_left_out += digest in leave_out
        num_duplicates += digest in seen
        if digest not in seen and digest not in leave_out:
            seen.add(digest)
            samples[place] = example
    if source.library == "reasoning-gym" and len(samples) != num_samples:
        raise LoragenTrainError(
            f"{source.location} gave {len(samples)} different prompts in {place + 1} draws, fewer than the "
            f"{num_samples} asked for; lower num_train or num_test (of prepare: --num-samples)."
        )
    return Samples(source=source, by_place=samples, num_duplicates=num_duplicates, num_left_out=num_left_out)


def _rows(source: Source, num_samples: int | None, seed: int) -> Iterable[Mapping[str, Any]]:
    if source.library is None:
        return read_jsonl(Path(source.name))
    try:
        return _rows_of_hub(source) if source.library == "datasets" else _generate(source, num_samples, seed)
    except ImportError as error:
        extra = source.location.partition(":")[0]
        raise LoragenTrainError(
            f"The source {source.location} needs {source.library} ({error}); install it with: pip install "
            f"'loragen-train[{extra}]'."
        ) from error


def _generate(source: Source, num_samples: int | None, seed: int) -> Iterable[Mapping[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if num_samples is None:
        raise LoragenTrainError(f"{source.location} generates samples without end; say how many (--num-samples).")
    if source.name not in DATASETS:
        raise LoragenTrainError(f"reasoning-gym has no task {source.name!r}{nearest(source.name, DATASETS)}.")
    rows = reasoning_gym.create_dataset(source.name, size=4 * num_samples, seed=seed % 2**32)
    columns = source.prompt_column or "prompt", source.response_column or "response"
    return (dict(zip(columns, (row["question"], str(row["answer"])), strict=True)) for row in rows)


def _rows_of_hub(source: Source) -> Iterable[Mapping[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    errors: list[Exception] = []
    # What the libraries log is of retries, and ends in an error if there is one.
    logging.disable(logging.CRITICAL)
    try:
        for path, config in _readings(source.name):
            try:
                rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(path, config, split=source.split)
            except (DatasetsError, OSError, ValueError) as error:
                errors.append(error)
            else:
                return rows
    finally:
        logging.disable(logging.NOTSET)
    if any(isinstance(error, ConnectionError) for error in errors):
        raise LoragenTrainError(
            f"The data set {source.location} is neither a folder nor in the cache of downloaded data sets, and the hub "
            "cannot be reached, or HF_HUB_OFFLINE forbids it; allow it, or give a JSON/JSONL file."
        )
    reason = (str(errors[0]).strip() or repr(errors[0])).splitlines()[0].rstrip(".")
    raise LoragenTrainError(f"The data set {source.location} (split {source.split!r}) cannot be read: {reason}.")


def _readings(name: str) -> list[tuple[str, str | None]]:
    """What ``name`` may mean: data set (a folder, or ``organisation/name``) and configuration, the likeliest first."""
    path = Path(name).expanduser()
    if path.exists():
        return [(str(path), None)]
    head, _, config = name.rpartition("/")
    # Where the configurations of a folder are listed; without it a misspelt path would have its whole parent read.
    if head and (path.parent / "README.md").is_file():
        return [(str(path.parent), config)]
    if name.startswith((".", "/", "~")):
        raise LoragenTrainError(f"The data set hf:{name} does not exist; give a folder or the name of one on the hub.")
    readings: list[tuple[str, str | None]] = [(name, None)] if name.count("/") < 2 else []
    return [*readings, (head, config)] if head else readings
