"""The tasks of a ``zoo.json`` as tasks to evaluate on; decides which count and what each brings along.

A task that is neither held out nor trained on, as one whose adapter failed or gained too little, is left out: it would
count as one never seen, which nobody has set aside for that.
"""

import logging
from dataclasses import replace
from pathlib import Path

from loragen_infer.bundle import TrainingTasks
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.config import SHOWN_ROWS, EvaluateConfig, EvaluateTask
from loragen_infer.samples import prompt_hash, read_examples
from loragen_infer.words import counted
from loragen_infer.zoo import INITIAL_NAME, MANIFEST_NAME, ZooManifest, ZooTask

__all__ = ["hashes_of_joint", "with_tasks_of_zoo"]

logger = logging.getLogger(__name__)


def with_tasks_of_zoo(config: EvaluateConfig, zoo: str, trained: TrainingTasks | None) -> EvaluateConfig:
    """Return ``config`` with the tasks of ``zoo`` listed, and its joint adapter, initialisation and language model
    where it names none.

    Args:
        config: The evaluation.
        zoo: Folder of the ``zoo.json``.
        trained: What the generator was trained on, where that is known.

    Raises:
        LoragenInferError: There is no ``zoo.json``, it is damaged, a file of samples is not the one it describes, or no
            task is left.
    """
    manifest = ZooManifest.read(zoo)
    kinds = {"all": (True, False), "held-out": (True,), "training": (False,)}[config.zoo_tasks]
    asked = [task for task in manifest.tasks if task.held_out in kinds]
    left_out = {task.name: reason for task in asked if (reason := _why_left_out(task, trained)) is not None}
    chosen = [task for task in asked if task.name not in left_out]
    if left_out:
        named = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
        logger.warning("Left out %s of the zoo: %s.", counted(len(left_out), "task"), named)
    if not chosen:
        raise LoragenInferError(
            f"{manifest.folder / MANIFEST_NAME} has no task to evaluate on, of {counted(len(asked), 'task')} "
            f"(zoo_tasks={config.zoo_tasks}); give a zoo that the generator was trained on, or list tasks under tasks."
        )
    base_model = None if manifest.base_model_path is None else manifest.path(manifest.base_model_path)
    has_base_model = base_model is not None and base_model.is_dir()
    joint = None if manifest.joint is None else str(manifest.path(manifest.joint))
    initial = manifest.folder / INITIAL_NAME
    return replace(
        config,
        zoo=None,
        tasks=[_listed(manifest, task, config) for task in chosen],
        joint_adapter=config.joint_adapter or joint,
        initial_adapter=config.initial_adapter or (str(initial) if initial.is_dir() else None),
        base_model=config.base_model or (str(base_model) if has_base_model else manifest.base_model),
    )


def hashes_of_joint(config: EvaluateConfig, zoo: str) -> frozenset[str]:
    """Return the hashes of the samples that the joint adapter of ``zoo`` may have been trained on, if it gets a row.

    Raises:
        LoragenInferError: A file of samples is not the one that the ``zoo.json`` describes.
    """
    manifest = ZooManifest.read(zoo)
    if "joint" not in config.wanted_rows or manifest.joint is None:
        return frozenset()
    joint = manifest.path(manifest.joint)
    own = joint.resolve(), joint.resolve().parent  # the folder of a joint adapter stands for it
    if Path(config.joint_adapter or joint).resolve() not in own:  # one of which nothing is known
        return frozenset()
    learned = [task.prompts for task in manifest.tasks if not task.held_out and task.prompts is not None]
    files = [manifest.samples(prompts) for prompts in learned]
    return frozenset(prompt_hash(row.prompt) for file in files for row in read_examples(file, need_response=False))


def _why_left_out(task: ZooTask, trained: TrainingTasks | None) -> str | None:
    if task.test is None or task.prompts is None:
        return f"it has no {'test examples' if task.test is None else 'prompts'}"
    if task.held_out or (task.adapters if trained is None else task.name in trained.names):
        return None
    return "neither held out nor trained on"


def _listed(manifest: ZooManifest, task: ZooTask, config: EvaluateConfig) -> EvaluateTask:
    assert task.test is not None, "such a task is left out"  # noqa: S101
    assert task.prompts is not None, "as above"  # noqa: S101
    prompts = manifest.samples(task.prompts)
    needs_shots = bool(set(SHOWN_ROWS) & set(config.wanted_rows))
    return EvaluateTask(
        name=task.name,
        test=str(manifest.samples(task.test)),
        prompts=str(prompts),
        unseen_prompts=True,
        adapter=str(manifest.path(task.adapters[-1])) if task.adapters else None,
        shots=str(prompts) if needs_shots and _can_be_shown(prompts, config.num_shots) else None,
        # What is not held out was chosen because the generator was trained on it.
        held_out=True if task.held_out else None,
    )


def _can_be_shown(samples: Path, num_shots: int) -> bool:
    """Whether there are enough samples, all with responses."""
    examples = read_examples(samples, need_response=False)
    return len(examples) >= num_shots and all(example.response.strip() for example in examples)
