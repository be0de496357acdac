"""The pictures of a report: curves of every metric, errors of the modules, predicted against target."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loragen_train.experiments.reader import Experiment
from loragen_train.plots import colour_of, label_of, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Picture", "draw_report"]

# Measures of the machine, shown after those of the learning.
_SYSTEM = re.compile(r"second|percent|mib|wait")
_FIRST = ("unseen_nll", "steering_margin", "loss", "mse", "l1", "mae", "rmse", "relative_error", "weight_cosine")


class Picture(NamedTuple):
    """One PNG file, and the part of the report that it belongs to: curves, modules, values or system."""

    path: Path
    title: str
    section: str


def draw_report(experiments: Sequence[Experiment], folder: Path) -> list[Picture]:
    """Write all pictures that the experiments have numbers for to ``folder``."""
    pictures: list[Picture] = []

    def new(title: str, section: str) -> Path:
        # Of the title only what no file system minds: columns are called by whoever wrote them.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", title)[:60]
        pictures.append(Picture(folder / f"{len(pictures) + 1:02d}_{name}.png", title, section))
        return pictures[-1].path

    for metric, columns in _metrics(experiments).items():
        _draw_curves(experiments, metric, columns, new(metric, "system" if _SYSTEM.search(metric) else "curves"))
    for experiment in experiments:
        if experiment.modules:
            _draw_modules(experiment, new(f"Error of every module: {experiment.name}", "modules"))
    for experiment in experiments:
        if experiment.sample:
            _draw_values(experiment, new(f"Predicted against target: {experiment.name}", "values"))
    return pictures


def _metrics(experiments: Sequence[Experiment]) -> dict[str, list[str]]:
    """Metric to its columns: ``train_loss`` and ``val_loss`` are both of ``loss``."""
    metrics: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for experiment in experiments for name in experiment.metrics):
        metrics.setdefault(re.sub(r"^(train|val)_", "", name), []).append(name)

    def place(metric: str) -> tuple[bool, int]:
        return _SYSTEM.search(metric) is not None, _FIRST.index(metric) if metric in _FIRST else len(_FIRST)

    return {metric: sorted(metrics[metric]) for metric in sorted(metrics, key=place)}


def _draw_curves(experiments: Sequence[Experiment], metric: str, columns: list[str], path: Path) -> None:
    """All experiments in one picture: the validation solid, the training dashed."""
    from matplotlib.ticker import LogFormatter, NullFormatter

    shown: list[float] = []
    with saved_figure(path, width=5.8, height=3.8) as figure:
        axes = figure.add_subplot()
        for index, experiment in enumerate(experiments):
            for name in columns:
                if (series := experiment.metrics.get(name)) is None:
                    continue
                part = name.removesuffix(metric).rstrip("_")
                style = ("--" if part == "train" else "-") + ("." if len(series.values) < 40 else "")
                label = label_of(experiment.name) + (f", {part}" if part else "")
                axes.plot(series.steps, series.values, style, color=colour_of(index), linewidth=1.2, label=label)
                shown += series.values
        if min(shown) > 0 and max(shown) > 30 * min(shown):
            axes.set_yscale("log")
            # The usual labels of such an axis are formulas, which are not set here.
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        if min(shown) < 0:
            # Below it, a steering margin says that the prompts mislead.
            axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xlabel("step")
        axes.set_title(label_of(metric, limit=60))
        axes.legend(fontsize=6.5, frameon=False)
        _tidy(axes)


def _draw_modules(experiment: Experiment, path: Path) -> None:
    """Relative error and cosine of every module by its layer, a colour for each kind of module."""
    kinds: dict[str, list[tuple[int, float, float]]] = {}
    for index, row in enumerate(experiment.modules):
        number = re.search(r"\.(\d+)\.", row["module"])
        point = (int(number[1]) if number else index, row["relative_error"], row["cosine"])
        kinds.setdefault(row["module"].rpartition(".")[2], []).append(point)
    with saved_figure(path, width=6.2, height=4.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        for index, (kind, points) in enumerate(sorted(kinds.items())):
            layers, errors, cosines = np.array(sorted(points, key=lambda point: point[0]), dtype=float).T
            above.plot(layers, errors, ".-", color=colour_of(index), linewidth=0.8, label=label_of(kind))
            below.plot(layers, cosines, ".-", color=colour_of(index), linewidth=0.8)
        above.set_ylim(bottom=0)
        above.set_ylabel("relative error")
        below.set_ylabel("cosine of ΔW")
        below.set_xlabel("layer")
        below.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
        figure.suptitle(label_of(experiment.name, limit=60), fontsize=10)
        _tidy(above)
        _tidy(below)


def _draw_values(experiment: Experiment, path: Path) -> None:
    """Predicted by target values, a colour for each task, and the line where they would be equal."""
    tasks = np.array(experiment.sample["task"])
    # What was not finite may be null in the file, which is NaN here, and is not drawn.
    targets, predicted = (np.array(experiment.sample[key], dtype=float) for key in ("target", "predicted"))
    with saved_figure(path, width=6.2, height=4.6) as figure:
        axes = figure.add_subplot()
        axes.axline((0, 0), slope=1, color="black", linewidth=0.6)
        for index, task in enumerate(dict.fromkeys(experiment.sample["task"])):
            own = tasks == task
            color, label = colour_of(index), label_of(task)
            axes.scatter(targets[own], predicted[own], s=4, alpha=0.35, color=color, label=label)
        axes.set_aspect("equal", adjustable="datalim")
        axes.locator_params(nbins=6)
        axes.set_xlabel("target weight")
        axes.set_ylabel("predicted weight")
        axes.set_title(label_of(experiment.name, limit=60))
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, markerscale=3)
        _tidy(axes)


def _tidy(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
