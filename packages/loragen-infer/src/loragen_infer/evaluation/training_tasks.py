"""What is known of the tasks that the generator was trained on, and which of the evaluated tasks are held out.

The bundle remembers its training tasks; the configuration may name them instead, for a bundle that does not.
"""

from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, find_adapters, read_adapter

from loragen_infer.bundle import read_old_task_means
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask, TrainingTask
from loragen_infer.evaluation.task_means import TaskMeans
from loragen_infer.generator import LoraGenerator
from loragen_infer.samples import read_examples, read_jsonl

__all__ = ["is_held_out", "read_own_adapter", "read_task_prompts", "read_training_tasks"]


def read_training_tasks(config: EvaluateConfig, generator: LoraGenerator) -> TaskMeans | None:
    """Return the training tasks that the configuration names, or else those of the bundle, or else None.

    Raises:
        LoragenInferError: Prompts or adapters cannot be read, or an adapter is of another shape than the generated
            ones; or a task is said to be held out that the bundle was trained on.
    """
    if config.training_tasks is not None:
        parts = [_task_means(task, generator) for task in config.training_tasks]
        return TaskMeans(
            names=tuple(task.name for task in config.training_tasks),
            condition_means=torch.stack([condition_D for condition_D, _ in parts]),
            token_means=torch.stack([tokens_NW for _, tokens_NW in parts]),
        )
    means = _of_old_bundle(Path(config.model))
    for task in config.tasks:
        if task.held_out and means is not None and task.name in means.names:
            raise LoragenInferError(
                f"The task {task.name!r} has held_out, but the generator was trained on it; take held_out away, or "
                "evaluate a generator that was not."
            )
    return means


def _of_old_bundle(path: Path) -> TaskMeans | None:
    found = read_old_task_means(path)
    return (
        None
        if found is None
        else TaskMeans(
            names=tuple(found[0]), condition_means=found[1]["condition_means"], token_means=found[1]["token_means"]
        )
    )


def is_held_out(task: EvaluateTask, training: TaskMeans | None) -> bool | None:
    """Return whether training saw nothing of ``task``; None where neither the task nor the bundle says."""
    if task.held_out is not None or training is None:
        return task.held_out
    return task.name not in training.names


def read_task_prompts(name: str, path: Path) -> list[str]:
    """Return the prompts of a file, or of one with a ``task`` column those of the task called ``name``.

    Raises:
        LoragenInferError: The file cannot be read, or has no prompts of the task.
    """
    rows = read_jsonl(path)
    prompts = [example.prompt for example in read_examples(path, need_response=False)]
    if not any("task" in row for row in rows):
        return prompts
    prompts = [prompt for prompt, row in zip(prompts, rows, strict=True) if row.get("task") == name]
    if not prompts:
        raise LoragenInferError(f"{path} has no prompts of the task {name!r}; name another file for it.")
    return prompts


def read_own_adapter(whose: str, path: Path) -> tuple[LoraAdapter, Path]:
    """Return the adapter at ``path``, of a folder of checkpoints the last, and where it lies.

    Raises:
        LoragenInferError: There is none, or it cannot be read.
    """
    try:
        found = find_adapters(path)[-1]
        return read_adapter(found), found
    except LoraTokenizerError as error:
        raise LoragenInferError(f"The adapter of {whose} cannot be read: {error}") from error


def _task_means(task: TrainingTask, generator: LoraGenerator) -> tuple[torch.Tensor, torch.Tensor]:
    condition_D = generator.encoder.encode(read_task_prompts(task.name, Path(task.prompts))).mean(dim=0)
    total_NW = torch.zeros(generator.bundle.layout.num_tokens, generator.bundle.layout.token_dim, dtype=torch.float64)
    try:
        found = find_adapters(Path(task.adapter))
        for path in found:
            total_NW += generator.bundle.layout.encode(read_adapter(path))
    except LoraTokenizerError as error:
        raise LoragenInferError(f"The adapter of the training task {task.name!r} cannot be used: {error}") from error
    return condition_D, (total_NW / len(found)).float()
