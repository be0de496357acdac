"""Reads the prompts of every task: from the files that ``prepare`` wrote, or from a task's own file of samples."""

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from loragen_infer.samples import prompt_hash, read_examples, read_jsonl

from loragen_train.configs.fit import DataConfig, TaskConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import PromptRow, combine
from loragen_train.words import counted, unused_samples

__all__ = ["TaskPrompts", "read_prompts"]

logger = logging.getLogger(__name__)

# Share of the prompts kept for validation where a task brings samples that nobody has split; prepare's default too.
_VAL_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class TaskPrompts:
    """The prompts of every task; validation prompts show no sample that the training prompts show."""

    train: dict[str, list[str]]
    """Prompts to train with, by task."""
    val: dict[str, list[str]]
    """Prompts to validate with, of the same tasks."""
    train_hashes: dict[str, frozenset[str]] = field(default_factory=dict)
    """Hashes of all samples that a task's training prompts show (:func:`loragen_infer.samples.prompt_hash`)."""

    def sha256(self, task: str) -> str:
        """Hash over all prompts of one task, in order."""
        text = "\0".join([*self.train[task], "\0", *self.val[task]])
        return hashlib.sha256(text.encode()).hexdigest()


def read_prompts(data: DataConfig, seed: int) -> TaskPrompts:
    """Return the prompts of the tasks that ``data`` names; of a single task without a name, all in ``prompts_dir``.

    Args:
        data: The tasks, and where their prompts are.
        seed: Seed of how samples are joined, for tasks with samples of their own.

    Raises:
        LoragenInferError: A file cannot be read.
        LoragenTrainError: A line has no ``task`` or no ``prompt``, a task is in only one of the two files, or a task
            has no prompts, or prompts but no checkpoints.
    """
    train: dict[str, list[PromptRow]] = {}
    val: dict[str, list[PromptRow]] = {}
    if data.checkpoint_dir is not None or any(task.prompts is None for task in data.tasks):
        folder = Path(data.prompts_dir)
        train = _read_prepared(folder / "train_prompts.jsonl")
        val = _read_prepared(folder / "val_prompts.jsonl")
        if missing := sorted(set(train) ^ set(val)):
            raise LoragenTrainError(f"The task {missing[0]!r} is in only one of the two prompt files in {folder}.")
        _check_tasks(data, list(train))
    for task in data.tasks:
        if task.prompts is not None:
            train[task.name], val[task.name] = _join_samples(task, task.prompts, data.samples_per_prompt, seed)
    return TaskPrompts(
        train={task: [row.prompt for row in rows] for task, rows in train.items()},
        val={task: [row.prompt for row in rows] for task, rows in val.items()},
        train_hashes={
            task: frozenset(digest for row in rows for digest in row.sample_hashes) for task, rows in train.items()
        },
    )


def _read_prepared(file: Path) -> dict[str, list[PromptRow]]:
    rows: dict[str, list[PromptRow]] = defaultdict(list)
    for number, row in enumerate(read_jsonl(file), start=1):
        task, prompt = row.get("task"), row.get("prompt")
        if not isinstance(task, str) or not isinstance(prompt, str) or not prompt.strip():
            raise LoragenTrainError(
                f"{file}, line {number} needs a 'task' and a 'prompt', both text; write the file with: "
                "loragen-train prepare."
            )
        # Older files lack the hashes; the sample of a prompt that shows only one is known all the same.
        hashes = row.get("sample_hashes") or [prompt_hash(prompt)]
        rows[task].append(PromptRow(task=task, prompt=prompt, sample_ids=[], sample_hashes=hashes))
    return dict(rows)


def _check_tasks(data: DataConfig, prepared: list[str]) -> None:
    if data.checkpoint_dir is not None:
        if len(prepared) != 1:
            raise LoragenTrainError(
                f"data.checkpoint_dir is one task's, but the prompts in {data.prompts_dir} are of {len(prepared)} "
                f"({', '.join(prepared)}); list them under data.tasks, each with its checkpoint_dir."
            )
        return
    wanted = {task.name for task in data.tasks if task.prompts is None}
    if without_prompts := sorted(wanted - set(prepared)):
        raise LoragenTrainError(
            f"The task {without_prompts[0]!r} of data.tasks has no prompts in {data.prompts_dir} (which has "
            f"{', '.join(prepared)}); prepare them or remove the task."
        )
    if without_checkpoints := sorted(set(prepared) - {task.name for task in data.tasks}):
        raise LoragenTrainError(
            f"The prompts in {data.prompts_dir} have a task {without_checkpoints[0]!r} that data.tasks (with "
            f"{', '.join(task.name for task in data.tasks)}) has no checkpoints for; add it or prepare the prompts "
            "without it."
        )


def _join_samples(
    task: TaskConfig, file: str, samples_per_prompt: int, seed: int
) -> tuple[list[PromptRow], list[PromptRow]]:
    samples = [example.prompt for example in read_examples(Path(file), need_response=False)]
    num_different = len(set(map(prompt_hash, samples)))
    rows = combine(task.name, samples, samples_per_prompt=samples_per_prompt, seed=seed)
    if len(rows) < 2:
        raise LoragenTrainError(
            f"{file} has {num_different} different samples, too few for two prompts of {samples_per_prompt} (one "
            "to train on, one to validate); add samples or lower data.samples_per_prompt."
        )
    unused = unused_samples(
        num_duplicates=len(samples) - num_different, num_left_over=num_different % samples_per_prompt
    )
    logger.info("%s: %s%s.", task.name, counted(num_different, "sample"), unused)
    num_val = max(1, round(_VAL_SHARE * len(rows)))
    return rows[num_val:], rows[:num_val]
