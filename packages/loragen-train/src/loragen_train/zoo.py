"""Reads the zoo: the checkpoints of every task as tokens under one layout, and the prompts that belong to them."""

import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_tokenizer import LoraTokenizerError, TokenLayout, TokenStats, find_adapters, read_adapter
from loragen_infer.examples import read_jsonl

from loragen_train.config import DataConfig, ModelConfig, TaskConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["Zoo", "read_prompts", "read_zoo"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """The tokenized checkpoints of all tasks.

    Legend: M checkpoints, N tokens, W values per token.
    """

    layout: TokenLayout
    """The layout that all checkpoints share."""
    stats: TokenStats
    """Mean and standard deviation over the checkpoints, per position."""
    tokens: torch.Tensor
    """z-scored tokens ``[M, N, W]``, float32."""
    tasks: list[str]
    """The task of each checkpoint, of length M."""


def read_zoo(data: DataConfig, model: ModelConfig, task_names: list[str]) -> Zoo:
    """Tokenize the checkpoints that ``data`` names.

    Args:
        data: Where the checkpoints are.
        model: The token grid's limits.
        task_names: The tasks that the prompt files have; they must be the tasks of the zoo.

    Raises:
        LoragenTrainError: A task has prompts but no checkpoints, or the reverse; a checkpoint does not fit the grid, or
            differs from the first in shape or settings.
        LoraTokenizerError: A checkpoint cannot be read.
    """
    folders = _folders(data, task_names)
    paths = {task: find_adapters(Path(folder))[-data.max_checkpoints :] for task, folder in folders.items()}
    first = next(iter(paths.values()))[0]
    adapter = read_adapter(first).to(torch.float32)
    try:
        layout = TokenLayout.from_adapter(adapter, token_dim=model.output_dim, max_tokens=model.max_seq_len)
    except LoraTokenizerError as error:
        raise LoragenTrainError(
            f"{first} does not fit model.max_seq_len={model.max_seq_len} with model.output_dim={model.output_dim}: "
            f"{error}"
        ) from error
    tokens: list[torch.Tensor] = []
    tasks: list[str] = []
    for task, files in paths.items():
        logger.info("%s: %d checkpoints in %s.", task, len(files), folders[task])
        for file in files:
            adapter = read_adapter(file).to(torch.float32)
            try:
                tokens.append(layout.encode(adapter))
            except LoraTokenizerError as error:
                raise LoragenTrainError(f"{file} differs from {first}, the first checkpoint: {error}") from error
            tasks.append(task)
    stats = TokenStats.from_tokens(tokens)
    return Zoo(layout=layout, stats=stats, tokens=stats.normalize(torch.stack(tokens)), tasks=tasks)


def _folders(data: DataConfig, task_names: list[str]) -> dict[str, str]:
    tasks = data.tasks
    if data.checkpoint_dir is not None:
        if len(task_names) != 1:
            raise LoragenTrainError(
                f"data.checkpoint_dir is one task's, but the prompts in {data.prompts_dir} are of {len(task_names)} "
                f"({', '.join(task_names)}); list them under data.tasks, each with its checkpoint_dir."
            )
        tasks = [TaskConfig(name=task_names[0], checkpoint_dir=data.checkpoint_dir)]
    names = {task.name for task in tasks}
    if without_prompts := sorted(names - set(task_names)):
        raise LoragenTrainError(
            f"The task {without_prompts[0]!r} of data.tasks has no prompts in {data.prompts_dir} (which has "
            f"{', '.join(task_names)}); prepare them or remove the task."
        )
    if without_checkpoints := sorted(set(task_names) - names):
        raise LoragenTrainError(
            f"The prompts in {data.prompts_dir} have a task {without_checkpoints[0]!r} that data.tasks (with "
            f"{', '.join(sorted(names))}) has no checkpoints for; add it or prepare the prompts without it."
        )
    return {task.name: task.checkpoint_dir for task in tasks}


def read_prompts(file: Path) -> dict[str, list[str]]:
    """Return the prompts of each task in a file that ``loragen-train prepare`` wrote.

    Raises:
        LoragenInferError: The file cannot be read.
        LoragenTrainError: A line has no ``task`` or no ``prompt``.
    """
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
