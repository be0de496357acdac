"""What a training may look at of the tasks that are held out: prompts without answers, and test samples to score.

The draws hang on the task alone, not on a training's seed, so that trainings can be compared.
"""

import logging
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from loragen_infer.samples import Example, prompt_hash, read_examples
from loragen_infer.words import counted
from loragen_infer.zoo import ZooManifest, ZooTask

from loragen_train.configs.fit import DataConfig

__all__ = ["HeldOutTask", "base_model_of", "read_held_out"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOutTask:
    """A task of which training sees nothing, to judge a generator by."""

    name: str
    """Name of the task."""
    prompts: list[str]
    """The prompts to generate its adapter from; none is one of a test sample."""
    tests: list[Example]
    """The samples to score the adapter with."""


def read_held_out(
    manifest: ZooManifest, data: DataConfig, *, max_samples: int, test_hashes: Collection[str], seen: Collection[str]
) -> list[HeldOutTask]:
    """Return the held-out tasks of ``manifest`` that have prompts and test samples; the others are named in a warning.

    Args:
        manifest: The zoo.
        data: Says how many prompts make a condition, and how many samples are joined to one.
        max_samples: Most test samples of a task.
        test_hashes: Hashes of the samples that are in no prompt.
        seen: Hashes of the samples of the training tasks; a test sample that one of them has too is left out.

    Raises:
        LoragenInferError: A file of samples cannot be read, or is not the one that the zoo describes.
    """
    found, left_out = [], {}
    for task in manifest.held_out_tasks:
        prompts = _prompts(manifest, task, data, test_hashes)
        if task.test is None or not prompts:
            left_out[task.name] = "no test samples" if task.test is None else "no prompts beside its test samples"
            continue
        tests = [test for test in read_examples(manifest.samples(task.test)) if prompt_hash(test.prompt) not in seen]
        if not tests:
            left_out[task.name] = "no test samples that no training task has"
            continue
        tests = _draw(task).sample(tests, k=min(len(tests), max_samples))
        found.append(HeldOutTask(name=task.name, prompts=prompts, tests=tests))
    if left_out:
        named = ", ".join(f"{name} ({reason})" for name, reason in left_out.items())
        logger.warning("Cannot watch %s: %s.", counted(len(left_out), "held-out task"), named)
    return found


def base_model_of(manifest: ZooManifest) -> str:
    """Return the folder in which the zoo has its base model unpacked, or else what it calls the model."""
    unpacked = None if manifest.base_model_path is None else manifest.path(manifest.base_model_path)
    return str(unpacked) if unpacked is not None and unpacked.is_dir() else manifest.base_model


def _prompts(manifest: ZooManifest, task: ZooTask, data: DataConfig, test_hashes: Collection[str]) -> list[str]:
    """The prompts of one condition, each of as many samples as those of training."""
    if task.prompts is None:
        return []
    rows = read_examples(Path(manifest.samples(task.prompts)), need_response=False)
    different = {prompt_hash(row.prompt): row.prompt for row in rows}
    prompts = [text for digest, text in different.items() if digest not in test_hashes]
    per_prompt = 1 if data.samples_per_prompt == "auto" else data.samples_per_prompt
    drawn = _draw(task).sample(prompts, k=min(len(prompts), per_prompt * data.prompts_per_condition))
    return ["\n\n".join(drawn[start : start + per_prompt]) for start in range(0, len(drawn), per_prompt)]


def _draw(task: ZooTask) -> random.Random:
    return random.Random(f"held out/{task.name}")
