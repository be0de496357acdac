"""The picture of an evaluation: NLL per answer token of every row, task by task."""

from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.files import atomic_file

if TYPE_CHECKING:
    from loragen_infer.results import TaskResult

__all__ = ["draw_chart"]

# Grey for what needs no prompts, blue for generation, orange for the control, green for the target.
_COLOURS = {
    "base": "#9aa0a6",
    "mean": "#5f6368",
    "generated": "#1a73e8",
    "wrong prompts": "#e8710a",
    "own": "#188038",
}


def draw_chart(results: "list[TaskResult]", path: Path) -> None:
    """Write a grouped bar chart of ``results`` to the PNG file ``path``, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 1.8 * len(results), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(_COLOURS)
    for offset, (row, colour) in enumerate(_COLOURS.items()):
        positions = [index + (offset - 2) * width for index, result in enumerate(results) if row in result.scores]
        heights = [result.scores[row].nll for result in results if row in result.scores]
        bars = axes.bar(positions, heights, width=width * 0.92, color=colour, label=row)
        axes.bar_label(bars, fmt="%.2f", fontsize=6, padding=1)
    labels = [
        result.task if result.recovered is None else f"{result.task}\n{100 * result.recovered:.0f} % recovered"
        for result in results
    ]
    axes.set_xticks(range(len(results)), labels, fontsize=8)
    axes.set_ylabel("NLL per answer token (nats)")
    axes.set_title("Generated adapters against their baselines", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(_COLOURS), fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=150)
