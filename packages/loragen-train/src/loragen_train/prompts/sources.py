"""Where the samples of a task come from: a JSON/JSONL file, a generator of reasoning-gym, or a data set of the hub.

A sample's place in its source is its id; a prompt that occurs again is the same sample, for a copy would put one sample
on both sides of a split.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loragen_infer.cli.command_line import nearest
from loragen_infer.samples import Example, example_of, prompt_hash, read_jsonl

from loragen_train.configs.collect import CollectTask
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.hub import read_hub_dataset

__all__ = ["Samples", "Source", "read_samples", "sha256_of"]

_REASONING_GYM = "reasoning-gym:"
_HUB = "hf:"
# Generators make sample i of seed s from s + i alone, so streams of near seeds would share samples.
_SEED_OFFSET = {"collect": 0, "prepare": 2**31}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where samples are read from.

    Example:
        >>> Source(location="reasoning-gym:gcd").task_name, Source(location="data/sums.jsonl").task_name
        ('gcd', 'sums')
    """

    location: str
    """A JSON/JSONL file, ``reasoning-gym:NAME``, or ``hf:DATASET/CONFIG``."""
    prompt_column: str | None = None
    """Column of the prompt; ``None`` means the first of the usual ones that a row has."""
    response_column: str | None = None
    """Column of the response; ``None`` means the first of the usual ones that a row has."""
    split: str = "train"
    """Split of a data set of the hub."""

    @classmethod
    def of(cls, location: str, chosen: CollectTask | PrepareConfig) -> "Source":
        """Return the source at ``location``, of which ``chosen`` says columns and split."""
        columns = {"prompt_column": chosen.prompt_column, "response_column": chosen.response_column}
        return cls(location=location, split=chosen.split, **columns)

    @property
    def is_generator(self) -> bool:
        """Whether it makes samples without end."""
        return self.location.startswith(_REASONING_GYM)

    @property
    def file(self) -> Path | None:
        """The file, where it is one."""
        return None if self.location.startswith((_REASONING_GYM, _HUB)) else Path(self.location)

    @property
    def task_name(self) -> str:
        """What a task is called after its source: the stem of the file, or the last part of the name."""
        if self.file is not None:
            return self.file.stem
        return self.location.partition(":")[2].rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What was read of a source."""

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
    """Return at most ``num_samples`` samples of different prompts, in a fixed order.

    Args:
        source: Where they are; a file or a data set is read from its start.
        num_samples: How many; ``None`` means all that there are (a generator needs a number).
        seed: Seed of a generator.
        purpose: ``collect`` needs responses and ``prepare`` does not; neither gets the other's samples of a generator.
        leave_out: Hashes of prompts (:func:`loragen_infer.samples.prompt_hash`) that are not to be taken.

    Raises:
        LoragenTrainError: An unknown generator or data set, a missing package, or a generator that repeats itself.
        LoragenInferError: A file cannot be read, or a row lacks a column, or holds no text in it.
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
    if source.is_generator and len(samples) != num_samples:
        raise LoragenTrainError(
            f"{source.location} gave {len(samples)} different prompts in {place + 1} draws, fewer than the "
            f"{num_samples} asked for; lower num_train or num_test (of prepare: --num-samples)."
        )
    return Samples(by_place=samples, num_duplicates=num_duplicates, num_left_out=num_left_out)


def sha256_of(source: Source, samples: Samples) -> str:
    """Return the SHA-256 of the file, or of the prompts where the source is no file (one JSON string a line)."""
    if source.file is not None:
        return hashlib.sha256(source.file.read_bytes()).hexdigest()
    lines = "".join(json.dumps(example.prompt) + "\n" for example in samples.by_place.values())
    return hashlib.sha256(lines.encode()).hexdigest()


def _rows(source: Source, num_samples: int | None, seed: int) -> Iterable[Mapping[str, Any]]:
    if source.file is not None:
        return read_jsonl(source.file)
    if not source.is_generator:
        return read_hub_dataset(source.location.removeprefix(_HUB), split=source.split)
    if num_samples is None:
        raise LoragenTrainError(f"{source.location} generates samples without end; say how many (--num-samples).")
    return _generate(source, 4 * num_samples, seed % 2**32)


def _generate(source: Source, num_draws: int, seed: int) -> Iterator[Mapping[str, Any]]:
    name = source.location.removeprefix(_REASONING_GYM)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise LoragenTrainError(
            f"The source {source.location} needs reasoning-gym; install it with: "
            "pip install 'loragen-train[reasoning-gym]'."
        ) from error
    if name not in DATASETS:
        raise LoragenTrainError(f"reasoning-gym has no task {name!r}{nearest(name, DATASETS)}.")
    columns = source.prompt_column or "prompt", source.response_column or "response"
    for row in reasoning_gym.create_dataset(name, size=num_draws, seed=seed):
        yield dict(zip(columns, (row["question"], str(row["answer"])), strict=True))
