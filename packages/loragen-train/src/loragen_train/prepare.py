"""Combines the samples of each task into prompts and splits them; decides what a generator sees and is judged on.

A prompt shows several samples of its task (``samples_per_prompt``), never their responses. Every sample is in one
prompt only, and every prompt in one file only, so validation shows nothing that training saw.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loragen_infer.examples import read_examples
from loragen_infer.files import write_json, write_jsonl

from loragen_train.collect_config import check_task_names
from loragen_train.errors import LoragenTrainError

__all__ = ["PromptRow", "combine", "prepare"]

# What separates the samples within a prompt: a blank line, as between paragraphs.
_SEPARATOR = "\n\n"


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
) -> dict[str, Any]:
    """Write ``train_prompts.jsonl``, ``val_prompts.jsonl`` and ``manifest.json`` to ``output_dir``.

    Args:
        sources: JSON/JSONL files, one task each; the file's stem is the task's name (``name=path`` sets another).
        output_dir: Folder to write to.
        samples_per_prompt: Number of samples per prompt; what is left over at the end of a task is dropped.
        test_ratio: Share of each task's prompts that goes to the validation file, above 0 and below 1; each task
            has at least one prompt in either file.
        seed: Seed of the combination and of the split.

    Returns:
        The manifest: counts (samples that differ, prompts) and SHA-256 per task, and the settings.

    Raises:
        LoragenTrainError: A setting out of range, two tasks of one name, or too few samples for two prompts.
        LoragenInferError: A source cannot be read.
    """
    if samples_per_prompt < 1:
        raise LoragenTrainError(f"--samples-per-prompt is {samples_per_prompt}, but must be at least 1.")
    if not 0 < test_ratio < 1:
        raise LoragenTrainError(f"--test-ratio is {test_ratio}, but must be above 0 and below 1.")
    named = [_name_and_path(str(source)) for source in sources]
    check_task_names([name for name, _ in named])

    train: list[PromptRow] = []
    val: list[PromptRow] = []
    tasks: dict[str, Any] = {}
    for name, path in named:
        prompts = [example.prompt for example in read_examples(path, need_response=False)]
        rows = combine(name, prompts, samples_per_prompt=samples_per_prompt, seed=seed)
        num_samples = len(set(prompts))
        if len(rows) < 2:
            raise LoragenTrainError(
                f"{path} has {num_samples} different samples, too few for two prompts of {samples_per_prompt} (one to "
                "train on, one to validate); add samples or lower --samples-per-prompt."
            )
        num_val = min(max(1, round(test_ratio * len(rows))), len(rows) - 1)
        val += rows[:num_val]
        train += rows[num_val:]
        tasks[name] = {
            "source": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "num_samples": num_samples,
            "num_train_prompts": len(rows) - num_val,
            "num_val_prompts": num_val,
        }
    write_jsonl(output_dir / "train_prompts.jsonl", map(asdict, train))
    write_jsonl(output_dir / "val_prompts.jsonl", map(asdict, val))
    manifest = {
        "samples_per_prompt": samples_per_prompt,
        "test_ratio": test_ratio,
        "seed": seed,
        "tasks": tasks,
    }
    write_json(output_dir / "manifest.json", manifest)
    return manifest


def combine(task: str, prompts: Sequence[str], *, samples_per_prompt: int, seed: int) -> list[PromptRow]:
    """Return random combinations of ``samples_per_prompt`` different samples, no sample in two of them.

    A prompt that occurs several times counts once, at its first position: a copy would put one sample on both sides
    of the split.

    Example:
        >>> rows = combine("letters", list("abcdea"), samples_per_prompt=2, seed=0)
        >>> sorted(len(row.sample_ids) for row in rows), rows[0].prompt.count("\\n\\n")
        ([2, 2], 1)
    """
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    ids = sorted(first.values())
    # The task's name is part of the seed, so that a task's combinations do not depend on the other tasks.
    random.Random(f"{seed}/{task}").shuffle(ids)
    starts = range(0, len(ids) - samples_per_prompt + 1, samples_per_prompt)
    groups = [ids[start : start + samples_per_prompt] for start in starts]
    return [
        PromptRow(task=task, prompt=_SEPARATOR.join(prompts[index] for index in group), sample_ids=group)
        for group in groups
    ]


def _name_and_path(source: str) -> tuple[str, Path]:
    name, equals, path = source.partition("=")
    if equals and not Path(source).exists():
        return name, Path(path)
    return Path(source).stem, Path(source)
