"""What an evaluation finds: the scores of each task and group of tasks, with intervals, and what they say of the
generator.

Everything is computed of the scores of single examples; all rows of a task share their resamples, so differences and
shares are paired. Groups weigh their tasks alike. Of few tasks it is said on how many the generator is better, and no
more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from loragen_infer.evaluation.bootstrap import MIN_TASKS, Interval, Sampled, mean_of, resample_sums
from loragen_infer.evaluation.config import ROWS, EvaluateConfig
from loragen_infer.evaluation.scoring import ExampleScores
from loragen_infer.evaluation.store import Cost

__all__ = ["Evaluation", "GroupResult", "Score", "TaskResult", "Verdict", "summarise", "to_json"]

_GROUPS = {True: "held-out tasks", False: "training tasks", None: "tasks"}
_BASELINES = ("base", "few-shot", "mean", "nearest", "ridge", "joint")
_SCORES = ("nll", "exact_match", "accuracy")
_Samples = Mapping[str, Mapping[str, Sampled]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one row achieves; intervals are of 95 %, and None for a mean over two to four tasks."""

    nll: float
    """Mean negative log-likelihood per answer token, in nats."""
    nll_interval: Interval | None
    exact_match: float
    """Share of examples whose greedy continuation is the response, 0 to 1."""
    exact_match_interval: Interval | None
    accuracy: float | None = None
    """Share of examples whose response is the most likely of the choices, 0 to 1; None for tasks without choices."""
    accuracy_interval: Interval | None = None
    gap_closed: float | None = None
    """(base − row) / (base − own) in NLL; None where the own adapter is missing or gains nothing beyond doubt."""
    gap_closed_interval: Interval | None = None
    nll_above_ridge: float | None = None
    """NLL of this row minus that of the row ridge; below zero is better than ridge."""
    nll_above_ridge_interval: Interval | None = None
    num_examples: int
    """Number of examples scored."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's finished rows."""

    task: str
    """Name of the task."""
    held_out: bool | None
    """Whether training saw nothing of it; None where that is not known."""
    wrong_tasks: list[str]
    """The tasks whose prompts the control ``wrong prompts`` was given."""
    rows: Mapping[str, ExampleScores]
    """Scores of the same examples, by row."""
    scores: dict[str, Score] = field(default_factory=dict)
    """What :func:`summarise` makes of them, by row."""
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
    scores: dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the paired difference of NLL, ``generated`` minus the row ``against``, says of one group of tasks."""

    group: str
    against: str
    difference: float
    """Below zero is better."""
    interval: Interval | None
    """Of 95 %, over tasks and their examples; None for fewer tasks than allow one."""
    num_tasks: int
    num_better: int
    """Number of tasks on which the difference is below zero."""
    outcome: Literal["better", "worse", "neither"] | None
    """What holds of the generator beyond doubt; None for too few tasks."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results of one evaluation."""

    tasks: list[TaskResult]
    groups: list[GroupResult]
    verdicts: list[Verdict]
    remarks: list[str]
    """What the evaluation cannot tell, and why."""


def summarise(tasks: Sequence[TaskResult], *, num_resamples: int, seed: int, remarks: Sequence[str] = ()) -> Evaluation:
    """Return the results of the tasks' finished rows, with what else there is to remark."""
    samples = [_sample(task.rows, num_resamples=num_resamples, seed=(seed, index)) for index, task in enumerate(tasks)]
    counts = [len(next(iter(task.rows.values())).exact) for task in tasks]
    results = [
        replace(task, scores=_scores(sampled, count))
        for task, sampled, count in zip(tasks, samples, counts, strict=True)
    ]
    groups, verdicts, said = [], [], []
    for held_out, name in _GROUPS.items():
        members = [index for index, task in enumerate(tasks) if task.held_out is held_out]
        if not members:
            continue
        parts = [samples[index] for index in members]
        mean = _mean_samples(parts, seed=(seed, len(tasks)))
        names = [tasks[index].task for index in members]
        groups.append(
            GroupResult(name=name, tasks=names, scores=_scores(mean, sum(counts[index] for index in members)))
        )
        named = f"the {name.removesuffix('s')} {names[0]}" if len(names) == 1 else f"the {len(names)} {name}"
        verdicts += [
            _verdict(name, named, against, mean, parts)
            for against in _MEANINGS
            if {"generated", against} <= mean.keys()
        ]
        said += _remarks(named, mean)
    if not any(task.held_out for task in tasks):
        said.append("No task is known to be held out, so this says nothing of tasks that training has not seen.")
    elif any(task.held_out is False for task in tasks):
        said.append(
            "What the generator is worth shows on held-out tasks; on training tasks it need only remember an adapter."
        )
    return Evaluation(tasks=results, groups=groups, verdicts=verdicts, remarks=[*said, *remarks])


def to_json(config: EvaluateConfig, evaluation: Evaluation) -> dict[str, Any]:
    """Return the results as plain JSON values, with the configuration that gave them."""
    content = {"config": asdict(config), **asdict(evaluation)}
    for task in content["tasks"]:
        del task["rows"]  # of every single example
    return content


