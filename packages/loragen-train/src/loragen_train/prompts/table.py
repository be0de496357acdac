"""Reads the prompts of every task: from the files that ``prepare`` wrote, or from a task's own file of samples."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from loragen_infer.samples import read_examples, read_jsonl

from loragen_train.configs.fit import DataConfig, TaskConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import combine

__all__ = ["TaskPrompts", "read_prompts"]

# Share of the prompts kept for validation where a task brings samples that nobody has split; prepare's default too.
_VAL_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class TaskPrompts:
    """The prompts of every task; validation prompts show no sample that the training prompts show."""

    train: dict[str, list[str]]
    """Prompts to train with, by task."""
    val: dict[str, list[str]]
    """Prompts to validate with, of the same tasks."""

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
    train: dict[str, list[str]] = {}
    val: dict[str, list[str]] = {}
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
    return TaskPrompts(train=train, val=val)


def _read_prepared(file: Path) -> dict[str, list[str]]:
    prompts: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(read_jsonl(file), start=1):
        task, prompt = row.get("task"), row.get("prompt")
        if not isinstance(task, str) or not isinstance(prompt, str) or not prompt.strip():
            raise LoragenTrainError(
                f"{file}, line {number} needs a 'task' and a 'prompt', both text; write the file with: "
                "loragen-train prepare."
            )
        prompts[task].append(prompt)
    return dict(prompts)


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


def _join_samples(task: TaskConfig, file: str, samples_per_prompt: int, seed: int) -> tuple[list[str], list[str]]:
    samples = [example.prompt for example in read_examples(Path(file), need_response=False)]
    rows = combine(task.name, samples, samples_per_prompt=samples_per_prompt, seed=seed)
    if len(rows) < 2:
        raise LoragenTrainError(
            f"{file} has {len(set(samples))} different samples, too few for two prompts of {samples_per_prompt} (one "
            "to train on, one to validate); add samples or lower data.samples_per_prompt."
        )
    prompts = [row.prompt for row in rows]
    num_val = max(1, round(_VAL_SHARE * len(rows)))
    return prompts[num_val:], prompts[:num_val]
