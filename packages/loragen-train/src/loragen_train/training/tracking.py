"""The loggers of a training: a CSV file always, TensorBoard and SwanLab as configured; these two cannot end it.

SwanLab's own rules are kept (its settings, its variables, its key file) with four differences: it never asks at a
prompt, a server that does not answer within three seconds is not waited for, what cannot be sent is kept in
``swanlab_logs/`` to be synchronised later, and the variable SWANLAB_PROJECT, which its release 0.10 cannot read, is
taken as the project's name.
"""

import csv
import logging
import os
import sys
import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from loragen_train.configs.fit import FitConfig
from loragen_train.configs.logging import SwanLabConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.folder import LAST_CHECKPOINT
from loragen_train.training.environment import is_first_process
from loragen_train.training.resume import Interrupted, step_of

if TYPE_CHECKING:
    from swanlab import Settings
    from swanlab.integration.pytorch_lightning import SwanLabLogger

__all__ = ["Outcome", "Tracker", "make_loggers", "tracked", "with_team_of_environment"]

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 3

Outcome = Literal["success", "aborted", "crashed"]


class Tracker(Logger):
    """A logger that warns once and falls silent when it fails, instead of ending the training.

    Args:
        name: What it is called in the warning.
        make: Makes the logger; called when it is first needed.
        finish: Ends it, with the state that only the end of the training knows and the error there was.
    """

    version = ""

    def __init__(
        self, name: str, make: Callable[[], Logger], finish: Callable[[Logger, Outcome, str | None], None]
    ) -> None:
        super().__init__()
        self._name, self._make, self._finish = name, make, finish
        self._logger: Logger | None = None
        self._failed = False

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record them."""
        self._try(lambda made: made.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record them."""
        self._try(lambda made: made.log_hyperparams(params))

    def close(self, outcome: Outcome, error: str | None = None) -> None:
        """End the run; nothing is recorded afterwards."""
        if self._logger is not None:
            self._try(lambda made: self._finish(made, outcome, error))
        self._failed = True

    def _try(self, action: Callable[[Logger], None]) -> None:
        if self._failed:
            return
        try:
            # Standard output is the command's result.
            with redirect_stdout(sys.stderr):
                if self._logger is None:
                    self._logger = self._make()
                action(self._logger)
        # It is other people's code, maybe over a network: whatever it raises, the training is worth more.
        except Exception as error:  # noqa: BLE001
            self._failed = True
            logger.warning("%s stopped recording (%s); the training goes on without it.", self._name, _reason(error))


def with_team_of_environment(config: FitConfig) -> FitConfig:
    """Return ``config`` with the project and workspace that SwanLab's variables name, where it names none itself."""
    swanlab = config.logging.swanlab
    if _swanlab_mode(swanlab) == "disabled":
        return config
    project = swanlab.project or os.environ.get("SWANLAB_PROJECT") or os.environ.get("SWANLAB_PROJ_NAME")
    workspace = swanlab.workspace or os.environ.get("SWANLAB_WORKSPACE")
    known = replace(swanlab, project=project or None, workspace=workspace or None)
    return replace(config, logging=replace(config.logging, swanlab=known))


@contextmanager
def tracked(config: FitConfig, folder: Path, checkpoint: Path | None) -> Iterator[list[Logger]]:
    """Yield the loggers of a training, none in processes that do not write; SwanLab is closed with the right state.

    Raises:
        LoragenTrainError: The checkpoint that the training goes on from cannot be read, or as :func:`make_loggers`.
    """
    if not is_first_process():
        yield []
        return
    loggers = make_loggers(config, folder, step_of(checkpoint) if checkpoint is not None else 0)
    outcome: tuple[Outcome, str | None] = ("success", None)
    # SwanLab 0.10 reads this variable as a section of its settings, and fails.
    project = os.environ.pop("SWANLAB_PROJECT", None)
    try:
        for made in loggers:
            made.log_hyperparams(replace(config, provenance=None).record())
        yield loggers
    except (Interrupted, KeyboardInterrupt) as stop:
        outcome = ("aborted", str(stop) or "stopped by SIGINT")
        if (folder / LAST_CHECKPOINT).is_file():
            logger.info("Go on with: --resume %s.", folder)
        raise
    except BaseException as error:
        outcome = ("crashed", str(error) or type(error).__name__)
        raise
    finally:
        for made in loggers:
            if isinstance(made, Tracker):
                made.close(*outcome)
        if project is not None:
            os.environ["SWANLAB_PROJECT"] = project


