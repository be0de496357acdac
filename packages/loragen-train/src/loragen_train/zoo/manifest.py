"""Writes ``zoo.json`` of a zoo that is being collected, from what lies in its folder."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loragen_infer.zoo import MANIFEST_NAME, JointFold, SampleFile, TaskQuality, ZooManifest, ZooTask, path_in_zoo

from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.zoo.records import num_folds_of_joint, read_record, samples_of_joint, tasks_of_joint

__all__ = ["checkpoints_of", "held_out_of_joint", "note_joint", "write_manifest"]


def write_manifest(config: CollectConfig, output_dir: Path, failures: Mapping[str, str]) -> ZooManifest:
    """Write what is there now, and why tasks named in ``failures`` have no adapter; hold the zoo's lock meanwhile.

    What an earlier or another process noted of tasks that ``config`` or ``failures`` do not name stays.
    """
    known: dict[str, ZooTask] = {}
    if (output_dir / MANIFEST_NAME).is_file():
        known = {task.name: task for task in ZooManifest.read(output_dir).tasks}
    described = {}
    for task in config.tasks:
        found = _describe(task, output_dir)
        is_whole = found.adapters if task.wants_adapter else found.prompts is not None
        noted = None if is_whole or task.name not in known else known[task.name].failure
        described[task.name] = replace(found, failure=None if found.adapters else failures.get(task.name, noted))
    tasks = list({**known, **described}.values())
    manifest = ZooManifest(
        base_model=config.base_model,
        base_model_path=_base_model_path(output_dir),
        lora=asdict(config.lora),
        tasks=tasks,
        **_describe_joint(output_dir, tasks),
        folder=output_dir,
    )
    manifest.write()
    return manifest


def note_joint(output_dir: Path) -> ZooManifest:
    """Write the joint adapter that is there into ``zoo.json``, and leave the rest; hold the zoo's lock meanwhile."""
    manifest = ZooManifest.read(output_dir)
    base_model_path = manifest.base_model_path or _base_model_path(output_dir)
    manifest = replace(manifest, base_model_path=base_model_path, **_describe_joint(output_dir, manifest.tasks))
    manifest.write()
    return manifest


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the ``checkpoint-<step>`` folders in ``folder``, the earliest first."""
    steps = {found: found.name.removeprefix("checkpoint-") for found in folder.glob("checkpoint-*")}
    return sorted((found for found, step in steps.items() if step.isdecimal()), key=lambda found: int(steps[found]))


def _base_model_path(output_dir: Path) -> str | None:
    return "base_model" if (output_dir / "base_model").is_dir() else None


def held_out_of_joint(output_dir: Path, tasks: Iterable[ZooTask]) -> list[str]:
    """Return the names of those tasks that the joint adapter was trained on, but that are held out by now."""
    samples = samples_of_joint(output_dir / "joint")
    return [task.name for task in tasks if task.held_out and task.name in samples]


def _describe_joint(output_dir: Path, tasks: Iterable[ZooTask]) -> dict[str, Any]:
    joint = [] if held_out_of_joint(output_dir, tasks) else checkpoints_of(output_dir / "joint")
    return {
        "joint": path_in_zoo(joint[-1], output_dir) if joint else None,
        "joint_folds": _describe_folds(output_dir) if joint else [],
    }


def _describe_folds(output_dir: Path) -> list[JointFold]:
    """The folds that the joint adapter is the mean of; none where one is gone, since all are needed."""
    number = num_folds_of_joint(output_dir / "joint")
    folders = [output_dir / "joint_folds" / str(fold + 1) for fold in range(number)] if number > 1 else []
    if not all(folder.is_dir() for folder in folders):
        return []
    return [
        JointFold(adapter=path_in_zoo(checkpoints_of(folder)[-1], output_dir), tasks=tasks_of_joint(folder))
        for folder in folders
    ]


def _describe(task: CollectTask, output_dir: Path) -> ZooTask:
    folder = output_dir / "adapters" / task.name
    checkpoints = checkpoints_of(folder) if task.wants_adapter else []
    quality = read_record(folder / "training.json").get("quality") if checkpoints else None
    prompts, test = (output_dir / part / f"{task.name}.jsonl" for part in ("train", "test"))
    return ZooTask(
        name=task.name,
        sources=task.sources,
        held_out=task.held_out,
        prompts=SampleFile.of(prompts, output_dir) if prompts.is_file() else None,
        test=SampleFile.of(test, output_dir) if test.is_file() else None,
        adapters=[path_in_zoo(checkpoint, output_dir) for checkpoint in checkpoints],
        quality=None if quality is None else TaskQuality(**quality),
    )
