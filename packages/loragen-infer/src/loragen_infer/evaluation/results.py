"""What an evaluation finds: the scores of each task and group of tasks, with intervals, and what they say of the
generator.

Everything is computed of the scores of single examples; all rows of a task share their resamples, so differences and
shares are paired. Groups weigh their tasks alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loragen_infer.evaluation.bootstrap import Sampled, mean_of, resample_sums
from loragen_infer.evaluation.config import ROWS, EvaluateConfig
from loragen_infer.evaluation.scoring import ExampleScores
from loragen_infer.evaluation.store import Cost

__all__ = ["Evaluation", "GroupResult", "Score", "TaskResult", "Verdict", "summarise", "to_json"]

_GROUPS = {True: "held-out tasks", False: "training tasks", None: "tasks"}
_BASELINES = ("base", "few-shot", "mean", "nearest", "ridge", "joint")
_SCORES = ("nll", "exact_match", "accuracy")
Interval = tuple[float, float]
_Samples = Mapping[str, Mapping[str, Sampled]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one row achieves; intervals are of 95 %."""

    nll: float
    """Mean negative log-likelihood per answer token, in nats."""
    nll_interval: Interval
    exact_match: float
    """Share of examples whose greedy continuation is the response, 0 to 1."""
    exact_match_interval: Interval
    accuracy: float | None
    """Share of examples whose response is the most likely of the choices, 0 to 1; None for tasks without choices."""
    accuracy_interval: Interval | None
    gap_closed: float | None
    """(base − row) / (base − own) in NLL; None where the own adapter is missing or gains nothing beyond doubt."""
    gap_closed_interval: Interval | None
    nll_above_ridge: float | None
    """NLL of this row minus that of the row ridge; below zero is better than ridge."""
    nll_above_ridge_interval: Interval | None
    num_examples: int
    """Number of examples scored."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The rows of one task."""

    task: str
    """Name of the task."""
    held_out: bool | None
    """Whether training saw nothing of it; None where that is not known."""
    wrong_task: str
    """The task whose prompts the control ``wrong prompts`` was given."""
    scores: dict[str, Score]
    """By row."""
    costs: dict[str, Cost]
    """What making the adapter took, for the rows of which it is known."""
    notes: dict[str, str]
    """What else there is to know of a row, such as which task was the nearest."""


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """The means over a group of tasks, of the rows that all of them have."""

    name: str
    """``held-out tasks``, ``training tasks``, or ``tasks`` where it is not known which they are."""
    tasks: list[str]
    """Their names."""
    scores: dict[str, Score]
    """By row."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a paired difference says of the generator on one group of tasks."""

    group: str
    """Name of the group."""
    against: str
    """The row that ``generated`` is compared with."""
    difference: float
    """NLL of ``generated`` minus that of ``against``: below zero is better."""
    interval: Interval
    """Of 95 %, over the examples."""
    sentence: str
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results of one evaluation."""

    tasks: list[TaskResult]
    groups: list[GroupResult]
    verdicts: list[Verdict]
    remarks: list[str]
    """What the evaluation cannot tell, and why."""


@dataclass(frozen=True, kw_only=True)
class ScoredTask:
    """One task's finished rows."""

    task: str
    held_out: bool | None
    wrong_task: str
    rows: Mapping[str, ExampleScores]
    costs: dict[str, Cost]
    notes: dict[str, str]


def summarise(tasks: Sequence[ScoredTask], *, num_resamples: int, seed: int) -> Evaluation:
    """Return the results of the tasks' finished rows."""
    samples = [_sample(task.rows, num_resamples=num_resamples, seed=(seed, index)) for index, task in enumerate(tasks)]
    results = [
        TaskResult(
            task=task.task,
            held_out=task.held_out,
            wrong_task=task.wrong_task,
            scores=_scores(sampled, _num_examples(task)),
            costs=task.costs,
            notes=task.notes,
        )
        for task, sampled in zip(tasks, samples, strict=True)
    ]
    groups, verdicts, remarks = [], [], []
    for held_out, name in _GROUPS.items():
        members = [index for index, task in enumerate(tasks) if task.held_out is held_out]
        if not members:
            continue
        mean = _mean_samples([samples[index] for index in members])
        count = sum(_num_examples(tasks[index]) for index in members)
        names = [tasks[index].task for index in members]
        groups.append(GroupResult(name=name, tasks=names, scores=_scores(mean, count)))
        verdicts += _verdicts(name, names, mean)
        remarks += _remarks(_named(name, names), mean)
    if not any(task.held_out for task in tasks):
        remarks.append("No task is known to be held out, so this says nothing of tasks that training has not seen.")
    elif any(task.held_out is False for task in tasks):
        remarks.append(
            "What the generator is worth shows on held-out tasks; on training tasks it need only remember an adapter."
        )
    return Evaluation(tasks=results, groups=groups, verdicts=verdicts, remarks=remarks)


def to_json(config: EvaluateConfig, evaluation: Evaluation) -> dict[str, Any]:
    """Return the results as plain JSON values, with the configuration that gave them."""
    return {"config": asdict(config), **asdict(evaluation)}


def _num_examples(task: ScoredTask) -> int:
    return next(iter(task.rows.values())).num_examples


