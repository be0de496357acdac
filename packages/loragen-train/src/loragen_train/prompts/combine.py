"""Combines the samples of each task into prompts and splits them; decides what a generator sees and is judged on.

A prompt shows several samples of its task (``samples_per_prompt``), never their responses. Every sample is in one
prompt only, and every prompt in one file only, so validation shows nothing that training saw.
"""

import hashlib
import importlib.metadata
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loragen_infer.files import write_json, write_jsonl

from loragen_train.configs.collect import check_seed, check_task_names
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.sources import Source, read_samples, sha256_of

__all__ = ["PromptRow", "combine", "prepare"]

# What separates the samples within a prompt: a blank line, as between paragraphs.
_SEPARATOR = "\n\n"
_FILES = ("train_prompts.jsonl", "val_prompts.jsonl")


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One line of ``train_prompts.jsonl`` or ``val_prompts.jsonl``."""

    task: str
    """Task that the samples belong to."""
    prompt: str
    """The samples' prompts, joined."""
    sample_ids: list[int]
    """Which samples: their 0-based positions in the source."""


def prepare(
    sources: Sequence[str | Path],
    output_dir: Path,
    *,
    samples_per_prompt: int = 4,
    test_ratio: float = 0.1,
    seed: int = 0,
    num_samples: int | None = None,
    prompt_column: str | None = None,
    response_column: str | None = None,
    split: str = "train",
) -> dict[str, Any]:
    """Write ``train_prompts.jsonl``, ``val_prompts.jsonl`` and ``manifest.json`` to ``output_dir``.

    Args:
        sources: One task each: JSON/JSONL files, ``reasoning-gym:NAME`` or ``hf:DATASET/CONFIG``. A task is called
            after its source (a file's stem, the last part of a name); ``name=source`` calls it otherwise.
        output_dir: Folder to write to.
        samples_per_prompt: Number of samples per prompt; what is left over at the end of a task is dropped.
        test_ratio: Share of each task's prompts that goes to the validation file, above 0 and below 1; each task
            has at least one prompt in either file.
        seed: Seed of the combination, of the split, and of what a generator makes.
        num_samples: Samples that differ to take of each source; a generator needs it, others may have fewer.
        prompt_column: Column of the prompts; ``None`` means the first of the usual ones that a row has.
        response_column: Column of the responses, which are only counted; if given, every row must have it.
        split: Split to take of data sets of the hub.

    Returns:
        The manifest: the settings; per task its source, counts (samples that differ, those with a response, prompts)
        and SHA-256; per written file its number of prompts and SHA-256.

    Raises:
        LoragenTrainError: A setting out of range, two tasks of one name, too few samples for two prompts, or a source
            that cannot be had.
        LoragenInferError: A file cannot be read.
    """
    _check(samples_per_prompt, test_ratio, seed, num_samples)
    named: list[tuple[str, Source]] = []
    for text in map(str, sources):
        name, location = _name_and_location(text)
        source = Source(location=location, prompt_column=prompt_column, response_column=response_column, split=split)
        named.append((source.task_name if name is None else name, source))
    check_task_names([name for name, _ in named])

    train: list[PromptRow] = []
    val: list[PromptRow] = []
    tasks: dict[str, Any] = {}
    for name, source in named:
        samples = read_samples(source, num_samples=num_samples, seed=seed, need_response=False)
        prompts = {place: example.prompt for place, example in samples.items()}
        rows = combine(name, prompts, samples_per_prompt=samples_per_prompt, seed=seed)
        if len(rows) < 2:
            raise LoragenTrainError(
                f"{source.location} has {len(samples)} different samples, too few for two prompts of "
                f"{samples_per_prompt} (one to train on, one to validate); add samples or lower --samples-per-prompt."
            )
        num_val = min(max(1, round(test_ratio * len(rows))), len(rows) - 1)
        val += rows[:num_val]
        train += rows[num_val:]
        tasks[name] = {
            "source": source.location,
            **_origin(source),
            "sha256": sha256_of(source, samples),
            "num_samples": len(samples),
            "num_responses": sum(bool(example.response) for example in samples.values()),
            "num_train_prompts": len(rows) - num_val,
            "num_val_prompts": num_val,
        }
    manifest: dict[str, Any] = {
        "samples_per_prompt": samples_per_prompt,
        "test_ratio": test_ratio,
        "seed": seed,
        "num_samples": num_samples,
        "prompt_column": prompt_column,
        "response_column": response_column,
        "tasks": tasks,
        "files": {},
    }
    for file_name, part in zip(_FILES, (train, val), strict=True):
        file = output_dir / file_name
        write_jsonl(file, map(asdict, part))
        manifest["files"][file_name] = {
            "num_prompts": len(part),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    # Last, so that a manifest says of its files what is true.
    write_json(output_dir / "manifest.json", manifest)
    return manifest


def combine(
    task: str, prompts: Sequence[str] | Mapping[int, str], *, samples_per_prompt: int, seed: int
) -> list[PromptRow]:
    """Return random combinations of ``samples_per_prompt`` different samples, no sample in two of them.

    A prompt that occurs several times counts once, at its first position: a copy would put one sample on both sides
    of the split.

    Example:
        >>> rows = combine("letters", list("abcdea"), samples_per_prompt=2, seed=0)
        >>> sorted(len(row.sample_ids) for row in rows), rows[0].prompt.count("\\n\\n")
        ([2, 2], 1)
    """
    places = dict(prompts) if isinstance(prompts, Mapping) else dict(enumerate(prompts))
    first = {prompt: place for place, prompt in reversed(places.items())}
    ids = sorted(first.values())
    # The task's name is part of the seed, so that a task's combinations do not depend on the other tasks.
    random.Random(f"{seed}/{task}").shuffle(ids)
    starts = range(0, len(ids) - samples_per_prompt + 1, samples_per_prompt)
    groups = [ids[start : start + samples_per_prompt] for start in starts]
    return [
        PromptRow(task=task, prompt=_SEPARATOR.join(places[place] for place in group), sample_ids=group)
        for group in groups
    ]


def _check(samples_per_prompt: int, test_ratio: float, seed: int, num_samples: int | None) -> None:
    if samples_per_prompt < 1:
        raise LoragenTrainError(f"--samples-per-prompt is {samples_per_prompt}, but must be at least 1.")
    if not 0 < test_ratio < 1:
        raise LoragenTrainError(f"--test-ratio is {test_ratio}, but must be above 0 and below 1.")
    if num_samples is not None and num_samples < 1:
        raise LoragenTrainError(f"--num-samples is {num_samples}, but must be at least 1.")
    check_seed("--", seed)


def _name_and_location(text: str) -> tuple[str | None, str]:
    name, equals, location = text.partition("=")
    return (name, location) if equals and not Path(text).exists() else (None, text)


def _origin(source: Source) -> dict[str, str]:
    """What made the samples, where they come from no file: another version may make others."""
    if source.file is not None:
        return {}
    library = "reasoning-gym" if source.is_generator else "datasets"
    made_by = f"{library} {importlib.metadata.version(library)}"
    return {"made_by": made_by} if source.is_generator else {"made_by": made_by, "split": source.split}
