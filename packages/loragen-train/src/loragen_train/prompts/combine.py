"""Combines the samples of each task into prompts and splits them; decides what a generator sees and is judged on.

A prompt shows several samples of its task, never their responses. Every sample is in one prompt only, and every prompt
on one side only, so validation shows nothing that training saw; and the test examples of a zoo are in none.
"""

import hashlib
import importlib.metadata
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loragen_infer.files import atomic_file
from loragen_infer.samples import prompt_hash, read_examples
from loragen_infer.words import counted
from loragen_infer.zoo import MANIFEST_NAME, ZooManifest

from loragen_train.configs.collect import check_task_names
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.sources import Samples, Source, read_samples

__all__ = ["PromptRow", "combine", "hashes_of", "hashes_of_test_examples", "prepare", "unused_samples"]


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One line of ``train_prompts.jsonl`` or ``val_prompts.jsonl``: the prompts of several samples, joined."""

    task: str
    prompt: str
    sample_ids: list[int]
    """Which samples: their 0-based positions in the source."""
    sample_hashes: list[str]
    """The hash of each sample's prompt, by which an evaluation knows it again."""


def prepare(sources: Sequence[str | Path], config: PrepareConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Write ``train_prompts.jsonl``, ``val_prompts.jsonl`` and ``manifest.json`` to ``config.output_dir``.

    Args:
        sources: One task each: JSON/JSONL files, ``reasoning-gym:NAME``, ``hf:DATASET/CONFIG`` or ``lm-eval:TASK``. A
            task is called after its source (a file's stem, the last part of a name with its settings);
            ``name=source`` calls it otherwise.
        config: How samples are combined and split.
        overwrite: Replace other prompts that are there.

    Returns:
        The manifest: the settings; counts and SHA-256 of the samples of every task and of the prompts in each file.

    Raises:
        LoragenTrainError: A source cannot be had or is too small, two tasks share a name, or other prompts are there.
        LoragenInferError: A file cannot be read or written.
    """
    named = [Source.of(*_name_and_location(str(text)), config) for text in sources]
    check_task_names([source.task for source in named])
    test_hashes = _test_hashes(config.zoo, named)
    rows: dict[str, list[PromptRow]] = {"train_prompts.jsonl": [], "val_prompts.jsonl": []}
    tasks: dict[str, Any] = {}
    for source in named:
        samples = read_samples(
            source, num_samples=config.num_samples, seed=config.seed, purpose="prepare", leave_out=test_hashes
        )
        train, val = combine(samples, config.samples_per_prompt, val_share=config.test_ratio, seed=config.seed)
        tasks[source.task] = {
            **_described(samples),
            "num_left_over": len(samples.by_place) % config.samples_per_prompt,
            "num_train_prompts": len(train),
            "num_val_prompts": len(val),
        }
        rows["train_prompts.jsonl"] += train
        rows["val_prompts.jsonl"] += val
    contents = {
        name: "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in of_file).encode()
        for name, of_file in rows.items()
    }
    manifest: dict[str, Any] = {
        **{key: value for key, value in asdict(config).items() if key != "output_dir"},
        "tasks": tasks,
        "files": {
            name: {"num_prompts": len(rows[name]), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    # Last, so that a manifest says of its files what is true.
    contents["manifest.json"] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    _write(Path(config.output_dir), contents, overwrite=overwrite)
    return manifest


def combine(
    samples: Samples, samples_per_prompt: int, *, val_share: float, seed: int
) -> tuple[list[PromptRow], list[PromptRow]]:
    """Return prompts to train and to validate with: random combinations of samples, no sample in two of them."""
    task = samples.source.task
    prompts = {place: example.prompt for place, example in samples.by_place.items()}
    ids = sorted(prompts)
    # The task's name is part of the seed, so that a task's combinations do not depend on the other tasks.
    random.Random(f"{seed}/{task}").shuffle(ids)
    starts = range(0, len(ids) - samples_per_prompt + 1, samples_per_prompt)
    if len(starts) < 2:
        besides = f" besides {counted(samples.num_left_out, 'test example')}" if samples.num_left_out else ""
        raise LoragenTrainError(
            f"{samples.source.location} has {counted(len(ids), 'different sample')}{besides}, too few for two prompts "
            f"of {samples_per_prompt} (one to train on, one to validate); add samples or lower samples_per_prompt."
        )
    rows = [
        PromptRow(
            task=task,
            prompt="\n\n".join(prompts[place] for place in group),
            sample_ids=group,
            sample_hashes=[prompt_hash(prompts[place]) for place in group],
        )
        for group in (ids[start : start + samples_per_prompt] for start in starts)
    ]
    num_val = min(max(1, round(val_share * len(rows))), len(rows) - 1)
    return rows[num_val:], rows[:num_val]


def unused_samples(*, num_duplicates: int, num_left_over: int = 0, num_test_examples: int = 0) -> str:
    """Return what of a task is in no prompt, to be put after a sentence: ``"; not used: 1 duplicate"``, or nothing."""
    kinds = {"duplicate": num_duplicates, "test example": num_test_examples, "left-over sample": num_left_over}
    said = [counted(number, noun) for noun, number in kinds.items() if number]
    return f"; not used: {', '.join(said)}" if said else ""


def _name_and_location(text: str) -> tuple[str, str]:
    name, equals, location = text.partition("=")
    unnamed = Source(location=text)
    if equals and unnamed.library is None and not Path(text).exists():
        return name, location
    return unnamed.default_task, text


def _test_hashes(zoo: str | None, sources: Iterable[Source]) -> frozenset[str]:
    """Hashes of the test examples of the zoo, or where none is named of those that the sources and ./zoo are of."""
    files = [Path(source.name) for source in sources if source.library is None]
    likely = {Path("zoo"), *(file.parent.parent for file in files if file.parent.name in ("train", "test"))}
    folders = likely if zoo is None else {Path(zoo)}
    listed = {folder for folder in folders if (folder / MANIFEST_NAME).is_file()}
    if zoo is not None and not listed and not (Path(zoo) / "test").is_dir():
        raise LoragenTrainError(
            f"{zoo} has neither {MANIFEST_NAME} nor a folder test, so collect has not written it; give another --zoo."
        )
    tests = [file for folder in folders - listed for file in folder.glob("test/*.jsonl")]
    return hashes_of(tests).union(*(hashes_of_test_examples(ZooManifest.read(folder)) for folder in listed))


def hashes_of_test_examples(manifest: ZooManifest) -> frozenset[str]:
    """Return the hashes of the test examples of all tasks, which nothing may be trained on."""
    return hashes_of([manifest.samples(task.test) for task in manifest.tasks if task.test is not None])


def hashes_of(files: Iterable[Path]) -> frozenset[str]:
    """Return the hashes of all samples in ``files``."""
    return frozenset(prompt_hash(row.prompt) for file in files for row in read_examples(file, need_response=False))


def _described(samples: Samples) -> dict[str, Any]:
    """What the manifest says of the samples of a task."""
    source, rows = samples.source, samples.by_place.values()
    described: dict[str, Any] = {"source": source.location}
    if source.library is None:
        content = Path(source.name).read_bytes()
    else:
        content = "".join(json.dumps(row.prompt) + "\n" for row in rows).encode()
        # Another version may make others.
        described["made_by"] = f"{source.library} {importlib.metadata.version(source.library)}"
    return {
        **described,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_samples": len(rows),
        "num_responses": sum(bool(row.response) for row in rows),
        "num_duplicates": samples.num_duplicates,
        "num_test_examples": samples.num_left_out,
    }


def _write(folder: Path, contents: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write the files; what is there already, and other, is only replaced where it may be."""
    files = {folder / name: content for name, content in contents.items()}
    other = [file for file, content in files.items() if file.exists() and file.read_bytes() != content]
    if other and not overwrite:
        raise LoragenTrainError(
            f"{folder} has other prompts ({other[0].name} would change); choose another output_dir, or replace them "
            "with --overwrite."
        )
    for file, content in files.items():
        with atomic_file(file) as part:
            part.write_bytes(content)
