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
from typing import Any

import yaml

from loragen_train.errors import LoragenTrainError

__all__ = ["Experiment", "ModuleError", "Sample", "Series", "read_experiments"]

_CONFIG, _METRICS, _VALIDATION = "config.yaml", "csv_logs/metrics.csv", "results/validation.json"
# A configuration has some dozens of keys; one with more than this is not one of ours.
_MAX_CONFIG_KEYS, _MAX_CONFIG_BYTES, _MAX_DEPTH = 2000, 1 << 20, 8


@dataclass(frozen=True, kw_only=True)
class Series:
    """The values of one column of the metrics, where it has any."""

    steps: list[float]
    """Optimizer steps (epochs, or rows, where the file has no steps)."""
    values: list[float]
    """The values, all finite."""
    num_nonfinite: int = 0
    """How many values were NaN or Inf and are left out."""


@dataclass(frozen=True, kw_only=True)
class ModuleError:
    """How far the generated weight change of one module is from its target, in weight units."""

    module: str
    """Name of the module."""
    mae: float
    """Mean absolute error."""
    rmse: float
    """Root of the mean squared error."""
    relative_error: float
    """Norm of the error by the norm of the target."""
    cosine: float
    """Cosine of the generated and the target ΔW."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some of the validation's values."""

    tasks: list[str]
    """The task of each value."""
    targets: list[float]
    """What should come out."""
    predicted: list[float]
    """What came out."""


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
    """The columns of the metrics."""
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
        for read in (_read_config, _read_metrics, _read_validation):
            try:
                read(experiment)
            except FileNotFoundError as error:
                part = Path(error.filename).relative_to(folder)
                experiment.missing.append(f"{part} is not there (yet): the training is going on or was interrupted.")
            except (OSError, ValueError, RecursionError, csv.Error, yaml.YAMLError) as error:
                reason = " ".join((str(error) or repr(error)).split())
                experiment.missing.append(f"{read.__name__.removeprefix('_read_')} cannot be read: {reason}")
        experiments.append(experiment)
    return experiments


def _read_config(experiment: Experiment) -> None:
    file = experiment.folder / _CONFIG
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"{_CONFIG} has {file.stat().st_size} bytes, over {_MAX_CONFIG_BYTES}")
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"{_CONFIG} holds no 'key: value' lines")
    values: dict[str, str] = {}
    _flatten(content, "", values)
    experiment.config_text, experiment.config = text, values


def _flatten(value: Any, key: str, into: dict[str, str]) -> None:
    if len(into) >= _MAX_CONFIG_KEYS or key.count(".") > _MAX_DEPTH:
        raise ValueError(f"{_CONFIG} is nested too deeply or has over {_MAX_CONFIG_KEYS} keys")
    if isinstance(value, dict) and value:
        for name, item in value.items():
            _flatten(item, f"{key}.{name}" if key else str(name), into)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f"{key}[{index}].", into)
    else:
        into[key] = str(value)


def _read_metrics(experiment: Experiment) -> None:
    columns: dict[str, Series] = {}
    with (experiment.folder / _METRICS).open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            at = next((value for key in ("step", "epoch") if (value := _number(row.get(key))) is not None), number)
            for name, cell in row.items():
                value = _number(cell)
                if name in (None, "", "step", "epoch") or value is None:
                    continue
                series = columns.get(name, Series(steps=[], values=[]))
                if math.isfinite(value):
                    series.steps.append(at)
                    series.values.append(value)
                else:
                    series = Series(steps=series.steps, values=series.values, num_nonfinite=series.num_nonfinite + 1)
                columns[name] = series
    experiment.metrics = {name: series for name, series in columns.items() if series.values}
    if not experiment.metrics:
        experiment.missing.append(f"{_METRICS} has no numbers yet.")
    for name, series in columns.items():
        if series.num_nonfinite:
            experiment.missing.append(f"{series.num_nonfinite} values of {name} are NaN or Inf and are not shown.")


def _number(cell: Any) -> float | None:
    """The number in a cell; None for an empty one, and for text."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _read_validation(experiment: Experiment) -> None:
    content = json.loads((experiment.folder / _VALIDATION).read_text(encoding="utf-8"))
    try:
        experiment.modules = [
            ModuleError(
                module=str(row["module"]),
                **{key: _real(row[key]) for key in ("mae", "rmse", "relative_error", "cosine")},
            )
            for row in content["modules"]
        ]
        sample = content["sample"]
        found = Sample(
            tasks=[str(task) for task in sample["task"]],
            targets=[_real(value) for value in sample["target"]],
            predicted=[_real(value) for value in sample["predicted"]],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{_VALIDATION} is not what a training writes ({error!r})") from error
    if not len(found.tasks) == len(found.targets) == len(found.predicted):
        raise ValueError(f"{_VALIDATION} has lists of different lengths in 'sample'")
    experiment.sample = found if found.tasks else None


def _real(value: Any) -> float:
    """A number of a JSON file, where null stands for one that was not finite."""
    return math.nan if value is None else float(value)
