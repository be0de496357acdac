"""What a training reads: the tasks of a ``zoo.json`` as if each were listed under ``data.tasks``; decides which count.

So there is one way from tasks to prompts and tokens, wherever the tasks are written down.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loragen_infer.samples import read_examples
from loragen_infer.words import counted
from loragen_infer.zoo import MANIFEST_NAME, ZooManifest, ZooTask

from loragen_train.configs.fit import DataConfig, TaskConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import hashes_of, hashes_of_test_examples
from loragen_train.zoo.held_out import base_model_of

__all__ = ["TrainingData", "read_training_data"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The tasks to train on, and what training must not see."""

    data: DataConfig
    """The configuration with all tasks listed, none named by a ``zoo.json``."""
    test_hashes: frozenset[str] = frozenset()
    """Hashes of the test examples of all tasks of the zoo."""
    held_out: list[str] = field(default_factory=list)
    """The tasks of the zoo that are held out."""
    manifest: ZooManifest | None = None
    """The zoo; None where the tasks are listed in the configuration."""

    def adapter_hashes(self) -> dict[str, frozenset[str]]:
        """Return by task with adapters the hashes of the samples that these were trained on: all that it brings.

        Raises:
            LoragenInferError: A file of samples cannot be read.
        """
        return {
            task.name: hashes_of([Path(task.prompts)])
            for task in self.data.tasks
            if task.checkpoint_dir is not None and task.prompts is not None
        }

    @property
    def base_model(self) -> str | None:
        """The base model of the zoo."""
        return None if self.manifest is None else base_model_of(self.manifest)


def read_training_data(data: DataConfig, *, need_adapter: bool = True) -> TrainingData:
    """Return the tasks of ``data``, those of its zoo listed.

    Tasks of the zoo that cannot be trained on, or should not (``data.min_gain``), are named in a warning each kind.

    Args:
        data: The section of the configuration.
        need_adapter: False: a task without an adapter counts, if it has responses.

    Raises:
        LoragenInferError: There is no ``zoo.json``, it is damaged, or a file of samples is not the one it describes.
        LoragenTrainError: No task is left, or one that is listed lacks what is needed.
    """
    if data.zoo is None:
        if need_adapter and (bare := next((task.name for task in data.tasks if task.checkpoint_dir is None), None)):
            raise LoragenTrainError(
                f"data.tasks: {bare!r} has no checkpoint_dir, and no phase of the training can do without; give it "
                "one, or set training.objective to lm."
            )
        return TrainingData(data=data)
    manifest = ZooManifest.read(data.zoo)
    held_out = [task.name for task in manifest.held_out_tasks]
    others = [task for task in manifest.tasks if not task.held_out]
    unusable = {
        task.name: reason for task in others if (reason := _why_unusable(manifest, task, need_adapter)) is not None
    }
    usable = [task for task in others if task.name not in unusable]
    weak = {task.name: reason for task in usable if (reason := _why_weak(task, data.min_gain)) is not None}
    _warn(unusable, "that cannot be trained on")
    _warn(weak, f"whose gain in nats per response token is not above data.min_gain={data.min_gain}")
    if held_out:
        logger.info("Held out: %s.", ", ".join(held_out))
    chosen = [task for task in usable if task.name not in weak]
    if not chosen:
        raise LoragenTrainError(
            f"{manifest.folder / MANIFEST_NAME} has no task to train on: of {counted(len(manifest.tasks), 'task')}, "
            f"{len(held_out)} are held out, {len(unusable)} lack adapters or prompts, and {len(weak)} do not reach "
            "data.min_gain; make a zoo with more, or lower data.min_gain."
        )
    return TrainingData(
        data=replace(
            data,
            zoo=None,
            tasks=[_listed(manifest, task) for task in chosen],
            canonical=manifest.canonical if data.canonical == "auto" else data.canonical,
            samples_per_prompt=1 if data.samples_per_prompt == "auto" else data.samples_per_prompt,
        ),
        test_hashes=hashes_of_test_examples(manifest),
        held_out=held_out,
        manifest=manifest,
    )


def _why_unusable(manifest: ZooManifest, task: ZooTask, need_adapter: bool) -> str | None:
    if task.failure is not None or (need_adapter and not task.adapters):
        return task.failure or "it has no adapter"
    if task.prompts is None:
        return "it has no prompts"
    if not task.adapters:
        samples = read_examples(manifest.samples(task.prompts), need_response=False)
        if not any(sample.response.strip() for sample in samples):
            return "it has neither an adapter nor responses"
    return None


def _why_weak(task: ZooTask, min_gain: float | None) -> str | None:
    if min_gain is None or task.quality is None or task.quality.gain > min_gain:
        return None
    return f"{task.quality.gain:.3g}"


def _warn(left_out: Mapping[str, str], which: str) -> None:
    if left_out:
        named = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
        logger.warning("Left out %s of the zoo %s: %s.", counted(len(left_out), "task"), which, named)


def _listed(manifest: ZooManifest, task: ZooTask) -> TaskConfig:
    assert task.prompts is not None, "such a task is left out"  # noqa: S101
    return TaskConfig(
        name=task.name,
        checkpoint_dir=[str(manifest.path(path)) for path in task.adapters] or None,
        prompts=str(manifest.samples(task.prompts)),
    )
