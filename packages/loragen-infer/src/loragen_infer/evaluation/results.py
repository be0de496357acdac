"""What an evaluation finds: scores with intervals of each task and group of tasks, and what they say of the generator.

Everything is computed of the scores of single examples; all rows of a task share their resamples, so differences and
shares are paired. Groups weigh their tasks alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from loragen_infer.evaluation.bootstrap import MIN_TASKS, Interval, Samples, interval_of, mean_of, sums_of
from loragen_infer.evaluation.config import ROWS, EvaluateConfig
from loragen_infer.evaluation.scoring import ExampleScores
from loragen_infer.evaluation.store import Cost

__all__ = ["Evaluation", "GroupResult", "Score", "TaskResult", "Verdict", "summarise", "to_json"]

_GROUPS = {True: "held-out tasks", False: "training tasks", None: "tasks"}
_BASELINES = ("base", "few-shot", "mean", "nearest", "ridge", "joint")
_MOST_NAMES = 6
_Sampled = Mapping[tuple[str, str], Samples]  # by row and score


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one row achieves; intervals are of 95 %, and None for a mean over two to four tasks.

    ``gap_closed`` is (base − row) / (base − own) in NLL, None where the own adapter is missing or gains nothing beyond
    doubt; ``nll_above_ridge`` is below zero for a row that is better than ridge. Shares are 0 to 1.
    """

    nll: float
    nll_interval: Interval | None
    exact_match: float
    exact_match_interval: Interval | None
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    gap_closed: float | None = None
    gap_closed_interval: Interval | None = None
    nll_above_ridge: float | None = None
    nll_above_ridge_interval: Interval | None = None
    num_examples: int


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's finished rows; what is by row holds the rows of which it is known."""

    task: str
    held_out: bool | None
    """Whether training saw nothing of it; None where that is not known."""
    wrong_tasks: list[str]
    rows: Mapping[str, ExampleScores]
    """Scores of the same examples."""
    scores: dict[str, Score] = field(default_factory=dict)
    """What :func:`summarise` makes of them."""
    costs: dict[str, Cost]
    notes: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """The means over a group of tasks, of the rows that all of them have."""

    name: str
    tasks: list[str]
    scores: dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the paired difference of NLL, ``generated`` minus the row ``against``, says of one group of tasks.

    Below zero is better. The interval is over tasks and their examples; for too few tasks it and the outcome are None.
    """

    group: str
    against: str
    difference: float
    interval: Interval | None
    num_tasks: int
    num_better: int
    outcome: Literal["better", "worse", "neither"] | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results of one evaluation; ``remarks`` are what it cannot tell, and why."""

    tasks: list[TaskResult]
    groups: list[GroupResult]
    verdicts: list[Verdict]
    remarks: list[str]


def summarise(tasks: Sequence[TaskResult], *, num_resamples: int, seed: int, remarks: Sequence[str] = ()) -> Evaluation:
    """Return the results of the tasks' finished rows, with what else there is to remark."""
    samples = [_sample(task.rows, num_resamples=num_resamples, seed=(seed, index)) for index, task in enumerate(tasks)]
    counts = [len(next(iter(task.rows.values())).exact) for task in tasks]
    results = [
        replace(task, scores=_scores(sampled, num_tasks=1, num_examples=count))
        for task, sampled, count in zip(tasks, samples, counts, strict=True)
    ]
    groups, verdicts, said = [], [], []
    for held_out, name in _GROUPS.items():
        members = [index for index, task in enumerate(tasks) if task.held_out is held_out]
        if not members:
            continue
        parts = [samples[index] for index in members]
        shared = [key for key in parts[0] if all(key in part for part in parts)]
        mean = {key: mean_of([part[key] for part in parts], seed=(seed, len(tasks))) for key in shared}
        names = [tasks[index].task for index in members]
        scores = _scores(mean, num_tasks=len(names), num_examples=sum(counts[index] for index in members))
        groups.append(GroupResult(name=name, tasks=names, scores=scores))
        named = f"the {name.removesuffix('s')} {names[0]}" if len(names) == 1 else f"the {len(names)} {name}"
        verdicts += [
            _verdict(name, named, against, mean, parts)
            for against in _MEANINGS
            if {("generated", "nll"), (against, "nll")} <= mean.keys()
        ]
        said += _missing(named, [tasks[index] for index in members]) + _remarks(named, mean)
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


