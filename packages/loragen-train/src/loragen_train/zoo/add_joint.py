"""Gives a zoo that is there its joint adapter: one of adapters from elsewhere, or one that was collected without."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import locked
from loragen_infer.words import counted
from loragen_infer.zoo import SampleFile, ZooManifest, ZooTask

from loragen_train.configs.collect import CollectConfig, CollectTask, LoraSettings
from loragen_train.configs.joint import JointConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo.frozen import FrozenModel, memory_named
from loragen_train.zoo.groups import train_group
from loragen_train.zoo.initial import load_frozen
from loragen_train.zoo.items import AdapterTask, tokenize_task
from loragen_train.zoo.joint import make_joint
from loragen_train.zoo.manifest import note_joint
from loragen_train.zoo.process import fabric_of_process

__all__ = ["add_joint"]

logger = logging.getLogger(__name__)

_PLAIN = ("r", "lora_alpha", "lora_dropout", "target_modules")


def add_joint(config: JointConfig) -> Path:
    """Train the joint adapter of a zoo, note it in ``zoo.json``, and return its folder.

    A training that was interrupted goes on after its last checkpoint; a joint adapter that is there is left alone.

    Raises:
        LoragenTrainError: The zoo's adapters are not of plain LoRA, no task has samples with responses, or the training
            diverged.
        LoragenInferError: There is no zoo, the base model cannot be read, the folder cannot be written to, or another
            process is at it.
    """
    manifest = ZooManifest.read(config.zoo)
    folder = manifest.folder / "joint"
    if manifest.joint is not None and manifest.path(manifest.joint).parent != folder:
        raise LoragenTrainError(
            f"{manifest.folder} has a joint adapter elsewhere, {manifest.joint}; take it out of zoo.json first."
        )
    taken = f"Another process is training the joint adapter of {manifest.folder}; wait for it."
    with locked(manifest.folder / ".locks", taken, name=".joint.lock"):
        if folder.is_dir():
            logger.info("There already: %s. Remove it, and joint_folds, to have another.", folder)
        else:
            _train(manifest, config)
        with locked(manifest.folder, None):
            note_joint(manifest.folder)
    return folder


def _train(manifest: ZooManifest, config: JointConfig) -> None:
    described = _as_collected(manifest, config)
    fabric = fabric_of_process()
    frozen = load_frozen(described, manifest.folder, fabric)
    ready, left_out = list[AdapterTask](), dict[str, str]()
    for task in described.tasks:
        try:
            ready.append(tokenize_task(task, described, manifest.folder, frozen.tokenizer))
        except (LoragenTrainError, LoragenInferError) as error:
            left_out[task.name] = str(error)
            logger.warning("The joint adapter is trained without %s: %s", task.name, error)
    if not ready:
        problem = next(iter(left_out.values()))
        raise LoragenTrainError(f"No task of {manifest.folder} has samples to learn from; the first: {problem}")
    trained_on = replace(described, tasks=[task for task in described.tasks if task.name not in left_out])
    make_joint(ready, trained_on, manifest.folder, partial(_train_folds, trained_on, frozen, fabric))


def _train_folds(
    config: CollectConfig, frozen: FrozenModel, fabric: Fabric, folds: Sequence[AdapterTask], num_steps: int
) -> None:
    names = ", ".join(counted(len(fold.decided_by["settings"]["tasks"]), "task") for fold in folds)
    logger.info("Training the joint adapter in %d steps each: %s.", num_steps, names)
    with memory_named(frozen):
        failures = train_group(folds, config, Path(config.output_dir), frozen, fabric, num_steps=num_steps)
    if failures:
        raise LoragenTrainError(next(iter(failures.values())))


def _as_collected(manifest: ZooManifest, config: JointConfig) -> CollectConfig:
    """Return what would have collected the training tasks of a zoo, as tasks that lend their samples only."""
    tasks = [
        _described(manifest, task, task.prompts)
        for task in manifest.tasks
        if not task.held_out and task.prompts is not None
    ]
    if not tasks:
        raise LoragenTrainError(f"{manifest.folder} has no training task with samples.")
    return CollectConfig(
        base_model=config.base_model or manifest.base_model,
        tasks=tasks,
        output_dir=str(manifest.folder),
        lora=_lora_of(manifest),
        training=config.training,
        seed=config.seed,
        joint=True,
        joint_steps=config.steps,
        joint_folds=config.folds,
    )


def _described(manifest: ZooManifest, task: ZooTask, prompts: SampleFile) -> CollectTask:
    if prompts.path != f"train/{task.name}.jsonl":
        raise LoragenTrainError(
            f"The samples of {task.name} lie in {prompts.path}, and not in {manifest.folder}/train, where collect "
            "and import write them; make the zoo with one of these."
        )
    manifest.samples(prompts)  # refuses others than the zoo describes, which fit would refuse after the training
    return CollectTask(name=task.name, source=task.sources or [prompts.path], own_adapter=False)


def _lora_of(manifest: ZooManifest) -> LoraSettings:
    settings: dict[str, Any] = dict(manifest.lora)
    plain = {key: settings.pop(key) for key in _PLAIN if key in settings}
    further = [key for key, value in settings.items() if value]
    rank, alpha, modules = plain.get("r"), plain.get("lora_alpha"), plain.get("target_modules")
    has_all = isinstance(rank, int) and isinstance(modules, list)
    if further or not has_all or not isinstance(alpha, int | float) or alpha % 1:
        what = ", ".join(further) or "no rank, whole alpha and list of target modules"
        raise LoragenTrainError(
            f"The adapters of {manifest.folder} have {what}, and a joint adapter is trained for plain LoRA only."
        )
    return LoraSettings(**{**plain, "lora_alpha": int(alpha)})
