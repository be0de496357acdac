"""Gives a zoo that is there its joint adapter: one of adapters from elsewhere, or one that was collected without."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, read_adapter
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import locked
from loragen_infer.words import counted
from loragen_infer.zoo import INITIAL_NAME, SampleFile, ZooManifest, ZooTask

from loragen_train.configs.collect import CollectConfig, CollectTask, LoraSettings
from loragen_train.configs.joint import JointConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo import records
from loragen_train.zoo.frozen import FrozenModel, memory_named
from loragen_train.zoo.groups import train_group
from loragen_train.zoo.held_out import base_model_of
from loragen_train.zoo.initial import load_frozen
from loragen_train.zoo.items import AdapterTask, tokenize_task
from loragen_train.zoo.joint import make_joint
from loragen_train.zoo.manifest import checkpoints_of, held_out_of_joint, note_joint
from loragen_train.zoo.process import fabric_of_process

__all__ = ["add_joint"]

logger = logging.getLogger(__name__)

_ANEW = "remove joint and joint_folds, and run it again"
_FROM_THE_START = "remove initial_adapter, base_model.json, joint_folds and unfinished, and run it again"
_PLAIN_ONLY = "it is trained for plain LoRA in all layers of the base model only"
_PLAIN = ("r", "lora_alpha", "lora_dropout", "target_modules")


def add_joint(config: JointConfig) -> Path:
    """Train the joint adapter of a zoo, note it in ``zoo.json``, and return its folder.

    A training that was interrupted goes on after its last checkpoint; a joint adapter that is there is left alone.

    Raises:
        LoragenTrainError: The zoo's adapters are not of plain LoRA, no task has samples with responses, what is there
            of a joint adapter is not of this zoo as it is now, or the training diverged.
        LoragenInferError: There is no zoo, the base model cannot be read, the folder cannot be written to, or another
            process is at it.
    """
    zoo = ZooManifest.read(config.zoo).folder
    taken = f"Another process is training the joint adapter of {zoo}; wait for it."
    with locked(zoo / ".locks", taken, name=".joint.lock"):
        manifest = ZooManifest.read(zoo)
        folder = zoo / "joint"
        if manifest.joint is not None and manifest.path(manifest.joint).parent != folder:
            raise LoragenTrainError(
                f"{zoo} has a joint adapter elsewhere, {manifest.joint}; take it out of zoo.json first."
            )
        if folder.is_dir():
            logger.info("There already: %s. Remove it, and joint_folds, to have another.", folder)
        else:
            _train(manifest, config)
        with locked(zoo, None):
            _check_is_of(ZooManifest.read(zoo), folder)  # which may have been imported anew meanwhile
            note_joint(zoo)
    return folder


def _check_is_of(manifest: ZooManifest, folder: Path) -> None:
    """Refuse a joint adapter of other samples or shapes than the zoo has now, as after another import."""
    checkpoints, samples = checkpoints_of(folder), records.samples_of_joint(folder)
    if not checkpoints:
        raise LoragenTrainError(f"{folder} holds no checkpoint-<step>; remove it to have the joint adapter trained.")
    if held_out := held_out_of_joint(manifest.folder, manifest.tasks):
        raise LoragenTrainError(f"{folder} was trained on {', '.join(held_out)}, which is held out by now; {_ANEW}.")
    for task in manifest.tasks:
        if task.name in samples and (task.prompts is None or task.prompts.sha256 != samples[task.name]):
            raise LoragenTrainError(
                f"{folder} was trained on other samples of {task.name} than {manifest.folder} has now; {_ANEW}."
            )
    try:
        _check_fits(manifest, read_adapter(checkpoints[-1]))
    except LoraTokenizerError as error:
        raise LoragenTrainError(f"{folder} is no adapter of {manifest.folder}: {error}; {_ANEW}.") from error


def _check_fits(manifest: ZooManifest, adapter: LoraAdapter) -> None:
    """Refuse, with a LoraTokenizerError, an adapter of another shape than those of the zoo, which fit would refuse."""
    paths = [path for task in manifest.training_tasks for path in task.adapters]
    if paths:
        known = read_adapter(manifest.path(paths[0]), lora_alpha=manifest.lora.get("lora_alpha")).to(torch.float32)
        TokenLayout.from_adapter(known, max_tokens="auto").encode(adapter.to(torch.float32))


def _train(manifest: ZooManifest, config: JointConfig) -> None:
    described = _as_collected(manifest, config)
    fabric = fabric_of_process()
    # Of an earlier import; of a zoo that was collected it always fits.
    is_old = (manifest.folder / INITIAL_NAME).is_dir()
    way_out = _FROM_THE_START if is_old else _PLAIN_ONLY

    def accept(adapter: LoraAdapter) -> None:
        try:
            _check_fits(manifest, adapter)
        except LoraTokenizerError as error:
            raise LoragenTrainError(
                f"The adapters of {manifest.folder} do not fit what a joint adapter grows from: {error}; {way_out}."
            ) from error

    base_model = config.base_model or base_model_of(manifest)
    frozen = load_frozen(described, manifest.folder, fabric, base_model=base_model, accept=accept)
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
    try:
        make_joint(ready, trained_on, manifest.folder, partial(_train_folds, trained_on, frozen, fabric))
    except records.OtherSettingsError as error:
        # ``collect`` calls the number of steps joint_steps, and has an output_dir.
        difference = error.difference.removeprefix("joint_")
        raise LoragenTrainError(
            f"{error.folder} was made with other settings ({difference}); give these again, or {_ANEW}."
        ) from error


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
        base_model=manifest.base_model,
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
