"""What a run has found, as plain JSON values: means over seeds and tasks, with intervals over tasks.

A row's score of a task is the mean over the seeds, and the score of a group the mean over its tasks, with a 95 %
bootstrap interval over the tasks. The examples' chance is in the scores of the tasks, and so in the interval. Rows are
compared in pairs, task by task.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from loragen_infer.evaluation.bootstrap import interval_of, mean_of
from loragen_infer.evaluation.config import ROWS

__all__ = ["Scores", "compared", "group_table", "scores_by_task"]

Scores = dict[str, dict[str, dict[str, float]]]
"""By task, row and score (``nll`` in nats per answer token, ``exact_match`` as a share)."""
_NUM_RESAMPLES = 10_000
_NAMES = ("nll", "exact_match")


def scores_by_task(evaluations: Sequence[Mapping[str, Any]], *, held_out: bool) -> Scores:
    """Return the scores of the tasks of one kind, the mean over several ``evaluation.json`` of different seeds."""
    kept = [
        {task["task"]: task["scores"] for task in one["tasks"] if task["held_out"] is held_out} for one in evaluations
    ]
    return {
        task: {
            row: {name: fmean(one[task][row][name] for one in kept) for name in _NAMES}
            for row in ROWS
            if all(row in one[task] for one in kept)
        }
        for task in kept[0]
    }


def group_table(scores: Scores) -> dict[str, dict[str, Any]]:
    """Return by row each score's mean over the tasks and its interval, and the share of the gap that a row closes.

    ``gap_closed`` is (base − row) / (base − own) of the mean NLLs.
    """
    rows = [row for row in ROWS if all(row in one for one in scores.values())]
    table: dict[str, dict[str, Any]] = {
        row: {name: _mean([one[row][name] for one in scores.values()]) for name in _NAMES} for row in rows
    }
    for row in rows:
        interval = table[row]["exact_match"]["interval"]
        if interval is not None:  # widened for few tasks, it may go beyond what a share can be
            table[row]["exact_match"]["interval"] = max(0.0, interval[0]), min(1.0, interval[1])
        if {"base", "own"} <= table.keys():
            base, own = table["base"]["nll"]["mean"], table["own"]["nll"]["mean"]
            table[row]["gap_closed"] = (base - table[row]["nll"]["mean"]) / (base - own)
    return table


def compared(scores: Scores, row: str) -> dict[str, dict[str, Any]]:
    """Return by every other row how far ``row`` is from it, paired by task; below zero is better in NLL alone."""
    table = {}
    for other in ROWS:
        if other == row or not all({row, other} <= one.keys() for one in scores.values()):
            continue
        of_tasks = {name: [one[row][name] - one[other][name] for one in scores.values()] for name in _NAMES}
        table[other] = {name: _mean(differences) for name, differences in of_tasks.items()}
        table[other]["nll"]["num_better"] = sum(difference < 0 for difference in of_tasks["nll"])
        table[other]["exact_match"]["num_better"] = sum(difference > 0 for difference in of_tasks["exact_match"])
    return table


def _mean(values: Sequence[float]) -> dict[str, Any]:
    samples = mean_of([np.full(1 + _NUM_RESAMPLES, value) for value in values], seed=(0, len(values)))
    return {"mean": fmean(values), "interval": interval_of(samples, num_tasks=len(values))}
