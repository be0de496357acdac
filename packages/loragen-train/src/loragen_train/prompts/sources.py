"""Where the samples of a task come from: a JSON/JSONL file, a generator of reasoning-gym, or a data set of the hub.

A sample's place in its source is its id; a prompt that occurs again is the same sample, for a copy would put one sample
on both sides of a split.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loragen_infer.samples import PROMPT_COLUMNS, RESPONSE_COLUMNS, Example, read_jsonl
from loragen_infer.words import nearest

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.hub import read_hub_dataset

__all__ = ["Source", "load_samples", "read_samples", "sha256_of"]

_REASONING_GYM = "reasoning-gym:"
_HUB = "hf:"


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

    @property
    def is_generator(self) -> bool:
        """Whether it makes samples without end."""
        return self.location.startswith(_REASONING_GYM)

    @property
    def file(self) -> Path | None:
        """The file, where it is one."""
        is_file = not self.location.startswith((_REASONING_GYM, _HUB))
        return Path(self.location) if is_file else None

    @property
    def task_name(self) -> str:
        """What a task is called after its source: the stem of the file, or the last part of the name."""
        if self.file is not None:
            return self.file.stem
        return self.location.partition(":")[2].rstrip("/").rpartition("/")[2]


def load_samples(source: Source, *, num_samples: int | None, seed: int) -> list[Example]:
    """Return the samples of ``source``, with responses, in a fixed order, each prompt once.

    Args:
        source: Where they are.
        num_samples: How many to return; ``None`` means all that there are (a generator needs a number).
        seed: Seed of a generator; a file is read from its start.

    Raises:
        LoragenTrainError: An unknown generator or data set, a missing package, a row without its columns, or fewer
            different prompts than asked for.
        LoragenInferError: A file that cannot be read; see :func:`loragen_infer.samples.read_jsonl`.
    """
    unique = list(read_samples(source, num_samples=num_samples, seed=seed).values())
    if num_samples is not None and len(unique) < num_samples:
        raise LoragenTrainError(
            f"{source.location} has {len(unique)} different prompts, fewer than the {num_samples} asked for; lower "
            "num_train or num_test."
        )
    return unique


def read_samples(
    source: Source, *, num_samples: int | None, seed: int, need_response: bool = True
) -> dict[int, Example]:
    """Return at most ``num_samples`` samples of different prompts, by their 0-based places in the source.

    Without ``need_response`` a sample may lack its response, which is then empty; a chosen ``response_column`` must be
    there all the same.

    Raises:
        LoragenTrainError: As :func:`load_samples`, but too few samples of a file or of a data set are no error.
        LoragenInferError: As :func:`load_samples`.
    """
    if source.is_generator:
        name = source.location.removeprefix(_REASONING_GYM)
        if num_samples is None:
            raise LoragenTrainError(f"{source.location} generates samples without end; say how many (--num-samples).")
        return _generate(name, num_samples, seed)
    rows: Iterable[Mapping[str, Any]]
    if source.file is None:
        rows = read_hub_dataset(source.location.removeprefix(_HUB), split=source.split)
    else:
        rows = read_jsonl(source.file)
    found: dict[str, int] = {}
    samples: dict[int, Example] = {}
    for place, row in enumerate(rows):
        if len(samples) == num_samples:
            break
        example = _to_example(source, row, place + 1, need_response=need_response)
        if found.setdefault(example.prompt, place) == place:
            samples[place] = example
    return samples


def sha256_of(source: Source, samples: Mapping[int, Example]) -> str:
    """Return the SHA-256 of the file, or of the prompts where the source is no file (one JSON string a line)."""
    if source.file is not None:
        return hashlib.sha256(source.file.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for example in samples.values():
        digest.update(json.dumps(example.prompt).encode() + b"\n")
    return digest.hexdigest()


def _to_example(source: Source, row: Mapping[str, Any], number: int, *, need_response: bool) -> Example:
    prompt = _text(source, row, number, source.prompt_column, PROMPT_COLUMNS, "prompt_column")
    if need_response or source.response_column is not None:
        response = _text(source, row, number, source.response_column, RESPONSE_COLUMNS, "response_column")
        return Example(prompt=prompt, response=response)
    found = next((row[name] for name in RESPONSE_COLUMNS if name in row), "")
    return Example(prompt=prompt, response=found if isinstance(found, str) else "")


def _text(
    source: Source, row: Mapping[str, Any], number: int, chosen: str | None, usual: tuple[str, ...], option: str
) -> str:
    wanted = usual if chosen is None else (chosen,)
    column = next((name for name in wanted if name in row), None)
    where = f"{source.location}, row {number}"
    if column is None:
        hint = nearest(chosen, row) if chosen is not None else f"; name the column with {option}"
        raise LoragenTrainError(
            f"{where} has the columns {', '.join(map(str, row)) or '(none)'}, but none of {', '.join(wanted)}{hint}."
        )
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise LoragenTrainError(f"{where}: {column!r} is {value!r}, but must be text.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise LoragenTrainError(f"{where}: {column!r} holds half a character (a lone surrogate); mend it.")
    return value


def _generate(name: str, num_samples: int, seed: int) -> dict[int, Example]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise LoragenTrainError(
            f"The source reasoning-gym:{name} needs reasoning-gym; install it with: "
            "pip install 'loragen-train[reasoning-gym]'."
        ) from error
    if name not in DATASETS:
        raise LoragenTrainError(f"reasoning-gym has no task {name!r}{nearest(name, DATASETS)}.")
    # Generators repeat themselves in small spaces; a repeated prompt on both sides of a split would be a leak.
    drawn = reasoning_gym.create_dataset(name, size=4 * num_samples, seed=seed)
    found: set[str] = set()
    samples: dict[int, Example] = {}
    for place, row in enumerate(drawn):
        if row["question"] in found:
            continue
        found.add(row["question"])
        samples[place] = Example(prompt=row["question"], response=str(row["answer"]))
        if len(samples) == num_samples:
            return samples
    raise LoragenTrainError(
        f"reasoning-gym:{name} gave {len(samples)} different prompts in {4 * num_samples} draws, fewer than the "
        f"{num_samples} asked for; lower num_train or num_test (of prepare: --num-samples)."
    )
