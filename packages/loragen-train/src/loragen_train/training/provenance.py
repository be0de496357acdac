"""What data a training is of, as hashes; decides with which other data it may be resumed.

Statistics, start and memory of a network are of certain tasks and adapters, and go with its weights; other prompts and
samples are only seen from then on.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.table import TaskPrompts
from loragen_train.zoo.tokens import Zoo

__all__ = ["check_same_adapters", "check_same_prompts", "hash_tasks"]

logger = logging.getLogger(__name__)


def hash_tasks(zoo: Zoo, prompts: TaskPrompts, *, with_samples: bool) -> dict[str, dict[str, str]]:
    """Return SHA-256 hashes of what each task brings, by task, in their order.

    Args:
        zoo: The adapters, ``checkpoints`` of the tasks that have any.
        prompts: The ``prompts``, and the ``samples`` of tasks that have responses.
        with_samples: Whether the training sees responses.
    """
    tasks = {}
    for task in prompts.train:
        tasks[task] = {"prompts": prompts.sha256(task)}
        if contents := zoo.content_hashes(task):
            tasks[task]["checkpoints"] = hashlib.sha256("\n".join(contents).encode()).hexdigest()
        if with_samples and task in prompts.train_samples:
            tasks[task]["samples"] = prompts.samples_sha256(task)
    return tasks


def check_same_adapters(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a training with other tasks, adapters or layout than those that its weights are of.

    Args:
        before: The provenance that was recorded; what older experiments did not record is taken to be the same.
        now: ``layout`` and ``tasks`` of the data that are there now.

    Raises:
        LoragenTrainError: They differ.
    """
    changes = []
    if before.get("layout", now["layout"]) != now["layout"]:
        changes.append("the layout of the adapters is another")
    then, tasks = before.get("tasks") or now["tasks"], now["tasks"]
    if added := [task for task in tasks if task not in then]:
        changes.append(f"new: {', '.join(added)}")
    if gone := [task for task in then if task not in tasks]:
        changes.append(f"gone: {', '.join(gone)}")
    if others := _changed(then, tasks, "checkpoints"):
        changes.append(f"with other adapters: {', '.join(others)}")
    if not changes and list(then) != list(tasks):
        changes.append("they are in another order")
    if changes:
        raise LoragenTrainError(
            f"The training to resume was begun with other tasks or adapters ({'; '.join(changes)}); put those back, or "
            "begin anew without --resume."
        )


def check_same_prompts(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, refuse: bool) -> None:
    """Refuse, or warn of, prompts and samples that are others than those that the training in ``folder`` began with,
    those of the held-out tasks that are watched among them.

    Args:
        before: The provenance that was recorded there.
        now: That of the data that are there now.
        folder: The experiment.
        refuse: False: it is a warning.

    Raises:
        LoragenTrainError: They differ and ``refuse`` is true.
    """
    then, tasks = before.get("tasks") or {}, now["tasks"]
    changes = [
        f"other {kind} of {', '.join(others)}"
        for kind in ("prompts", "samples")
        if (others := _changed(then, tasks, kind))
    ]
    if "watched" in before and before["watched"] != now.get("watched"):
        changes.append("other held-out tasks to choose the best weights by, or other prompts or test samples of them")
    if changes and refuse:
        raise LoragenTrainError(
            f"{folder} was begun with {' and '.join(changes)}. Continue it all the same with --resume {folder}, or "
            "begin anew without --resume."
        )
    for change in changes:
        logger.warning("The training that is resumed was begun with %s.", change)


def _changed(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]], kind: str) -> list[str]:
    """The tasks of both of which that hash is another."""
    # A record may be older than the hash, and another objective may not see what it is of.
    if not all(any(kind in hashes for hashes in side.values()) for side in (before, now)):
        return []
    return [task for task in now if task in before and before[task].get(kind) != now[task].get(kind)]
