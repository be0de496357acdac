"""Reads the tasks of lm-evaluation-harness: each document's text is a prompt, and its target the response."""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from loragen_infer.words import nearest

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.hub import first_line, quiet, unreachable

__all__ = ["read_harness_task"]

# What documents are for, in the order in which they are looked for.
_ROLES = ("training", "validation", "test")


def read_harness_task(name: str, split: str, *, need_target: bool) -> Iterator[tuple[str, str]]:
    """Return prompt and response of each document of the task ``name``, or of the task in a YAML file.

    The split ``train`` is the documents to train with, or where there are none those to validate, else to test with;
    others are called as the task calls them. Without ``need_target`` a response may be empty.
    """
    with quiet():
        task = _load(name)
        documents = _documents(task, name, split)
    return _pairs(name, task, documents, need_target=need_target)


def _pairs(name: str, task: Any, documents: Iterable[Any], *, need_target: bool) -> Iterator[tuple[str, str]]:
    for number, document in enumerate(documents, start=1):
        try:
            prompt, target = _prompt_and_target(task, document)
        except Exception as error:
            # Templates and functions of whoever wrote the task, which may fail in any way.
            raise LoragenTrainError(f"lm-eval:{name} fails at its document {number}: {first_line(error)}.") from error
        if need_target and not target:
            raise LoragenTrainError(
                f"lm-eval:{name} has no target for its document {number}, so there is nothing to learn; choose another "
                "split or task."
            )
        yield prompt, target


@functools.cache
def _task_manager(*, include_defaults: bool) -> Any:
    # It reads the thousands of tasks that the library brings, which takes seconds.
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=include_defaults)


def _load(name: str) -> Any:
    path = Path(name).expanduser()
    is_file = path.suffix in (".yaml", ".yml")
    manager = _task_manager(include_defaults=not is_file)
    if is_file and not path.is_file():
        raise LoragenTrainError(f"The file of lm-eval:{name} does not exist; give the YAML file of a task, or a name.")
    if not is_file:
        _check_name(manager, name)
    try:
        # The library fails at the file of a group, and says nothing of groups.
        is_group = is_file and re.search(r"^group\s*:", path.read_text(encoding="utf-8"), re.MULTILINE)
        tasks = [] if is_group else list(manager.load(str(path) if is_file else name)["tasks"].values())
    except ConnectionError as error:
        raise unreachable(f"The data set of lm-eval:{name} is not") from error
    except Exception as error:
        raise LoragenTrainError(f"lm-eval:{name} cannot be loaded: {first_line(error)}.") from error
    if not tasks:
        raise _group_error(name)
    if tasks[0].OUTPUT_TYPE == "loglikelihood_rolling" or getattr(tasks[0], "MULTIMODAL", False):
        raise LoragenTrainError(
            f"lm-eval:{name} is of whole texts, images or sound, not of prompts with responses; choose another task."
        )
    return tasks[0]


def _check_name(manager: Any, name: str) -> None:
    tasks = manager.all_subtasks
    if name in tasks:
        return
    if name in manager.all_tasks:
        raise _group_error(name, next((task for task in tasks if task.startswith(f"{name}_")), None))
    raise LoragenTrainError(f"lm-eval has no task {name!r}{nearest(name, tasks)}.")


def _group_error(name: str, member: str | None = None) -> LoragenTrainError:
    such_as = "" if member is None else f", such as {member!r}"
    return LoragenTrainError(
        f"lm-eval:{name} is a group of tasks, but a source is one; name one of its tasks{such_as}."
    )


def _documents(task: Any, name: str, split: str) -> Iterable[Any]:
    splits: dict[str, str] = {}
    for role in _ROLES:
        if getattr(task, f"has_{role}_docs")():
            splits.setdefault(getattr(task.config, f"{role}_split", None) or role, role)
    if split != "train" and split not in splits:
        raise LoragenTrainError(f"lm-eval:{name} has no split {split!r}; it has {', '.join(splits)}.")
    role = next(iter(splits.values())) if split == "train" else splits[split]
    try:
        documents: Iterable[Any] = getattr(task, f"{role}_docs")()
    except Exception as error:
        raise LoragenTrainError(f"The documents of lm-eval:{name} cannot be read: {first_line(error)}.") from error
    return documents


def _prompt_and_target(task: Any, document: Any) -> tuple[str, str]:
    has_choices = getattr(task.config, "doc_to_choice", None) is not None
    choices = task.doc_to_choice(document) if has_choices else []
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    # Of several right answers the first one, as the harness does in its solved examples.
    if isinstance(target, list):
        target = target[0] if target else None
    prompt, response = (_chosen(value, choices) for value in (text, target))
    return prompt, response


def _chosen(value: Any, choices: list[str]) -> str:
    """Return the choice that ``value`` numbers, or ``value`` as text; of a hidden label (-1, None) nothing."""
    if choices and isinstance(value, int):
        return choices[value].strip() if 0 <= value < len(choices) else ""
    return "" if value is None else str(value).strip()
