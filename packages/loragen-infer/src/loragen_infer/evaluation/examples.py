"""What a task is evaluated with: prompts to generate from, test examples, and solved examples to show."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.config import SHOWN_ROWS, EvaluateConfig, EvaluateTask
from loragen_infer.samples import Example, example_of, prompt_hash, read_jsonl

__all__ = ["TaskInputs", "TestExample", "read_inputs", "read_task_prompts", "read_test_examples"]


@dataclass(frozen=True, kw_only=True)
class TestExample(Example):
    """An example to score a model on."""

    __test__ = False  # pytest takes a class of this name for a test

    choices: tuple[str, ...] = ()
    """Different answers, the response among them, to compare by likelihood; empty for a task without choices."""

    @property
    def answers(self) -> list[Example]:
        """The example with its response, and then with each of the other choices."""
        others = [choice for choice in self.choices if choice != self.response]
        return [Example(prompt=self.prompt, response=text) for text in (self.response, *others)]


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """What one task is evaluated with: prompts to generate from, examples to score, and solved ones to show."""

    task: EvaluateTask
    prompts: list[str]
    examples: list[TestExample]
    shots: list[Example]
    num_seen: int = 0
    """How many further examples there are that were trained on, and so are not scored."""


def read_inputs(
    task: EvaluateTask, config: EvaluateConfig, *, shown: Collection[str] = (), seen: Collection[str] = ()
) -> TaskInputs:
    """Return all that ``task`` is evaluated with; what is shown with its response must not be tested.

    Args:
        task: The task; where it has ``unseen_prompts``, its examples may turn out to be none.
        config: The evaluation.
        shown: Hashes of what the generator was shown in training, which such a task does not generate from.
        seen: Hashes of all that was trained on, which such a task is not tested on.

    Raises:
        LoragenInferError: A file cannot be read, has too few samples, or tests what is shown.
    """
    prompts = read_task_prompts(task.name, Path(task.prompts))
    examples = read_test_examples(task)
    num_examples = len(examples)
    if task.unseen_prompts:
        prompts = [prompt for prompt in prompts if prompt_hash(prompt) not in shown]
        examples = [example for example in examples if prompt_hash(example.prompt) not in seen]
        if not prompts:
            raise LoragenInferError(
                f"{task.prompts}: the generator was trained on every prompt of the task {task.name!r}; name a file "
                "with others."
            )
    num_seen = num_examples - len(examples)
    examples = examples[: config.num_examples]
    return TaskInputs(
        task=task,
        prompts=prompts[: config.num_prompts],
        examples=examples,
        shots=_read_shots(task, config, examples),
        num_seen=num_seen,
    )


def _read_shots(task: EvaluateTask, config: EvaluateConfig, tests: Iterable[Example]) -> list[Example]:
    """The examples to show, none where no row does; refused if one of ``tests`` is among them."""
    if task.shots is None or not set(SHOWN_ROWS) & set(config.wanted_rows):
        return []
    shots = [example_of(row, where) for where, row in _rows_of(task.name, Path(task.shots), "examples")]
    shots = shots[: config.num_shots]
    if len(shots) < config.num_shots:
        raise LoragenInferError(
            f"{task.shots} has {len(shots)} of the {config.num_shots} examples to show; lower num_shots."
        )
    tested = {prompt_hash(example.prompt) for example in tests}
    if shown := next((shot.prompt for shot in shots if prompt_hash(shot.prompt) in tested), None):
        raise LoragenInferError(
            f"{task.shots} would show {shown[:60]!r} with its response, but the task {task.name!r} is tested on it; "
            "name a file of other examples under shots."
        )
    return shots


def read_task_prompts(name: str, path: Path) -> list[str]:
    """Return the prompts of a file, or of one with a ``task`` column those of the task called ``name``."""
    return [example_of(row, where, need_response=False).prompt for where, row in _rows_of(name, path, "prompts")]


def read_test_examples(task: EvaluateTask) -> list[TestExample]:
    """Return the examples that ``task`` is tested on, of a file with a ``task`` column its own; all of them have
    choices, or none has."""
    path = Path(task.test)
    found: dict[str, TestExample] = {}
    for where, row in _rows_of(task.name, path, "test examples"):
        example = example_of(row, where)
        choices = _choices(task, row, example.prompt, where)
        if choices and example.response not in choices:
            raise LoragenInferError(
                f"{where}: the response {example.response!r} is none of the choices "
                f"{', '.join(map(repr, choices))}; mend the row, or the choices of the task {task.name!r}."
            )
        found[where] = TestExample(prompt=example.prompt, response=example.response, choices=choices)
    without = [where for where, example in found.items() if not example.choices]
    if 0 < len(without) < len(found):
        raise LoragenInferError(f"{without[0]} has no choices, but others have; give all rows some or none.")
    return list(found.values())


def _rows_of(name: str, path: Path, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file, or of one with a ``task`` column those of the task called ``name``, and where each stands."""
    rows = [(f"{path}, row {number}", row) for number, row in enumerate(read_jsonl(path), start=1)]
    if any("task" in row for _, row in rows):
        rows = [(where, row) for where, row in rows if row.get("task") == name]
    if not rows:
        raise LoragenInferError(f"{path} has no {what} of the task {name!r}; name another file for it.")
    return rows


def _choices(task: EvaluateTask, row: dict[str, Any], prompt: str, where: str) -> tuple[str, ...]:
    listed: Any
    if task.choices is not None:
        listed, source = task.choices, f"choices of the task {task.name!r} holds"
    elif task.choice_pattern is not None:
        matches = re.findall(task.choice_pattern, prompt, flags=re.MULTILINE)
        listed = [task.choice_format.replace("{}", match) for match in dict.fromkeys(matches)]
        source = f"choice_pattern {task.choice_pattern!r} finds"
    elif row.get("choices") is None:
        return ()
    else:
        listed, source = row["choices"], "choices holds"
    if not isinstance(listed, list) or not all(isinstance(text, str) and text.strip() for text in listed):
        raise LoragenInferError(f"{where}: {source} {listed!r}, but must be a list of texts.")
    if len(set(listed)) < max(2, len(listed)):
        raise LoragenInferError(f"{where}: {source} {listed!r}, but there must be two or more, all different.")
    return tuple(listed)
