"""The picture of an evaluation: NLL per answer token of every row, a panel for every task and group of tasks."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from loragen_infer.evaluation.results import Evaluation, Score

__all__ = ["draw_chart"]

_COLOURS = {
    **dict.fromkeys(("base", "few-shot", "mean", "joint"), "#80868b"),  # baselines that need no prompts
    **dict.fromkeys(("tuned from mean", "tuned from scratch"), "#80868b"),
    **dict.fromkeys(("nearest", "ridge"), "#a142f4"),  # baselines that do
    **dict.fromkeys(("generated", "tuned"), "#1a73e8"),
    "own": "#188038",
    **dict.fromkeys(("wrong prompts", "junk"), "#e8710a"),  # controls
}
# More do not fit a picture that anyone can open; the groups of tasks then stand for them.
_MAX_PANELS = 30
_PER_LINE = 3


def draw_chart(evaluation: "Evaluation", path: Path) -> None:
    """Write bars with 95 % intervals to the PNG file ``path``, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(evaluation)
    lines, width = math.ceil(len(panels) / _PER_LINE), min(len(panels), _PER_LINE)
    height = 0.9 + 0.26 * max(len(scores) for scores in panels.values())
    figure = Figure(figsize=(0.6 + 3.6 * width, 0.6 + height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        "NLL per answer token, 95 % intervals (and share of the gap from base to own that a row closes)", fontsize=10
    )
    grid = figure.subplots(lines, width, squeeze=False).ravel()
    for axes, (title, scores) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, title, scores)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=150)


def _panels(evaluation: "Evaluation") -> "Mapping[str, Mapping[str, Score]]":
    tasks = {f"{task.task}{' (held out)' if task.held_out else ''}": task.scores for task in evaluation.tasks}
    groups = {
        f"mean over the {len(group.tasks)} {group.name}": group.scores
        for group in evaluation.groups
        if len(group.tasks) > 1
    }
    return {**groups, **tasks} if len(groups) + len(tasks) <= _MAX_PANELS else groups


def _draw_panel(axes: "Axes", title: str, scores: "Mapping[str, Score]") -> None:
    for place, (row, score) in enumerate(scores.items()):
        # Means over few tasks have no interval.
        low, high = score.nll_interval or (score.nll, score.nll)
        axes.barh(row, score.nll, color=_COLOURS[row], height=0.75)
        axes.plot([low, high], [place, place], color="black", linewidth=0.7, marker="|", markersize=3)
        label = f"{score.nll:.2f}" + ("" if score.gap_closed is None else f"  ({100 * score.gap_closed:z.0f} %)")
        axes.annotate(label, (max(score.nll, high), place), (4, 0), textcoords="offset points", fontsize=6, va="center")
    axes.invert_yaxis()
    axes.margins(x=0.28)
    axes.set_title(title if len(title) <= 48 else f"{title[:47]}…", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
