"""Reads the zoo: the checkpoints of every task as tokens under one layout, from the token store."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lora_tokenizer import (
    LoraTokenizerError,
    TokenLayout,
    TokenSet,
    TokenStats,
    TokenStore,
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
    """The tokenized checkpoints of all tasks; their values stay on disk until they are asked for.

    Legend: M checkpoints, N tokens, W values per token.
    """

    layout: TokenLayout
    """The layout that all checkpoints share."""
    stats: TokenStats
    """Mean and standard deviation over the checkpoints, per position."""
    tokens: TokenSet
    """Tokens ``[N, W]`` of the M checkpoints, as stored."""
    tasks: list[str]
    """The task of each checkpoint, of length M."""

    @property
    def names(self) -> list[str]:
        """The different tasks, in the order of their checkpoints."""
        return list(dict.fromkeys(self.tasks))

    def content_hashes(self, task: str) -> list[str]:
        """SHA-256 of every checkpoint of one task, over its settings and values."""
        entries = self.tokens.manifest.entries
        return [entry.content for entry, name in zip(entries, self.tasks, strict=True) if name == task]

    def task_means(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and mean tokens ``[N, W]``, float32, of one task after the other; one sum is in memory at a time."""
        members: dict[str, list[int]] = {}
        for index, task in enumerate(self.tasks):
            members.setdefault(task, []).append(index)
        for task, indices in members.items():
            total_NW = torch.zeros(self.stats.mean.shape, dtype=torch.float64)
            for index in indices:
                total_NW += self.tokens.read(index)
            yield task, (total_NW / len(indices)).float()


def read_zoo(data: DataConfig, model: ModelConfig, task_names: Sequence[str], cache_dir: Path) -> Zoo:
    """Tokenize the checkpoints that ``data`` names, or find their tokens in the cache.

    Args:
        data: Where the checkpoints are.
        model: The token grid's limits.
        task_names: The tasks; a single ``data.checkpoint_dir`` is the first one's.
        cache_dir: Folder of the token store and of the statistics.

    Raises:
        LoragenTrainError: A checkpoint does not fit the grid, cannot be read, or differs from the first in shape or
            settings; or a task has none.
    """
    files, tasks = _find_checkpoints(data, task_names)
    layout, unreadable = _layout(files, data, model)
    store = TokenStore(cache_dir / "tokens")
    try:
        tokens = _tokenize(store, [file for file in files if file not in unreadable], layout)
    except LoraTokenizerError as error:
        # The store stops at the first; the user wants to know the file, and maybe to go on without it.
        problems = dict(_problems(files, layout))
        if not problems:
            raise
        for file, problem in problems.items():
            _refuse_or_skip(file, problem, data)
        unreadable |= set(problems)
        logger.debug("The store said: %s", error)
        tokens = _tokenize(store, [file for file in files if file not in unreadable], layout)
    kept = [task for file, task in zip(files, tasks, strict=True) if file not in unreadable]
    for name in task_names:
        logger.info("%s: %d checkpoints.", name, kept.count(name))
        if name not in kept:
            raise LoragenTrainError(f"No checkpoint of the task {name!r} can be read; mend them or remove the task.")
    return Zoo(layout=layout, stats=_statistics(tokens, cache_dir), tokens=tokens, tasks=kept)


def _find_checkpoints(data: DataConfig, task_names: Sequence[str]) -> tuple[list[Path], list[str]]:
    folders = {task.name: task.checkpoint_dir for task in data.tasks}
    if data.checkpoint_dir is not None:
        folders = {task_names[0]: data.checkpoint_dir}
    files: list[Path] = []
    tasks: list[str] = []
    for task in task_names:
        found = find_adapters(Path(folders[task]))[-data.max_checkpoints :]
        files += found
        tasks += [task] * len(found)
    twice = {file for file in files if files.count(file) > 1}
    if twice:
        raise LoragenTrainError(f"{sorted(twice)[0]} is a checkpoint of two tasks; give each a folder of its own.")
    return files, tasks


def _layout(files: list[Path], data: DataConfig, model: ModelConfig) -> tuple[TokenLayout, set[Path]]:
    """The layout of the first checkpoint that can be read, in float32, and the files before it that cannot."""
    unreadable: set[Path] = set()
    for file in files:
        try:
            adapter = read_adapter(file).to(torch.float32)
        except LoraTokenizerError as error:
            _refuse_or_skip(file, str(error), data)
            unreadable.add(file)
            continue
        try:
            layout = TokenLayout.from_adapter(adapter, token_dim=model.output_dim, max_tokens=model.max_seq_len)
        except LoraTokenizerError as error:
            raise LoragenTrainError(
                f"{file} does not fit model.max_seq_len={model.max_seq_len} with model.output_dim={model.output_dim}: "
                f"{error}"
            ) from error
        return layout, unreadable
    raise LoragenTrainError("No checkpoint of any task can be read; collect the zoo again.")


def _problems(files: list[Path], layout: TokenLayout) -> Iterator[tuple[Path, str]]:
    for file in files:
        try:
            adapter = read_adapter(file)
        except LoraTokenizerError as error:
            yield file, str(error)
            continue
        try:
            layout.encode(adapter)
        except LoraTokenizerError as error:
            yield file, f"it differs from {files[0]}, the first checkpoint: {error}"


def _refuse_or_skip(file: Path, problem: str, data: DataConfig) -> None:
    if not data.skip_unreadable:
        raise LoragenTrainError(
            f"The checkpoint {file} cannot be used: {problem}; mend or remove it, or set data.skip_unreadable to true."
        )
    logger.warning("Left out the checkpoint %s: %s", file, problem)


def _tokenize(store: TokenStore, files: list[Path], layout: TokenLayout) -> TokenSet:
    with ProgressBar("tokenize", total=len(files), unit="checkpoint") as bar:
        return store.get(files, layout, on_progress=lambda *_: bar.advance())


def _statistics(tokens: TokenSet, cache_dir: Path) -> TokenStats:
    """Statistics of a set, kept beside it: the set's name is a hash over its content."""
    file = cache_dir / "statistics" / f"{tokens.path.stem}.safetensors"
    if file.is_file():
        try:
            return _in_memory(TokenStats.load(file))
        except LoraTokenizerError as error:
            logger.warning("Making the statistics in the cache again: %s", error)
    stats = TokenStats.from_tokens(tokens.read(index) for index in range(len(tokens)))
    file.parent.mkdir(parents=True, exist_ok=True)
    stats.save(file)
    return stats


def _in_memory(stats: TokenStats) -> TokenStats:
    """A copy: what is mapped from a file that somebody cuts short would end the process."""
    return replace(stats, mean=stats.mean.clone(), std=stats.std.clone())
