"""Reads the zoo: the checkpoints of every task as tokens under one layout, from the token cache."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_tokenizer import (
    LoraTokenizerError,
    TokenCache,
    TokenLayout,
    TokenSet,
    TokenStats,
    find_adapters,
    read_adapter,
)
from loragen_infer.progress import ProgressBar

from loragen_train.configs.fit import DataConfig, ModelConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["Zoo", "read_zoo"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """The tokenized checkpoints of all tasks; their values stay on disk until they are asked for."""

    layout: TokenLayout
    """The layout that all checkpoints share."""
    stats: TokenStats
    tokens: TokenSet
    """Tokens ``[N, W]`` of each checkpoint, as stored."""
    tasks: list[str]
    """The task of each checkpoint."""

    @property
    def names(self) -> list[str]:
        """The different tasks, in the order of their checkpoints."""
        return list(dict.fromkeys(self.tasks))

    def content_hashes(self, task: str) -> list[str]:
        """SHA-256 of every checkpoint of one task, over its tokens."""
        return [entry["content"] for entry, name in zip(self.tokens.entries, self.tasks, strict=True) if name == task]

    def task_means(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and mean tokens ``[N, W]``, float32, of one task after the other; one sum is in memory at a time."""
        for task in self.names:
            members = [index for index, name in enumerate(self.tasks) if name == task]
            total_NW = torch.zeros(self.stats.mean.shape, dtype=torch.float64)
            for index in members:
                total_NW += self.tokens[index]
            yield task, (total_NW / len(members)).float()


def read_zoo(data: DataConfig, model: ModelConfig, task_names: Sequence[str], cache_dir: Path) -> Zoo:
    """Tokenize the checkpoints that ``data`` names, or find their tokens in the cache.

    A single ``data.checkpoint_dir`` is that of the first of ``task_names``; tasks without any have no part in it.
    """
    bare = {task.name for task in data.tasks if task.checkpoint_dir is None}
    task_names = [name for name in task_names if name not in bare]
    if not task_names:
        raise LoragenTrainError(
            "No task has a checkpoint, and shapes and statistics of generated adapters are those of checkpoints; give "
            "the zoo a few, which loragen-train collect trains."
        )
    files = _find_checkpoints(data, task_names)
    layout, first = _layout(files, data, model)

    def refuse_or_skip(file: Path, problem: str) -> None:
        problem = f"{problem} (all must fit {first}, the first that can be read)"
        if not data.skip_unreadable:
            raise _unusable(file, problem)
        logger.warning("Left out the checkpoint %s: %s", file, problem)

    with ProgressBar("tokenize", total=len(files), unit="checkpoint") as bar:
        cache = TokenCache(cache_dir / "tokens")
        tokens = cache.get(
            list(files), layout, on_done=bar.advance, on_error=refuse_or_skip, lora_alpha=data.lora_alpha
        )
    tasks = [files[Path(entry["path"])] for entry in tokens.entries]
    logger.info("Checkpoints: %s.", ", ".join(f"{name} {tasks.count(name)}" for name in task_names))
    for name in task_names:
        if name not in tasks:
            raise LoragenTrainError(f"No checkpoint of the task {name!r} can be read; mend them or remove the task.")
    return Zoo(layout=layout, stats=_statistics(tokens, cache_dir), tokens=tokens, tasks=tasks)


def _find_checkpoints(data: DataConfig, task_names: Sequence[str]) -> dict[Path, str]:
    """Every checkpoint, by its absolute path, and the task that it is of."""
    places = {task.name: task.checkpoint_dir for task in data.tasks if task.checkpoint_dir is not None}
    if data.checkpoint_dir is not None:
        places = {task_names[0]: data.checkpoint_dir}
    files: dict[Path, str] = {}
    for task in task_names:
        listed = places[task]
        found = [
            file
            for place in ([listed] if isinstance(listed, str) else listed)
            for file in find_adapters(Path(place).absolute())
        ]
        for file in found[-data.max_checkpoints :]:
            if files.setdefault(file, task) != task:
                raise LoragenTrainError(f"{file} is a checkpoint of two tasks; give each a folder of its own.")
    return files


def _layout(files: Iterable[Path], data: DataConfig, model: ModelConfig) -> tuple[TokenLayout, Path]:
    """The layout, in float32, of the first checkpoint that can be read, and which that is."""
    for file in files:
        try:
            adapter = read_adapter(file, lora_alpha=data.lora_alpha).to(torch.float32)
        except LoraTokenizerError as error:
            if not data.skip_unreadable:
                raise _unusable(file, str(error)) from error
            continue  # the token cache comes upon it again, and has it left out
        try:
            layout = TokenLayout.from_adapter(
                adapter,
                token_dim=model.output_dim,
                max_tokens=model.max_seq_len,
                canonical="svd" if data.canonical == "svd" else None,
                transpose_b=model.transpose_b,
            )
        except LoraTokenizerError as error:
            limits = f"model.max_seq_len={model.max_seq_len} with model.output_dim={model.output_dim}"
            reason = str(error).replace("max_tokens", "model.max_seq_len")
            raise LoragenTrainError(f"{file} does not fit {limits}: {reason}") from error
        # Kernels that the grid is too small for are refused before anything is tokenized.
        model.network(condition_dim=1, grid=layout.grid)
        if model.output_dim == "auto":
            logger.info("Tokens have %d values (model.output_dim: auto).", layout.token_dim)
        if layout.canonical is not None:
            logger.info("Checkpoints are brought to their canonical form (%s).", layout.canonical)
        return layout, file
    raise LoragenTrainError("No checkpoint of any task can be read; collect the zoo again.")


def _unusable(file: Path, problem: str) -> LoragenTrainError:
    return LoragenTrainError(
        f"The checkpoint {file} cannot be used: {problem}; mend or remove it, or set data.skip_unreadable to true."
    )


def _statistics(tokens: TokenSet, cache_dir: Path) -> TokenStats:
    """Statistics of a set, kept in the cache under a hash of what is in it."""
    # The shape too: where nothing is padded, tokens of another width are the same bytes.
    contents = json.dumps([[entry["content"], entry["dtype"], entry["shape"]] for entry in tokens.entries])
    file = cache_dir / "statistics" / f"{hashlib.sha256(contents.encode()).hexdigest()[:32]}.safetensors"
    try:
        return TokenStats.load(file)
    except LoraTokenizerError:  # it is not there yet, or damaged
        stats = TokenStats.from_tokens(tokens)
        stats.save(file)
        return stats
