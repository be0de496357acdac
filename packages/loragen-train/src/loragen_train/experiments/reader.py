"""Reads what a training leaves in its folder, for a report; what is missing or damaged is named and stops nothing.

<experiment>/config.yaml              the full configuration
<experiment>/csv_logs/metrics.csv     the columns epoch and step, train_<metric>, val_<metric>, and others
<experiment>/results/validation.json  errors per module, and a sample of predicted and target values
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loragen_train.errors import LoragenTrainError

__all__ = ["Experiment", "ModuleError", "Sample", "Series", "read_experiments"]

_CONFIG, _METRICS, _VALIDATION = "config.yaml", "csv_logs/metrics.csv", "results/validation.json"


class Series(NamedTuple):
    """One column of the metrics: its finite values, by optimizer step (or epoch, or row, where there are no steps)."""

    steps: list[float]
    values: list[float]


class ModuleError(NamedTuple):
    """How far the generated weights of one module are from its target, and the cosine of the two ΔW."""

    module: str
    mae: float
    rmse: float
    relative_error: float
    cosine: float


class Sample(NamedTuple):
    """Some of the validation's single values: of which task, what should come out, and what did."""

    tasks: list[str]
    targets: list[float]
    predicted: list[float]


@dataclass(kw_only=True)
class Experiment:
    """One training, as far as its folder tells."""

    name: str
    """Name of the folder, made different from the other experiments'."""
    folder: Path
    """The folder."""
    config_text: str = ""
    """The configuration as it was written."""
    config: dict[str, str] = field(default_factory=dict)
    """Its values by their full keys (``training.learning_rate``)."""
    metrics: dict[str, Series] = field(default_factory=dict)
    """The columns of the metrics that have values."""
    modules: list[ModuleError] = field(default_factory=list)
    """The errors of the modules."""
    sample: Sample | None = None
    """The sampled values."""
    missing: list[str] = field(default_factory=list)
    """What could not be had, and why, one sentence each."""


def read_experiments(folders: Sequence[Path]) -> list[Experiment]:
    """Read the folders of several trainings.

    Raises:
        LoragenTrainError: A folder does not exist, or holds none of the three files.
    """
    experiments: list[Experiment] = []
    for folder in folders:
        if not folder.is_dir():
            raise LoragenTrainError(f"{folder} is no folder; give the folder of an experiment.")
        if not any((folder / name).is_file() for name in (_CONFIG, _METRICS, _VALIDATION)):
            raise LoragenTrainError(
                f"{folder} holds neither {_CONFIG} nor {_METRICS} nor {_VALIDATION}; give the folder of an experiment."
            )
        name = folder.absolute().name
        same = sum(other.folder.absolute().name == name for other in experiments)
        experiment = Experiment(name=f"{name} ({same + 1})" if same else name, folder=folder)
        for file, read in ((_CONFIG, _read_config), (_METRICS, _read_metrics), (_VALIDATION, _read_validation)):
            try:
                read(experiment, folder / file)
            except FileNotFoundError:
                experiment.missing.append(f"{file} is not there (yet): the training is going on or was interrupted.")
            except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error, yaml.YAMLError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                experiment.missing.append(f"{file} cannot be read ({reason}).")
        experiments.append(experiment)
    return experiments


def _read_config(experiment: Experiment, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise TypeError("it holds no 'key: value' lines")
    experiment.config = dict(_flat(content, ""))
    experiment.config_text = text


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for name, item in value.items() for pair in _flat(item, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [pair for index, item in enumerate(value) for pair in _flat(item, f"{key}[{index}]")]
    return [(key, str(value))]


def _read_metrics(experiment: Experiment, file: Path) -> None:
    num_left_out: dict[str, int] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            at = next((value for key in ("step", "epoch") if (value := _number(row.get(key))) is not None), number)
            for name, cell in row.items():
                value = _number(cell)
                if name in (None, "", "step", "epoch") or value is None:
                    continue
                if math.isfinite(value):
                    series = experiment.metrics.setdefault(name, Series([], []))
                    series.steps.append(at)
                    series.values.append(value)
                else:
                    num_left_out[name] = num_left_out.get(name, 0) + 1
    if not experiment.metrics:
        experiment.missing.append(f"{_METRICS} has no numbers yet.")
    for name, count in num_left_out.items():
        experiment.missing.append(f"{count} of the values of {name} are NaN or Inf and not shown.")


def _number(cell: Any) -> float | None:
    """The number in a cell; None for an empty one, and for text."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _read_validation(experiment: Experiment, file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    errors = ModuleError._fields[1:]
    modules = [ModuleError(str(row["module"]), *(_real(row[key]) for key in errors)) for row in content["modules"]]
    targets, predicted = ([_real(value) for value in content["sample"][key]] for key in ("target", "predicted"))
    sample = Sample([str(task) for task in content["sample"]["task"]], targets, predicted)
    if not len(sample.tasks) == len(targets) == len(predicted):
        raise ValueError("the lists of its sample are of different lengths")
    experiment.modules, experiment.sample = modules, sample if targets else None


def _real(value: Any) -> float:
    """A number of a JSON file, where null stands for one that was not finite."""
    return math.nan if value is None else float(value)
