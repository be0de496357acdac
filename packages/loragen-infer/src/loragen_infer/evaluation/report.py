"""The results of an evaluation as text: a table for every task and group of tasks, and what they say in sentences."""

from collections.abc import Mapping
from statistics import fmean

from loragen_infer.evaluation.bootstrap import Interval
from loragen_infer.evaluation.results import Evaluation, Score, TaskResult
from loragen_infer.evaluation.store import Cost

__all__ = ["format_evaluation"]

_HEAD = (
    "row",
    "NLL per answer token",
    "exact match, %",
    "accuracy, %",
    "gap closed, %",
    "NLL − ridge",
    "s",
    "CPU s",
    "steps",
)
_LEGEND = """\
[…] 95 % interval, of a task over its examples, of a mean over tasks and their examples (bootstrap, paired between
rows). NLL: lower is better. accuracy: right choice by likelihood. gap closed: (base − row) / (base − own) in NLL.
s, CPU s: to make the adapter; of a trained one, what its training.json says. steps: of tuning."""


def format_evaluation(evaluation: Evaluation) -> str:
    """Return the results as plain text."""
    blocks = [_block(_title(task), task.scores, task.costs, task.notes) for task in evaluation.tasks]
    blocks += [
        _block(f"mean over the {len(group.tasks)} {group.name}", group.scores, {}, {})
        for group in evaluation.groups
        if len(group.tasks) > 1
    ]
    sentences = [verdict.sentence for verdict in evaluation.verdicts] + evaluation.remarks + _cost_sentences(evaluation)
    return "\n\n".join([*blocks, _LEGEND, "\n".join(sentences)])


def _title(task: TaskResult) -> str:
    kind = {True: "held out, ", False: "trained on, ", None: ""}[task.held_out]
    count = next(iter(task.scores.values())).num_examples
    return f"{task.task} ({kind}{count} {'example' if count == 1 else 'examples'})"


def _block(title: str, scores: Mapping[str, Score], costs: Mapping[str, Cost], notes: Mapping[str, str]) -> str:
    lines = [_HEAD] + [_cells(row, score, costs.get(row)) for row, score in scores.items()]
    # A column that says nothing for any row is left out.
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"}]
    widths = [max(map(len, column)) for column in columns]
    texts = []
    for row, *cells in zip(*columns, strict=True):
        padded = [row.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]
        texts.append("  ".join(padded) + (f"  ({notes[row]})" if row in notes else ""))
    return "\n".join([title, texts[0], "-" * len(texts[0]), *texts[1:]])


def _cells(row: str, score: Score, cost: Cost | None) -> tuple[str, ...]:
    return (
        row,
        _cell(score.nll, score.nll_interval, ".3f"),
        _cell(score.exact_match, score.exact_match_interval, "z.0f", 100),
        _cell(score.accuracy, score.accuracy_interval, "z.0f", 100),
        _cell(score.gap_closed, score.gap_closed_interval, "z.0f", 100),
        _cell(score.nll_above_ridge if row != "ridge" else None, score.nll_above_ridge_interval, "+z.3f"),
        "–" if cost is None else _time(cost.seconds),
        "–" if cost is None or cost.cpu_seconds is None else _time(cost.cpu_seconds),
        "–" if cost is None or cost.num_steps is None else str(cost.num_steps),
    )


def _cell(value: float | None, interval: Interval | None, form: str, factor: float = 1) -> str:
    """The value and its interval; ``z`` in ``form`` makes a negative zero a plain one."""
    if value is None:
        return "–"
    text = format(factor * value, form)
    return text if interval is None else f"{text} [{', '.join(format(factor * end, form) for end in interval)}]"


def _time(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.1f}"


def _cost_sentences(evaluation: Evaluation) -> list[str]:
    """One sentence that sets generating an adapter against training one, where both are known."""
    costs = [task.costs for task in evaluation.tasks if {"generated", "own"} <= task.costs.keys()]
    if not costs:
        return []
    made, trained = (fmean(of_task[row].seconds for of_task in costs) for row in ("generated", "own"))
    return [
        f"Generating an adapter took {_time(made)} s on the mean, training one {_time(trained)} s "
        f"({trained / made:,.0f} times as long)."
    ]
