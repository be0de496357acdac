"""Where samples come from: a file, a generator of reasoning-gym, a data set of the hub, or a task of lm-eval.

A sample's place in its source is its id; a prompt that occurs again is the same sample, for a copy would put one sample
on both sides of a split. The libraries are extras, imported when they are needed.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loragen_infer.samples import Example, example_of, prompt_hash, read_jsonl

from loragen_train.configs.collect import CollectTask
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.generators import draw
from loragen_train.prompts.harness import read_harness_task
from loragen_train.prompts.hub import read_data_set

__all__ = ["Samples", "Source", "read_samples"]

_LIBRARIES = {"reasoning-gym": "reasoning-gym", "hf": "datasets", "lm-eval": "lm-eval"}
# Generators make sample i of seed s from s + i alone, so streams of near seeds would share samples.
_SEED_OFFSET = {"collect": 0, "prepare": 2**31}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where samples are read from."""

    location: str
    """A JSON/JSONL file, ``reasoning-gym:NAME`` (with settings: ``NAME?max_value=9&min_value=2``),
    ``hf:DATASET/CONFIG``, or ``lm-eval:TASK``, the name of a task or its YAML file."""
    task: str = ""
    """What its task is called."""
    prompt_column: str | None = None
    response_column: str | None = None
    split: str = "train"
    """Split of a data set of the hub, or of a task of lm-eval, of which ``train`` is what it trains with, or where it
    has none what it validates with, else what it tests with."""

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

    @property
    def default_task(self) -> str:
        """What a task is called that is not named otherwise: the stem of a file, or the last part of a name, settings
        included, for tasks of one generator differ in them."""
        if self.library is None or self.name.endswith((".yaml", ".yml")):
            return Path(self.name).stem
        name, mark, settings = self.name.rstrip("/").partition("?")
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name.rpartition("/")[2] + mark + settings).strip("-")


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

    ``collect`` needs responses, so of a generator it passes over empty ones, and ``prepare`` does not; neither gets the
    other's samples of a generator with any seed.
    Prompts whose hashes are in ``leave_out`` are not taken.
    """
    samples: dict[int, Example] = {}
    seen: set[str] = set()
    num_left_out = num_duplicates = 0
    need_response, drawn = purpose == "collect", source.library == "reasoning-gym"
    for place, row in enumerate(_rows(source, num_samples, seed + _SEED_OFFSET[purpose], need_response=need_response)):
        if len(samples) == num_samples:
            break
        if drawn and need_response and not row[source.response_column or "response"].strip():
            continue  # now and then the answer to what a generator draws is empty, which nobody could mend
        example = example_of(
            row,
            f"{source.location}, row {place + 1}",
            prompt_column=source.prompt_column,
            response_column=source.response_column,
            need_response=need_response,
        )
        digest = prompt_hash(example.prompt)
        num_left_out += digest in leave_out
        num_duplicates += digest in seen
        if digest not in seen and digest not in leave_out:
            seen.add(digest)
            samples[place] = example
    if drawn and len(samples) != num_samples:
        raise LoragenTrainError(
            f"{source.location} gave {len(samples)} different samples in {place + 1} draws, fewer than the "
            f"{num_samples} asked for; lower num_train or num_test (of prepare: --num-samples)."
        )
    return Samples(source=source, by_place=samples, num_duplicates=num_duplicates, num_left_out=num_left_out)


def _rows(source: Source, num_samples: int | None, seed: int, *, need_response: bool) -> Iterable[Mapping[str, Any]]:
    if source.library is None:
        return read_jsonl(Path(source.name))
    try:
        if source.library == "datasets":
            return read_data_set(source.name, source.split)
        if source.library == "lm-eval":
            pairs = read_harness_task(source.name, source.split, need_target=need_response)
        elif num_samples is None:
            raise LoragenTrainError(f"{source.location} generates samples without end; say how many (--num-samples).")
        else:
            pairs = draw(source.name, size=4 * num_samples, seed=seed % 2**32)
    except ImportError as error:
        extra = source.location.partition(":")[0]
        raise LoragenTrainError(
            f"The source {source.location} needs {source.library} ({error}); install it with: pip install "
            f"'loragen-train[{extra}]'."
        ) from error
    columns = source.prompt_column or "prompt", source.response_column or "response"
    return (dict(zip(columns, pair, strict=True)) for pair in pairs)
