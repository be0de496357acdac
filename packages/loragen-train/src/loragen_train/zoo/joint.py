"""The joint adapter of a zoo: one for all training tasks together, as a whole or as the mean of its folds.

With folds, every training task has an adapter that has seen nothing of it, the mean of the other folds' (cross-fitting,
`Chernozhukov et al. 2018 <https://arxiv.org/abs/1608.00060>`_). All grow from one initialisation, so A is averaged with
A and B with B, as weights of models fine-tuned from one start are (`Wortsman et al. 2022
<https://arxiv.org/abs/2203.05482>`_).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lora_tokenizer import LoraAdapter, read_adapter
from lora_tokenizer.io.writing import fill_folder
from loragen_infer.files import atomic_folder, write_json

from loragen_train.configs.collect import ENOUGH_FOR_JOINT, CollectConfig, CollectTask
from loragen_train.zoo import records
from loragen_train.zoo.items import AdapterTask, hash_samples
from loragen_train.zoo.manifest import checkpoints_of

__all__ = ["check_joint", "joint_tasks", "make_joint", "mean_adapter", "num_joint_steps"]

# Of more, each sees too few tasks (docs/network.md).
_FOLDS = 2


def make_joint(
    tasks: Sequence[AdapterTask],
    config: CollectConfig,
    output_dir: Path,
    train: Callable[[Sequence[AdapterTask], int], object],
) -> None:
    """Make what is missing of the joint adapter of all training tasks of ``config``, which ``tasks`` are.

    Args:
        tasks: The tasks with their samples.
        config: The zoo.
        output_dir: Its folder.
        train: Trains adapters at once, for so many steps each, and writes those that come to an end.

    Raises:
        LoragenTrainError: An adapter of a fold that is there was made with other settings or samples.
    """
    folds = joint_tasks(tasks, config, output_dir)
    done = [fold for fold in folds if fold.folder.is_dir()]
    for fold in done:
        records.check_settings(fold.folder / "training.json", fold.decided_by["settings"])
    if len(done) < len(folds):
        train(folds, num_joint_steps(config, len(folds)))
    if len(folds) > 1 and all(fold.folder.is_dir() for fold in folds):
        _write_mean(folds, config, output_dir)


def joint_tasks(tasks: Sequence[AdapterTask], config: CollectConfig, output_dir: Path) -> list[AdapterTask]:
    """Return the trainings of one adapter each on the samples of all ``tasks`` of a fold; of one on those of all."""
    tokenized = {task.name: task for task in tasks}
    settings = _settings(config, output_dir)
    folds = _folds(config.training_tasks, _num_folds(config, output_dir))
    is_whole = len(folds) == 1
    return [
        AdapterTask(
            name="joint" if is_whole else f"joint fold {number}",
            folder=output_dir / "joint" if is_whole else output_dir / "joint_folds" / str(number),
            train=[item for task in fold for item in tokenized[task.name].train],
            test=[],
            decided_by={"settings": {**settings, "tasks": {task.name: settings["tasks"][task.name] for task in fold}}},
        )
        for number, fold in enumerate(folds, start=1)
    ]


def num_joint_steps(config: CollectConfig, num_folds: int) -> int:
    """Return how many optimizer steps each of the folds has."""
    in_all = config.joint_steps or config.training.max_steps * len(config.training_tasks)
    return math.ceil(in_all / num_folds)


def _write_mean(folds: Sequence[AdapterTask], config: CollectConfig, output_dir: Path) -> None:
    """Write the joint adapter that is the mean of those of the folds, all of which are there."""
    last = [checkpoints_of(fold.folder)[-1] for fold in folds]
    mean = mean_adapter([read_adapter(checkpoint) for checkpoint in last])
    with atomic_folder(output_dir / "joint") as part:
        checkpoint = part / last[0].name
        checkpoint.mkdir()
        fill_folder(mean, checkpoint, output_dir / "joint" / checkpoint.name)
        work = _summed([records.read_record(fold.folder / "training.json") for fold in folds])
        write_json(part / "training.json", {"settings": _settings(config, output_dir), "quality": None, **work})


def _summed(records_of_folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the trainings of all folds took together."""
    return {key: sum(record[key] for record in records_of_folds) for key in ("seconds", "cpu_seconds", "num_tokens")}


def mean_adapter(adapters: Sequence[LoraAdapter]) -> LoraAdapter:
    """Return the mean of the A and of the B of adapters of one shape that grew from one initialisation, in float32."""
    tensors = {
        name: torch.stack([adapter.tensors[name].float() for adapter in adapters]).mean(dim=0)
        for name in adapters[0].tensors
    }
    return replace(adapters[0], tensors=tensors)


def check_joint(config: CollectConfig, output_dir: Path) -> None:
    """Raise LoragenTrainError if the joint adapter that is there was made with other settings or samples."""
    # Of one in one piece nothing is noted, as before there were folds.
    wanted = {"joint_folds": None, **_settings(config, output_dir)}
    records.check_settings(output_dir / "joint" / "training.json", wanted)


def _settings(config: CollectConfig, output_dir: Path) -> dict[str, Any]:
    """What decides the weights of the joint adapter: the settings, and hashes of the samples."""
    settings = records.task_settings(config, config.tasks[0])
    del settings["task"]
    if config.joint_steps is not None:
        settings["joint_steps"] = config.joint_steps
    num_folds = _num_folds(config, output_dir)
    # So that a zoo of before there were folds, and a joint adapter begun by then, can be continued.
    if num_folds > 1:
        settings["joint_folds"] = num_folds
    return {**settings, "tasks": {task.name: hash_samples(task, output_dir) for task in config.training_tasks}}


def _num_folds(config: CollectConfig, output_dir: Path) -> int:
    if config.joint_folds != "auto":
        return config.joint_folds
    if (output_dir / "joint").is_dir():
        return records.num_folds_of_joint(output_dir / "joint")
    if (output_dir / "unfinished" / "joint").is_dir():  # begun in one piece
        return 1
    tasks = config.training_tasks
    return min(_FOLDS, len({task.family for task in tasks})) if len(tasks) >= ENOUGH_FOR_JOINT else 1


def _folds(tasks: Sequence[CollectTask], number: int) -> list[list[CollectTask]]:
    """Divide tasks into folds of like size, those of a family together."""
    families: dict[str, list[CollectTask]] = {}
    for task in tasks:
        families.setdefault(task.family, []).append(task)
    folds: list[list[CollectTask]] = [[] for _ in range(number)]
    for family in sorted(families.values(), key=len, reverse=True):
        min(folds, key=len).extend(family)
    return folds