def _sample(rows: Mapping[str, ExampleScores], *, num_resamples: int, seed: tuple[int, int]) -> _Sampled:
    columns: dict[tuple[str, str], Sequence[float]] = {}
    for row, scores in rows.items():
        columns[row, "nll"], columns[row, "exact_match"] = scores.answer_nll, scores.exact
        if scores.correct is not None:
            columns[row, "accuracy"] = scores.correct
    num_tokens = next(iter(rows.values())).num_tokens
    values_nK = np.array([num_tokens, [1] * len(num_tokens), *columns.values()], dtype=np.float64).T
    num_tokens_R, count_R, *sums = sums_of(values_nK, num_resamples=num_resamples, seed=seed).T
    return {
        key: sums_R / (num_tokens_R if key[1] == "nll" else count_R) for key, sums_R in zip(columns, sums, strict=True)
    }


def _scores(sampled: _Sampled, *, num_tasks: int, num_examples: int) -> dict[str, Score]:
    base, own, ridge = (sampled.get((row, "nll")) for row in ("base", "own", "ridge"))
    scores = {}
    for row in ROWS:
        found = {score: sample for (of_row, score), sample in sampled.items() if of_row == row}
        if not found:
            continue
        # A share of what may be nothing means nothing.
        if base is not None and own is not None and np.quantile((base - own)[1:], 0.025) > 0:
            found["gap_closed"] = (base - found["nll"]) / (base - own)
        if ridge is not None:
            found["nll_above_ridge"] = found["nll"] - ridge
        values: dict[str, Any] = {"num_examples": num_examples}
        for name, sample in found.items():
            interval = interval_of(sample, num_tasks=num_tasks)
            if interval is not None and name in ("exact_match", "accuracy"):
                interval = max(0.0, interval[0]), min(1.0, interval[1])
            values |= {name: float(sample[0]), f"{name}_interval": interval}
        scores[row] = Score(**values)
    return scores


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


def _verdict(group: str, named: str, against: str, mean: _Sampled, parts: Sequence[_Sampled]) -> Verdict:
    samples = mean["generated", "nll"] - mean[against, "nll"]
    difference = float(samples[0])
    num_better = sum(bool(part["generated", "nll"][0] < part[against, "nll"][0]) for part in parts)
    of_tasks = f"below zero on {num_better} of {len(parts)} {'task' if len(parts) == 1 else 'tasks'}"
    measured = f"On {named}, generated − {against} is {difference:+z.3f} nats per answer token"
    outcome: Literal["better", "worse", "neither"] | None = None
    # The interval of a single task is over its examples, and says nothing of another task.
    interval = interval_of(samples) if len(parts) >= MIN_TASKS else None
    if interval is None:
        sentence = f"{measured}, {of_tasks}; that is no verdict, which needs {MIN_TASKS} tasks or more."
    else:
        low, high = interval
        outcome = "better" if high < 0 else "worse" if low > 0 else "neither"
        sentence = f"{measured} [{low:+z.3f}, {high:+z.3f}], {of_tasks}: {_MEANINGS[against][outcome]}."
    return Verdict(
        group=group,
        against=against,
        difference=difference,
        interval=interval,
        num_tasks=len(parts),
        num_better=num_better,
        outcome=outcome,
        sentence=sentence,
    )


def _missing(named: str, tasks: Sequence[TaskResult]) -> list[str]:
    """What only some of the tasks have, so that the mean over them lacks it."""
    has = [
        {*task.rows, *(["accuracy"] if any(scores.correct is not None for scores in task.rows.values()) else [])}
        for task in tasks
    ]
    by_tasks: dict[tuple[str, ...], list[str]] = {}
    for what in (*ROWS, "accuracy"):
        without = tuple(task.task for task, one in zip(tasks, has, strict=True) if what not in one)
        if 0 < len(without) < len(tasks):
            by_tasks.setdefault(without, []).append(what)
    return [
        f"{_listed(what)} {'is' if len(what) == 1 else 'are'} missing from the mean of {named}: {_listed(without)} "
        f"{'has' if len(without) == 1 else 'have'} none."
        for without, what in by_tasks.items()
    ]


def _listed(names: Sequence[str]) -> str:
    """The names as words of a sentence, of very many the first."""
    shown = (
        list(names)
        if len(names) <= _MOST_NAMES
        else [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} more"]
    )
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _remarks(named: str, sampled: _Sampled) -> list[str]:
    """What stands beside the generated row, and what is not there to be compared with it."""
    generated = sampled.get(("generated", "nll"))
    if generated is None:
        return []
    remarks = []
    if ("ridge", "nll") not in sampled:
        remarks.append(f"Whether the generator beats ridge regression on {named} is not known: there is no row ridge.")
    nll = {row: sampled[row, "nll"][0] for row in _BASELINES if (row, "nll") in sampled}
    if nll:
        best = min(nll, key=lambda row: nll[row])
        remarks.append(
            f"On {named}, the best row without a generator is {best} with {nll[best]:.3f}; generated has "
            f"{generated[0]:.3f}."
        )
    return remarks
