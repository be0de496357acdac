"""Reads the prompts of every task: from the files that ``prepare`` wrote, or from a task's own file of samples."""

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loragen_infer.samples import Example, example_of, prompt_hash, read_jsonl
from loragen_infer.words import counted

from loragen_train.configs.fit import DataConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import PromptRow, combine, unused_samples
from loragen_train.prompts.sources import Samples, Source, read_samples

__all__ = ["TaskPrompts", "read_prompts"]

logger = logging.getLogger(__name__)

# Share of the prompts kept for validation where a task brings samples that nobody has split; prepare's default too.
_VAL_SHARE = 0.1
_SAMPLES_PER_PROMPT = 4
_HASH = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class TaskPrompts:
    """The prompts of every task; validation prompts show no sample that the training prompts show."""

    train: dict[str, list[str]]
    """Prompts to train with, by task."""
    val: dict[str, list[str]]
    """Prompts to validate with, of the same tasks."""
    train_hashes: dict[str, frozenset[str]] = field(default_factory=dict)
    """Hashes of all samples that a task's training prompts show (:func:`loragen_infer.samples.prompt_hash`)."""
    train_samples: dict[str, dict[str, Example]] = field(default_factory=dict)
    """Of tasks with responses, the samples that the training prompts show, by where each of them stands."""
    val_samples: dict[str, dict[str, Example]] = field(default_factory=dict)
    """The same of the validation prompts."""

    def sha256(self, task: str) -> str:
        """Hash over all prompts of one task, in order."""
        text = "\0".join([*self.train[task], "\0", *self.val[task]])
        return hashlib.sha256(text.encode()).hexdigest()

    def samples_sha256(self, task: str) -> str:
        """Hash over the samples of one task that have responses, in order."""
        parts = [*self.train_samples.get(task, {}).values(), *self.val_samples.get(task, {}).values()]
        return hashlib.sha256("\0".join(f"{part.prompt}\0{part.response}" for part in parts).encode()).hexdigest()


def read_prompts(data: DataConfig, seed: int, *, leave_out: Collection[str] = ()) -> TaskPrompts:
    """Return the prompts of the tasks that ``data`` names; of a single task without a name, all in ``prompts_dir``.

    ``seed`` decides how the samples of tasks with samples of their own are joined; those whose hashes are in
    ``leave_out`` are in no prompt.
    """
    train: dict[str, list[PromptRow]] = {}
    val: dict[str, list[PromptRow]] = {}
    if data.checkpoint_dir is not None or any(task.prompts is None for task in data.tasks):
        folder = Path(data.prompts_dir)
        train = _read_prepared(folder / "train_prompts.jsonl")
        val = _read_prepared(folder / "val_prompts.jsonl")
        if missing := sorted(set(train) ^ set(val)):
            raise LoragenTrainError(f"The task {missing[0]!r} is in only one of the two prompt files in {folder}.")
        _check_apart(train, val, folder)
        _check_tasks(data, list(train))
    samples: tuple[dict[str, dict[str, Example]], dict[str, dict[str, Example]]] = {}, {}
    per_prompt = _SAMPLES_PER_PROMPT if data.samples_per_prompt == "auto" else data.samples_per_prompt
    for task in data.tasks:
        if task.prompts is not None:
            source = _read_source(task.name, task.prompts, per_prompt, seed, leave_out)
            train[task.name], val[task.name] = rows = combine(source, per_prompt, val_share=_VAL_SHARE, seed=seed)
            for side, of_side in zip(samples, rows, strict=True):
                if found := _with_responses(source, of_side):
                    side[task.name] = found
    return TaskPrompts(
        train={task: [row.prompt for row in rows] for task, rows in train.items()},
        val={task: [row.prompt for row in rows] for task, rows in val.items()},
        train_hashes={
            # The sample of a prompt that shows only one is known without hashes too.
            task: frozenset(digest for row in rows for digest in row.sample_hashes or [prompt_hash(row.prompt)])
            for task, rows in train.items()
        },
        train_samples=samples[0],
        val_samples=samples[1],
    )


def _read_prepared(file: Path) -> dict[str, list[PromptRow]]:
    rows: dict[str, list[PromptRow]] = defaultdict(list)
    for number, row in enumerate(read_jsonl(file), start=1):
        task, prompt = row.get("task"), row.get("prompt")
        if not isinstance(task, str) or not isinstance(prompt, str) or not prompt.strip():
            raise LoragenTrainError(
                f"{file}, line {number} needs a 'task' and a 'prompt', both text; write it with loragen-train prepare."
            )
        example_of({"prompt": prompt}, f"{file}, line {number}", need_response=False)  # refuses half a character
        hashes = row.get("sample_hashes") or []  # which older files lack
        if not isinstance(hashes, list) or not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
            raise LoragenTrainError(
                f"{file}, line {number}: sample_hashes is no list of texts of 16 hexadecimal digits; write it with "
                "loragen-train prepare."
            )
        rows[task].append(PromptRow(task=task, prompt=prompt, sample_ids=[], sample_hashes=hashes))
    return dict(rows)


def _check_apart(train: Mapping[str, list[PromptRow]], val: Mapping[str, list[PromptRow]], folder: Path) -> None:
    """Refuse prompts to validate with that show a sample of those to train with, as after half a ``prepare``."""
    for task, rows in val.items():
        seen = {digest for row in train[task] for digest in row.sample_hashes}
        if any(digest in seen for row in rows for digest in row.sample_hashes):
            raise LoragenTrainError(
                f"The two prompt files in {folder} have samples of {task!r} in common; write both anew with "
                "loragen-train prepare --overwrite."
            )


def _check_tasks(data: DataConfig, prepared: list[str]) -> None:
    where = f"The prompts in {data.prompts_dir} are of {', '.join(prepared)}"
    if data.checkpoint_dir is not None:
        if len(prepared) != 1:
            raise LoragenTrainError(
                f"{where}, but data.checkpoint_dir is one task's; list them under data.tasks, each with its "
                "checkpoint_dir."
            )
        return
    if missing := [task.name for task in data.tasks if task.prompts is None and task.name not in prepared]:
        raise LoragenTrainError(f"{where}, and not of {missing[0]!r}; prepare them or remove it from data.tasks.")
    if unknown := sorted(set(prepared) - {task.name for task in data.tasks}):
        raise LoragenTrainError(
            f"{where}, but data.tasks does not have {unknown[0]!r}; add it, or prepare the prompts without it."
        )


def _read_source(task: str, file: str, samples_per_prompt: int, seed: int, leave_out: Collection[str]) -> Samples:
    source = Source(location=file, task=task)
    samples = read_samples(source, num_samples=None, seed=seed, purpose="prepare", leave_out=leave_out)
    num_samples = len(samples.by_place)
    unused = unused_samples(
        num_duplicates=samples.num_duplicates,
        num_left_over=num_samples % samples_per_prompt,
        num_test_examples=samples.num_left_out,
    )
    if unused:
        logger.info("%s: %s%s.", task, counted(num_samples, "sample"), unused)
    return samples


def _with_responses(samples: Samples, rows: Iterable[PromptRow]) -> dict[str, Example]:
    """The samples that prompts show, in the order of their file; those without a response are not among them."""
    shown = sorted(place for row in rows for place in row.sample_ids)
    return {
        f"{samples.source.location}, row {place + 1}": samples.by_place[place]
        for place in shown
        if samples.by_place[place].response.strip()
    }