def _sample(
    rows: Mapping[str, ExampleScores], *, num_resamples: int, seed: tuple[int, int]
) -> dict[str, dict[str, Sampled]]:
    """By row and score, the values and their resamples."""
    num_tokens = next(iter(rows.values())).num_tokens
    columns: dict[tuple[str, str], Sequence[float]] = {
        ("", "tokens"): num_tokens,
        ("", "count"): (1,) * len(num_tokens),
    }
    for row, scores in rows.items():
        columns[row, "nll"], columns[row, "exact_match"] = scores.answer_nll, scores.exact
        if scores.correct is not None:
            columns[row, "accuracy"] = scores.correct
    values_nK = np.array(list(columns.values()), dtype=np.float64).T
    sums_RK = resample_sums(values_nK, num_resamples=num_resamples, seed=seed)
    tokens, count, *summed = (
        Sampled(value=float(whole), resamples=sums_R)
        for whole, sums_R in zip(values_nK.sum(axis=0), sums_RK.T, strict=True)
    )
    sampled: dict[str, dict[str, Sampled]] = {row: {} for row in rows}
    for (row, score), total in zip(list(columns)[2:], summed, strict=True):
        sampled[row][score] = total / (tokens if score == "nll" else count)
    return sampled


def _mean_samples(tasks: Sequence[_Samples], *, seed: Sequence[int]) -> dict[str, dict[str, Sampled]]:
    """The means over tasks, of rows and scores that all have."""
    mean: dict[str, dict[str, Sampled]] = {}
    for row in ROWS:
        if all(row in task for task in tasks):
            in_all = [score for score in _SCORES if all(score in task[row] for task in tasks)]
            mean[row] = {score: mean_of([task[row][score] for task in tasks], seed=seed) for score in in_all}
    return mean


def _scores(sampled: _Samples, num_examples: int) -> dict[str, Score]:
    return {row: _score(sampled, row, num_examples) for row in ROWS if row in sampled}


def _score(sampled: _Samples, row: str, num_examples: int) -> Score:
    found: dict[str, Sampled] = dict(sampled[row])
    if "base" in sampled and "own" in sampled:
        whole = sampled["base"]["nll"] - sampled["own"]["nll"]
        # A share of what may be nothing means nothing.
        if np.quantile(whole.resamples, 0.025) > 0:
            found["gap_closed"] = (sampled["base"]["nll"] - found["nll"]) / whole
    if "ridge" in sampled:
        found["nll_above_ridge"] = found["nll"] - sampled["ridge"]["nll"]
    values: dict[str, Any] = {name: sample.value for name, sample in found.items()}
    for name, sample in found.items():
        interval = sample.interval
        if interval is not None and name in ("exact_match", "accuracy"):
            interval = max(0.0, interval[0]), min(1.0, interval[1])
        values[f"{name}_interval"] = interval
    return Score(**values, num_examples=num_examples)


_MEANINGS = {
    # By row: what it means when generation is better, worse, or neither.
    "ridge": {
        "better": "the generator beats ridge regression",
        "worse": "the generator is worse than ridge regression and not worth its weights",
        "neither": "the generator cannot be told from ridge regression, so nothing shows that it is worth its weights",
    },
    "nearest": {
        "better": "the generator does better than looking up the nearest training task's adapter",
        "worse": "looking up the nearest training task's adapter does better than the generator",
        "neither": "looking up the nearest training task's adapter does as well, as far as can be told",
    },
    "wrong prompts": {
        "better": "the generator does better with the right prompts than with other tasks'",
        "worse": "the generator does better with other tasks' prompts than with the right ones",
        "neither": "nothing shows that the generator reads its prompts: other tasks' do as well",
    },
}


def _verdict(group: str, named: str, against: str, mean: _Samples, parts: Sequence[_Samples]) -> Verdict:
    difference = mean["generated"]["nll"] - mean[against]["nll"]
    num_better = sum(part["generated"]["nll"].value < part[against]["nll"].value for part in parts)
    of_tasks = f"below zero on {num_better} of {len(parts)} {'task' if len(parts) == 1 else 'tasks'}"
    measured = f"On {named}, generated − {against} is {difference.value:+z.3f} nats per answer token"
    outcome: Literal["better", "worse", "neither"] | None = None
    # The interval of a single task is over its examples, and says nothing of another task.
    interval = difference.interval if len(parts) >= MIN_TASKS else None
    if interval is None:
        sentence = f"{measured}, {of_tasks}; that is no verdict, which needs {MIN_TASKS} tasks or more."
    else:
        low, high = interval
        outcome = "better" if high < 0 else "worse" if low > 0 else "neither"
        sentence = f"{measured} [{low:+z.3f}, {high:+z.3f}], {of_tasks}: {_MEANINGS[against][outcome]}."
    return Verdict(
        group=group,
        against=against,
        difference=difference.value,
        interval=interval,
        num_tasks=len(parts),
        num_better=num_better,
        outcome=outcome,
        sentence=sentence,
    )


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
        remarks.append(
            f"On {named}, the best row without a generator is {best} with {nll[best]:.3f}; generated has "
            f"{sampled['generated']['nll'].value:.3f}."
        )
    return remarks
