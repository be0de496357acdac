"""Reads what a training leaves in its folder, for a report; what is missing or damaged is named and stops nothing."""

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.folder import FAILED

__all__ = ["Experiment", "Series", "read_experiments"]

_CONFIG, _METRICS, _VALIDATION = "config.yaml", "csv_logs/metrics.csv", "results/validation.json"


class Series(NamedTuple):
    """One column of the metrics: its finite values, by optimizer step."""

    steps: list[int]
    values: list[float]


@dataclass(kw_only=True)
class Experiment:
    """One training, as far as its folder tells."""

    name: str
    """Name of the folder, made different from the other experiments'."""
    folder: Path
    config_text: str = ""
    """The configuration as it was written."""
    config: dict[str, str] = field(default_factory=dict)
    """Its values by their full keys (``training.learning_rate``)."""
    metrics: dict[str, Series] = field(default_factory=dict)
    """The columns of the metrics that have values."""
    modules: list[dict[str, Any]] = field(default_factory=list)
    """Of each module: ``module``, ``mae``, ``rmse``, ``relative_error`` and ``cosine``."""
    sample: dict[str, list[Any]] = field(default_factory=dict)
    """Some of the validation's single values: ``task``, ``target`` and ``predicted``."""
    missing: list[str] = field(default_factory=list)
    """What could not be had, and why, one sentence each."""


def read_experiments(folders: Sequence[Path]) -> list[Experiment]:
    """Read the folders of several trainings.

    Raises:
        LoragenTrainError: A folder does not exist, or holds none of the three files.
    """
    names: Counter[str] = Counter()
    return [_read_experiment(folder, names) for folder in folders]


def _read_experiment(folder: Path, names: Counter[str]) -> Experiment:
    if not any((folder / file).is_file() for file in (_CONFIG, _METRICS, _VALIDATION)):
        raise LoragenTrainError(
            f"{folder} holds neither {_CONFIG} nor {_METRICS} nor {_VALIDATION}; give the folder of an experiment."
        )
    name = folder.absolute().name
    names[name] += 1
    experiment = Experiment(name=f"{name} ({names[name]})" if names[name] > 1 else name, folder=folder)
    for file, read in (
        (FAILED, _read_failed),
        (_CONFIG, _read_config),
        (_METRICS, _read_metrics),
        (_VALIDATION, _read_validation),
    ):
        try:
            read(experiment, folder / file)
        except FileNotFoundError:
            experiment.missing.append(f"{file} is not there (yet): the training is going on or was interrupted.")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error, yaml.YAMLError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            experiment.missing.append(f"{file} cannot be read ({reason}).")
    return experiment


def _read_failed(experiment: Experiment, file: Path) -> None:
    if file.is_file():
        experiment.missing.append(f"It has failed: {file.read_text(encoding='utf-8').strip()}")


def _read_config(experiment: Experiment, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    experiment.config = {key: str(value) for key, value in _flat(yaml.safe_load(text)).items()}
    experiment.config_text = text


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their full keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(index): item for index, item in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _read_metrics(experiment: Experiment, file: Path) -> None:
    num_left_out: Counter[str] = Counter()
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            # A line that is being written, or that a kill has cut off, has fewer cells.
            if not (number := row.pop("step", None)):
                continue
            step = int(number)
            del row["epoch"]
            for name, cell in row.items():
                if not cell:
                    continue
                value = float(cell)
                if not math.isfinite(value):
                    num_left_out[name] += 1
                    continue
                series = experiment.metrics.setdefault(name, Series([], []))
                series.steps.append(step)
                series.values.append(value)
    if not experiment.metrics:
        experiment.missing.append(f"{_METRICS} has no numbers yet.")
    for name, count in num_left_out.items():
        experiment.missing.append(f"{count} of the values of {name} are NaN or Inf and not shown.")


def _read_validation(experiment: Experiment, file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    modules, sample = content["modules"], content["sample"]
    lacks_some = any(not row.keys() >= {"module", "relative_error", "cosine"} for row in modules)
    if lacks_some or (sample and not sample.keys() >= {"task", "target", "predicted"}):
        raise ValueError("a key is missing")
    experiment.modules, experiment.sample = modules, sample
