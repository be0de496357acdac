"""Combines the samples of each task into prompts and splits them; decides what a generator sees and is judged on.

A prompt shows several samples of its task (``samples_per_prompt``), never their responses. Every sample is in one
prompt only, and every prompt in one file only, so validation shows nothing that training saw; and the test examples of
a zoo are in none.
"""

import hashlib
import importlib.metadata
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loragen_infer.files import atomic_file
from loragen_infer.samples import prompt_hash, read_examples

from loragen_train.configs.collect import check_task_names
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.sources import Source, read_samples, sha256_of

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
    sample_hashes: list[str]
    """The hash of each sample's prompt, by which an evaluation knows it again."""


def prepare(sources: Sequence[str | Path], config: PrepareConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Write ``train_prompts.jsonl``, ``val_prompts.jsonl`` and ``manifest.json`` to ``config.output_dir``.

    Args:
        sources: One task each: JSON/JSONL files, ``reasoning-gym:NAME`` or ``hf:DATASET/CONFIG``. A task is called
            after its source (a file's stem, the last part of a name); ``name=source`` calls it otherwise.
        config: How samples are combined and split.
        overwrite: Replace other prompts that are there.

    Returns:
        The manifest: the settings; per task its source, counts (samples, those with a response, what is not used,
        prompts) and SHA-256; per written file its number of prompts and SHA-256.

    Raises:
        LoragenTrainError: Two tasks of one name, too few samples for two prompts, a source that cannot be had, or
            other prompts in the folder.
        LoragenInferError: A file cannot be read or written.
    """
    named: list[tuple[str, Source]] = []
    for text in map(str, sources):
        name, location = _name_and_location(text)
        source = Source.of(location, config)
        named.append((source.task_name if name is None else name, source))
    check_task_names([name for name, _ in named])

    test_hashes = _test_hashes(config.zoo, [source.file for _, source in named if source.file is not None])
    parts: dict[str, list[PromptRow]] = {"train_prompts.jsonl": [], "val_prompts.jsonl": []}
    tasks: dict[str, Any] = {}
    for name, source in named:
        tasks[name], train, val = _prepare_task(name, source, config, test_hashes)
        parts["train_prompts.jsonl"] += train
        parts["val_prompts.jsonl"] += val
    texts = {
        file: "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        for file, rows in parts.items()
    }
    manifest: dict[str, Any] = {
        **{key: value for key, value in asdict(config).items() if key != "output_dir"},
        "tasks": tasks,
        "files": {
            file: {"num_prompts": len(rows), "sha256": hashlib.sha256(texts[file].encode()).hexdigest()}
            for file, rows in parts.items()
        },
    }
    # Last, so that a manifest says of its files what is true.
    texts["manifest.json"] = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    _write(Path(config.output_dir), texts, overwrite=overwrite)
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
    hashes = {place: prompt_hash(prompt) for place, prompt in places.items()}
    ids = sorted({digest: place for place, digest in reversed(hashes.items())}.values())
    # The task's name is part of the seed, so that a task's combinations do not depend on the other tasks.
    random.Random(f"{seed}/{task}").shuffle(ids)
    starts = range(0, len(ids) - samples_per_prompt + 1, samples_per_prompt)
    return [
        PromptRow(
            task=task,
            prompt=_SEPARATOR.join(places[place] for place in group),
            sample_ids=group,
            sample_hashes=[hashes[place] for place in group],
        )
        for group in (ids[start : start + samples_per_prompt] for start in starts)
    ]


def _prepare_task(
    name: str, source: Source, config: PrepareConfig, test_hashes: Collection[str]
) -> tuple[dict[str, Any], list[PromptRow], list[PromptRow]]:
    """What the manifest says of a task, and its prompts to train and to validate with."""
    samples = read_samples(
        source, num_samples=config.num_samples, seed=config.seed, purpose="prepare", leave_out=test_hashes
    )
    prompts = {place: example.prompt for place, example in samples.by_place.items()}
    rows = combine(name, prompts, samples_per_prompt=config.samples_per_prompt, seed=config.seed)
    if len(rows) < 2:
        without = f" that are no test examples ({samples.num_left_out} are)" if samples.num_left_out else ""
        raise LoragenTrainError(
            f"{source.location} has {len(prompts)} different samples{without}, too few for two prompts of "
            f"{config.samples_per_prompt} (one to train on, one to validate); add samples or lower "
            "--samples-per-prompt."
        )
    num_val = min(max(1, round(config.test_ratio * len(rows))), len(rows) - 1)
    described = {
        "source": source.location,
        **_origin(source),
        "sha256": sha256_of(source, samples),
        "num_samples": len(prompts),
        "num_responses": sum(bool(example.response) for example in samples.by_place.values()),
        "num_duplicates": samples.num_duplicates,
        "num_test_examples": samples.num_left_out,
        "num_left_over": len(prompts) % config.samples_per_prompt,
        "num_train_prompts": len(rows) - num_val,
        "num_val_prompts": num_val,
    }
    return described, rows[num_val:], rows[:num_val]


def _name_and_location(text: str) -> tuple[str | None, str]:
    name, equals, location = text.partition("=")
    return (name, location) if equals and not Path(text).exists() else (None, text)


def _test_hashes(zoo: str | None, files: Iterable[Path]) -> frozenset[str]:
    """Hashes of the test examples of the zoo, or where none is named of those that the sources and ./zoo are of."""
    if zoo is not None and not (Path(zoo) / "test").is_dir():
        raise LoragenTrainError(f"{zoo} has no folder test, so collect has not written it; give another --zoo.")
    likely = {Path("zoo"), *(file.parent.parent for file in files if file.parent.name in ("train", "test"))}
    folders = {Path(zoo)} if zoo is not None else likely
    tests = [file for folder in folders for file in folder.glob("test/*.jsonl")]
    return frozenset(prompt_hash(row.prompt) for file in tests for row in read_examples(file, need_response=False))


def _origin(source: Source) -> dict[str, str]:
    """What made the samples, where they come from no file: another version may make others."""
    if source.file is not None:
        return {}
    library = "reasoning-gym" if source.is_generator else "datasets"
    made_by = f"{library} {importlib.metadata.version(library)}"
    return {"made_by": made_by} if source.is_generator else {"made_by": made_by, "split": source.split}


def _line(row: PromptRow) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def _write(folder: Path, texts: Mapping[str, str], *, overwrite: bool) -> None:
    """Write the files; what is there already, and other, is only replaced where it may be."""
    contents = {folder / name: text.encode() for name, text in texts.items()}
    other = [file for file, content in contents.items() if file.exists() and file.read_bytes() != content]
    if other and not overwrite:
        raise LoragenTrainError(
            f"{folder} has other prompts ({other[0].name} would change); choose another output_dir, or replace them "
            "with --overwrite."
        )
    for file, content in contents.items():
        with atomic_file(file) as part:
            part.write_bytes(content)
