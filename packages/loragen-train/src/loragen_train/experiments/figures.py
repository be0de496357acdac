"""The pictures of a report: curves of every metric, errors of the modules, predicted against target."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from loragen_train.experiments.reader import Experiment, Series
from loragen_train.plots import colour_of, label_of, saved_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Picture", "draw_report"]

_SECTION = Literal["curves", "modules", "values", "system"]
# Measures of the machine, shown after those of the learning.
_SYSTEM = re.compile(r"second|percent|mib|gib|memory|util|wait|cpu|gpu|rss")
_FIRST = ("loss", "total", "mse", "l1", "mae", "rmse", "relative_error", "weight_cosine")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One PNG file."""

    path: Path
    """Where it is."""
    title: str
    """What it shows."""
    section: _SECTION
    """Part of the report that it belongs to."""


def draw_report(experiments: Sequence[Experiment], folder: Path) -> list[Picture]:
    """Write all pictures that the experiments have numbers for to ``folder``.

    Raises:
        LoragenInferError: They cannot be written.
    """
    pictures: list[Picture] = []

    def path_of(name: str) -> Path:
        # A number in front, and of the name only what no file system minds: columns are called by whoever wrote them.
        return folder / f"{len(pictures) + 1:02d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:60]}.png"

    for metric, columns in _metrics(experiments).items():
        path = path_of(metric)
        _draw_curves(experiments, metric, columns, path)
        section: _SECTION = "system" if _is_system(metric) else "curves"
        pictures.append(Picture(path=path, title=metric, section=section))
    with_modules = [experiment for experiment in experiments if experiment.modules]
    highest = max((_highest_error(experiment) for experiment in with_modules), default=1.0)
    for experiment in with_modules:
        path = path_of(f"modules_{experiment.name}")
        _draw_modules(experiment, highest, path)
        pictures.append(Picture(path=path, title=f"Error of every module: {experiment.name}", section="modules"))
    for experiment in experiments:
        if experiment.sample is not None:
            path = path_of(f"values_{experiment.name}")
            _draw_values(experiment, path)
            pictures.append(Picture(path=path, title=f"Predicted against target: {experiment.name}", section="values"))
    return pictures


def _metrics(experiments: Iterable[Experiment]) -> dict[str, list[str]]:
    """Metric to its columns: ``train_loss`` and ``val_loss`` are both of ``loss``."""
    columns = dict.fromkeys(name for experiment in experiments for name in experiment.metrics)
    metrics: dict[str, list[str]] = {}
    for name in columns:
        metrics.setdefault(re.sub(r"^(train|val)_", "", name), []).append(name)

    def place(metric: str) -> tuple[int, int]:
        return int(_is_system(metric)), _FIRST.index(metric) if metric in _FIRST else len(_FIRST)

    return {metric: sorted(metrics[metric]) for metric in sorted(metrics, key=place)}


def _is_system(metric: str) -> bool:
    return _SYSTEM.search(metric) is not None


def _draw_curves(experiments: Sequence[Experiment], metric: str, columns: list[str], path: Path) -> None:
    """All experiments in one picture: the validation solid, the training dashed."""
    from matplotlib.ticker import LogFormatter, NullFormatter

    shown = [
        (index, experiment.name, name.removesuffix(metric).rstrip("_"), experiment.metrics[name])
        for index, experiment in enumerate(experiments)
        for name in columns
        if name in experiment.metrics
    ]
    with saved_figure(path, width=5.8, height=3.8) as figure:
        axes = figure.add_subplot()
        for index, experiment_name, part, series in shown:
            style = ("--" if part == "train" else "-") + ("." if len(series.values) < 40 else "")
            label = label_of(experiment_name) + (f", {part}" if part else "")
            axes.plot(series.steps, series.values, style, color=colour_of(index), linewidth=1.2, label=label)
        if _wants_logarithm(series for *_, series in shown):
            axes.set_yscale("log")
            # The usual labels of such an axis are formulas, which are not set here.
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.set_title(label_of(metric, limit=60))
        _tidy(axes)
        if len(shown) <= 12:
            axes.legend(fontsize=6.5, frameon=False)


def _wants_logarithm(shown: Iterable[Series]) -> bool:
    values = [value for series in shown for value in series.values]
    return min(values) > 0 and max(values) > 30 * min(values)


def _highest_error(experiment: Experiment) -> float:
    return max((row.relative_error for row in experiment.modules if np.isfinite(row.relative_error)), default=1.0)


def _draw_modules(experiment: Experiment, highest: float, path: Path) -> None:
    """Relative error and cosine of every module by its layer, a colour for each kind of module."""
    kinds: dict[str, list[tuple[int, float, float]]] = {}
    for index, row in enumerate(experiment.modules):
        number = re.search(r"\.(\d+)\.", row.module)
        layer = int(number[1]) if number and len(number[1]) < 6 else index
        kinds.setdefault(row.module.rpartition(".")[2], []).append((layer, row.relative_error, row.cosine))
    with saved_figure(path, width=6.2, height=4.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        for index, (kind, rows) in enumerate(sorted(kinds.items())):
            layers, errors, cosines = zip(*sorted(rows), strict=True)
            label = label_of(kind) if index < 12 else None
            above.plot(layers, errors, ".-", color=colour_of(index), linewidth=0.8, label=label)
            below.plot(layers, cosines, ".-", color=colour_of(index), linewidth=0.8)
        above.set_ylim(0, 1.05 * highest or 1)
        above.set_ylabel("relative error")
        below.set_ylabel("cosine of ΔW")
        below.set_xlabel("layer")
        below.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
        figure.suptitle(label_of(experiment.name, limit=60), fontsize=10)
        for axes in (above, below):
            _tidy(axes)


def _draw_values(experiment: Experiment, path: Path) -> None:
    """Predicted by target values, a colour for each task, and the line where they would be equal."""
    sample = experiment.sample
    if sample is None:
        raise AssertionError("only called for an experiment with a sample")
    targets, predicted = np.array(sample.targets), np.array(sample.predicted)
    tasks = np.array(sample.tasks)
    both = np.isfinite(targets) & np.isfinite(predicted)
    limit = 1.05 * float(np.abs(np.concatenate([targets[both], predicted[both]])).max(initial=0.0)) or 1.0
    with saved_figure(path, width=6.2, height=4.6) as figure:
        axes = figure.add_subplot()
        axes.plot([-limit, limit], [-limit, limit], color="black", linewidth=0.6)
        for index, task in enumerate(dict.fromkeys(sample.tasks)):
            where = both & (tasks == task)
            label = label_of(task) if index < 20 else None
            axes.scatter(targets[where], predicted[where], s=4, alpha=0.35, color=colour_of(index), label=label)
        axes.set_aspect("equal", adjustable="datalim")
        axes.locator_params(nbins=6)
        axes.set_xlabel("target weight")
        axes.set_ylabel("predicted weight")
        axes.set_title(f"{label_of(experiment.name, limit=40)}{_correlation(targets[both], predicted[both])}")
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, markerscale=3)
        _tidy(axes)


def _correlation(targets: "np.typing.NDArray[np.float64]", predicted: "np.typing.NDArray[np.float64]") -> str:
    if len(targets) < 2 or not (targets.std() > 0 and predicted.std() > 0):
        return ""
    return f" (correlation {np.corrcoef(targets, predicted)[0, 1]:.4f})"


def _tidy(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