def make_loggers(config: FitConfig, folder: Path, resumed_step: int = 0) -> list[Logger]:
    """Return the loggers that ``config`` asks for, which write below ``folder``.

    What an earlier run of the experiment recorded after ``resumed_step`` is dropped.

    Raises:
        LoragenTrainError: The mode is local, and the dashboard's package is missing.
    """
    loggers: list[Logger] = [_csv(folder, resumed_step)]
    if config.logging.tensorboard:
        loggers.append(Tracker("TensorBoard", lambda: _tensorboard(folder, resumed_step), _finish_tensorboard))
    mode = _swanlab_mode(config.logging.swanlab)
    if mode == "local" and find_spec("swanboard") is None:
        raise LoragenTrainError(
            "logging.swanlab.mode local needs SwanLab's dashboard; install it with: "
            "pip install 'loragen-train[dashboard]'."
        )
    if mode != "disabled":
        loggers.append(Tracker("SwanLab", lambda: _swanlab(config, mode, folder), _finish_swanlab))
    return loggers


def _csv(folder: Path, resumed_step: int) -> CSVLogger:
    file = folder / "csv_logs" / "metrics.csv"
    rows = []
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            # One without a step is of a line that a kill has cut off.
            rows = [row for row in csv.DictReader(stream) if row.get("step") and int(row["step"]) < resumed_step]
    with warnings.catch_warnings():
        # Lightning warns that it will delete the rows that are put back below.
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        made = CSVLogger(folder, name="", version="csv_logs", flush_logs_every_n_steps=10)
        made.experiment.metrics += [{key: value for key, value in row.items() if value} for row in rows]
    made.save()
    return made


def _tensorboard(folder: Path, resumed_step: int) -> TensorBoardLogger:
    options: dict[str, Any] = {"purge_step": resumed_step or None}
    return TensorBoardLogger(folder, name="", version="tensorboard_logs", **options)


def _finish_tensorboard(made: Logger, outcome: Outcome, _error: str | None) -> None:
    made.finalize(outcome)


def _finish_swanlab(_made: Logger, outcome: Outcome, error: str | None) -> None:
    import swanlab

    swanlab.finish(state=outcome, error=error)


def _swanlab_mode(config: SwanLabConfig) -> str:
    mode = os.environ.get("SWANLAB_MODE", "online") if config.mode == "auto" else config.mode
    return "online" if mode == "cloud" else mode


def _swanlab(config: FitConfig, mode: str, folder: Path) -> "SwanLabLogger":
    """SwanLab's Lightning logger: online if it can, else offline."""
    import swanlab
    from swanlab.integration.pytorch_lightning import SwanLabLogger

    # Nothing is asked, and what is printed stays where the user sees it.
    settings = swanlab.Settings(interactive=False, terminal=swanlab.Settings.Terminal(proxy_type="none"))
    given, logs = config.logging.swanlab, folder / "swanlab_logs"

    def make(mode: str) -> "SwanLabLogger":
        made = SwanLabLogger(
            project=given.project or settings.project.name or f"loragen-{config.name}",
            workspace=given.workspace or settings.project.workspace,
            experiment_name=given.experiment_name or settings.experiment.name or folder.name,
            log_dir=str(logs),
            save_dir=folder,
            settings=settings,
            mode=mode,
        )
        _ = made.experiment
        return made

    if mode != "online":
        return make(mode)
    try:
        _check_reachable(settings)
        return make("online")
    # No key, no network, a server that answers nonsense: SwanLab has no common base for them.
    except Exception as error:  # noqa: BLE001
        logger.warning(
            "SwanLab cannot be reached (%s); the run is recorded offline in %s and can be sent with: swanlab sync.",
            *(_reason(error), logs),
        )
        return make("offline")


def _check_reachable(settings: "Settings") -> None:
    """Raise ConnectionError unless there is a key, and the server answers anything within three seconds.

    SwanLab itself asks five times, with a line each, before it gives up.
    """
    import requests

    if settings.api_key is None:
        raise ConnectionError("there is no key; swanlab login stores one")
    answered = threading.Event()

    def ask() -> None:
        with suppress(requests.RequestException):
            requests.get(settings.api_host, timeout=_PATIENCE_SECONDS, stream=True).close()
            answered.set()

    # In a thread that nobody waits for: looking up a name knows no timeout.
    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(_PATIENCE_SECONDS):
        raise ConnectionError(f"{settings.api_host} does not answer")


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
