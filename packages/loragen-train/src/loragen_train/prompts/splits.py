"""The samples of a task: read from all of its sources, shuffled, and split into a part to train on and one to test.

A prompt is in one of the two parts only, also where several sources have it.
"""

import logging
import random
from collections.abc import Iterable, Iterator

from loragen_infer import LoragenInferError
from loragen_infer.samples import Example, prompt_hash
from loragen_infer.words import counted

from loragen_train.configs.collect import CollectTask
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import unused_samples
from loragen_train.prompts.sources import Source, read_samples

__all__ = ["TaskSamples", "read_all_samples", "read_task_samples"]

logger = logging.getLogger(__name__)

TaskSamples = tuple[list[Example], list[Example]]
"""The samples to train on, and those to test with."""


def read_all_samples(tasks: Iterable[CollectTask], *, seed: int) -> Iterator[tuple[CollectTask, TaskSamples | str]]:
    """Yield every task with its samples, or with the sentence that says why it has none; one failure ends nothing."""
    for task in tasks:
        try:
            yield task, read_task_samples(task, seed=seed)
        except (LoragenTrainError, LoragenInferError) as error:
            yield task, str(error)


def read_task_samples(task: CollectTask, *, seed: int) -> TaskSamples:
    """Return ``task.num_train`` samples to train on and ``task.num_test`` further ones, shuffled by ``seed``.

    Each source gives an equal share, and the first ones what is left of the division. What an earlier source has given
    is not taken again; the source goes on to its next samples.

    Raises:
        LoragenTrainError: A source cannot be had, or has fewer samples than its share.
        LoragenInferError: A file cannot be read.
    """
    wanted = task.num_train + task.num_test
    if wanted < len(task.sources):
        raise LoragenTrainError(
            f"tasks ({task.name}): {wanted} samples are fewer than the {len(task.sources)} sources; raise num_train or "
            "remove sources."
        )
    rows: list[Example] = []
    num_duplicates = 0
    for position, location in enumerate(task.sources):
        source = Source.of(task.name, location, task)
        share = wanted // len(task.sources) + (position < wanted % len(task.sources))
        taken = {prompt_hash(row.prompt) for row in rows}
        samples = read_samples(source, num_samples=share, seed=seed, purpose="collect", leave_out=taken)
        if len(samples.by_place) < share:
            besides = f" besides {samples.num_left_out} that other sources of the task have" if taken else ""
            raise LoragenTrainError(
                f"{location} has {len(samples.by_place)} different prompts{besides}, fewer than the {share} asked for; "
                "lower num_train or num_test."
            )
        rows += samples.by_place.values()
        # A generator repeats itself by its nature.
        if source.library != "reasoning-gym":
            num_duplicates += samples.num_duplicates + samples.num_left_out
    unused = unused_samples(num_duplicates=num_duplicates)
    logger.info("%s: %s%s.", task.name, counted(len(rows), "sample"), unused)
    # Generators may order their samples by difficulty; a shuffle makes train and test alike.
    random.Random(seed).shuffle(rows)
    return rows[: task.num_train], rows[task.num_train :]