def _sample(
    rows: Mapping[str, ExampleScores], *, num_resamples: int, seed: tuple[int, int]
) -> dict[str, dict[str, Sampled]]:
    """By row and score, the values and their resamples."""
    num_tokens = next(iter(rows.values())).num_tokens
    ones = (1,) * len(num_tokens)
    columns: dict[tuple[str, str], Sequence[float]] = {("", "tokens"): num_tokens, ("", "examples"): ones}
    for row, scores in rows.items():
        columns[row, "nll"], columns[row, "exact_match"] = scores.answer_nll, scores.exact
        if scores.correct is not None:
            columns[row, "accuracy"] = scores.correct
    values_nK = np.array(list(columns.values()), dtype=np.float64).T
    sums_RK = resample_sums(values_nK, num_resamples=num_resamples, seed=seed)
    whole = dict(zip(columns, values_nK.sum(axis=0), strict=True))
    drawn = dict(zip(columns, sums_RK.T, strict=True))
    sampled: dict[str, dict[str, Sampled]] = {row: {} for row in rows}
    for row, score in list(columns)[2:]:
        unit = ("", "tokens" if score == "nll" else "examples")
        sampled[row][score] = Sampled(
            value=float(whole[row, score] / whole[unit]), resamples=drawn[row, score] / drawn[unit]
        )
    return sampled


def _mean_samples(tasks: Sequence[_Samples]) -> dict[str, dict[str, Sampled]]:
    """The means over tasks, of rows and scores that all have."""
    mean: dict[str, dict[str, Sampled]] = {}
    for row in ROWS:
        if all(row in task for task in tasks):
            in_all = [score for score in _SCORES if all(score in task[row] for task in tasks)]
            mean[row] = {score: mean_of([task[row][score] for task in tasks]) for score in in_all}
    return mean


def _scores(sampled: _Samples, num_examples: int) -> dict[str, Score]:
    return {row: _score(sampled, row, num_examples) for row in ROWS if row in sampled}


def _score(sampled: _Samples, row: str, num_examples: int) -> Score:
    nll, exact, accuracy = sampled[row]["nll"], sampled[row]["exact_match"], sampled[row].get("accuracy")
    gap = above_ridge = None
    if "base" in sampled and "own" in sampled:
        whole = sampled["base"]["nll"] - sampled["own"]["nll"]
        # A share of what may be nothing means nothing.
        if whole.interval[0] > 0:
            gap = (sampled["base"]["nll"] - nll) / whole
    if "ridge" in sampled:
        above_ridge = nll - sampled["ridge"]["nll"]
    return Score(
        nll=nll.value,
        nll_interval=nll.interval,
        exact_match=exact.value,
        exact_match_interval=exact.interval,
        accuracy=None if accuracy is None else accuracy.value,
        accuracy_interval=None if accuracy is None else accuracy.interval,
        gap_closed=None if gap is None else gap.value,
        gap_closed_interval=None if gap is None else gap.interval,
        nll_above_ridge=None if above_ridge is None else above_ridge.value,
        nll_above_ridge_interval=None if above_ridge is None else above_ridge.interval,
        num_examples=num_examples,
    )


_MEANINGS = {
    # By row: what it means when generation is better, worse, or neither.
    "ridge": (
        "the generator beats ridge regression",
        "the generator is worse than ridge regression and not worth its weights",
        "the generator cannot be told from ridge regression, so nothing shows that it is worth its weights",
    ),
    "nearest": (
        "the generator does better than looking up the nearest training task's adapter",
        "looking up the nearest training task's adapter does better than the generator",
        "looking up the nearest training task's adapter does as well, as far as can be told",
    ),
    "wrong prompts": (
        "the generator does better with the right prompts than with another task's",
        "the generator does better with another task's prompts than with the right ones",
        "nothing shows that the generator reads its prompts: another task's do as well",
    ),
}


def _verdicts(group: str, tasks: Sequence[str], sampled: _Samples) -> list[Verdict]:
    verdicts = []
    for against, (better, worse, neither) in _MEANINGS.items():
        if "generated" not in sampled or against not in sampled:
            continue
        difference = sampled["generated"]["nll"] - sampled[against]["nll"]
        low, high = difference.interval
        meaning = better if high < 0 else worse if low > 0 else neither
        measured = f"generated − {against} is {difference.value:+.3f} nats per answer token [{low:+.3f}, {high:+.3f}]"
        verdicts.append(
            Verdict(
                group=group,
                against=against,
                difference=difference.value,
                interval=(low, high),
                sentence=f"On {_named(group, tasks)}, {measured}: {meaning}.",
            )
        )
    return verdicts


def _remarks(named: str, sampled: _Samples) -> list[str]:
    """What stands beside the generated row, and what is not there to be compared with it."""
    if "generated" not in sampled:
        return []
    remarks = []
    if "ridge" not in sampled:
        remarks.append(f"Whether the generator beats ridge regression on {named} is not known: there is no row ridge.")
    nll = {row: sampled[row]["nll"].value for row in _BASELINES if row in sampled}
    if nll:
        best = min(nll, key=lambda row: nll[row])
        generated = sampled["generated"]["nll"].value
        remarks.append(
            f"On {named}, the best row without a generator is {best} with {nll[best]:.3f}; generated has "
            f"{generated:.3f}."
        )
    return remarks


def _named(group: str, tasks: Sequence[str]) -> str:
    if len(tasks) == 1:
        return f"the {group.removesuffix('s')} {tasks[0]}"
    return f"the {len(tasks)} {group}"
