"""The loggers of a training: a CSV file always, TensorBoard and SwanLab as configured; none of them can end it.

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
from loragen_train.training.environment import is_first_process
from loragen_train.training.resume import Interrupted, step_of

if TYPE_CHECKING:
    from swanlab import Settings
    from swanlab.integration.pytorch_lightning import SwanLabLogger

__all__ = ["Outcome", "Tracker", "make_trackers", "tracked", "with_team_of_environment"]

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 3

Outcome = Literal["success", "aborted", "crashed"]


class Tracker(Logger):
    """A Lightning logger that warns once and falls silent when it fails, instead of ending the training.

    Args:
        name: What warnings call it.
        make: Makes the logger; called when it is first needed.
        close: Closes it with the outcome of the training, where that is more than Lightning's finalize.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Logger],
        close: Callable[[Logger, Outcome, str | None], None] | None = None,
    ) -> None:
        super().__init__()
        self._name, self._make, self._close = name, make, close
        self._logger: Logger | None = None
        self._failed = False

    @property
    def name(self) -> str:
        """What warnings call it."""
        return self._name

    @property
    def version(self) -> str:
        """Nothing: an experiment's folder is version enough."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record values."""
        self._try(lambda made: made.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the configuration."""
        self._try(lambda made: made.log_hyperparams(params))

    def save(self) -> None:
        """Write what is pending."""
        self._try(lambda made: made.save())

    def finalize(self, status: str) -> None:
        """Write what is pending; closing waits for :meth:`close`, which knows the outcome better than Lightning."""
        self.save()

    def close(self, outcome: Outcome, error: str | None = None) -> None:
        """Close the tracker; nothing is recorded afterwards."""
        if self._logger is not None:
            close = self._close
            self._try(lambda made: close(made, outcome, error) if close is not None else made.finalize(outcome))
        self._failed = True

    def _try(self, action: Callable[[Logger], Any]) -> Any:
        if self._failed:
            return None
        try:
            # Standard output is the command's result.
            with redirect_stdout(sys.stderr):
                if self._logger is None:
                    self._logger = self._make()
                return action(self._logger)
        # A tracker is other people's code over a network: whatever it raises, the training is worth more.
        except Exception as error:  # noqa: BLE001
            self._failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("%s stopped recording (%s); the training goes on without it.", self._name, reason)
            return None


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
def tracked(config: FitConfig, folder: Path, checkpoint: Path | None) -> Iterator[list[Tracker]]:
    """Yield the trackers of a training, none in processes that do not write, and close them with the right state.

    Raises:
        LoragenTrainError: The checkpoint that the training goes on from cannot be read, or as :func:`make_trackers`.
    """
    if not is_first_process():
        yield []
        return
    trackers = make_trackers(config, folder, step_of(checkpoint) if checkpoint is not None else 0)
    outcome: tuple[Outcome, str | None] = ("success", None)
    with _hidden("SWANLAB_PROJECT"):
        for tracker in trackers:
            tracker.log_hyperparams(replace(config, provenance=None).record())
        try:
            yield trackers
        except (Interrupted, KeyboardInterrupt) as stop:
            outcome = ("aborted", str(stop) or "stopped by SIGINT")
            logger.info("Go on with: --resume %s.", folder)
            raise
        except BaseException as error:
            outcome = ("crashed", str(error) or type(error).__name__)
            raise
        finally:
            for tracker in trackers:
                tracker.close(*outcome)


@contextmanager
def _hidden(variable: str) -> Iterator[None]:
    """Take a variable out of the environment: SwanLab 0.10 reads this one as a section of its settings, and fails."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def make_trackers(config: FitConfig, folder: Path, resumed_step: int = 0) -> list[Tracker]:
    """Return the trackers that ``config`` asks for, which write below ``folder``.

    Args:
        config: The configuration, which they record too.
        folder: The experiment's folder.
        resumed_step: What an earlier run of the experiment recorded after this step is dropped.

    Raises:
        LoragenTrainError: The mode is local, and the dashboard's package is missing.
    """
    trackers = [Tracker("The CSV log", lambda: _csv(folder, resumed_step))]
    if config.logging.tensorboard:
        options: dict[str, Any] = {"name": "", "version": "tensorboard_logs", "purge_step": resumed_step or None}
        trackers.append(Tracker("TensorBoard", lambda: TensorBoardLogger(folder, **options)))
    mode = _swanlab_mode(config.logging.swanlab)
    if mode == "local" and find_spec("swanboard") is None:
        raise LoragenTrainError(
            "logging.swanlab.mode local needs SwanLab's dashboard; install it with: "
            "pip install 'loragen-train[dashboard]'."
        )
    if mode != "disabled":
        trackers.append(Tracker("SwanLab", lambda: _swanlab(config, mode, folder), _finish_swanlab))
    return trackers


def _csv(folder: Path, resumed_step: int) -> Logger:
    file = folder / "csv_logs" / "metrics.csv"
    rows = []
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if int(row.get("step") or 0) < resumed_step]
    with warnings.catch_warnings():
        # Lightning warns that it will delete the rows that are put back below.
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        made = CSVLogger(folder, name="", version="csv_logs", flush_logs_every_n_steps=10)
        made.experiment.metrics += [{key: value for key, value in row.items() if value} for row in rows]
    made.save()
    return made


def _swanlab_mode(config: SwanLabConfig) -> str:
    if config.mode != "auto":
        return config.mode
    mode = os.environ.get("SWANLAB_MODE", "online")
    return "online" if mode == "cloud" else mode


def _swanlab(config: FitConfig, mode: str, folder: Path) -> "SwanLabLogger":
    """SwanLab's Lightning logger: online if it can, else offline."""
    import swanlab
    from swanlab.integration.pytorch_lightning import SwanLabLogger

    # Nothing is asked, and what is printed stays where the user sees it.
    settings = swanlab.Settings(interactive=False, terminal=swanlab.Settings.Terminal(proxy_type="none"))
    given, logs = config.logging.swanlab, folder / "swanlab_logs"
    options: dict[str, Any] = {
        "project": given.project or settings.project.name or f"loragen-{config.name}",
        "workspace": given.workspace or settings.project.workspace,
        "experiment_name": given.experiment_name or settings.experiment.name or folder.name,
        "log_dir": str(logs),
        "save_dir": str(folder),
        "settings": settings,
    }
    made = SwanLabLogger(mode=mode, **options)
    if mode != "online":
        return made
    try:
        _check_reachable(settings)
        _ = made.experiment
    # No key, no network, a server that answers nonsense: SwanLab has no common base for them.
    except Exception as error:  # noqa: BLE001
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        sentence = (
            "SwanLab cannot be reached (%s); the run is recorded offline in %s and can be sent with: swanlab sync."
        )
        logger.warning(sentence, reason, logs)
        made = SwanLabLogger(mode="offline", **options)
    return made


def _finish_swanlab(_made: Logger, outcome: Outcome, error: str | None) -> None:
    """End SwanLab's run with the right state."""
    import swanlab

    swanlab.finish(state=outcome, error=None if outcome == "success" else error)


def _check_reachable(settings: "Settings") -> None:
    """Raise ConnectionError unless there is a key, and the server answers anything within three seconds.

    SwanLab itself asks five times, with a line each, before it gives up.
    """
    if settings.api_key is None:
        raise ConnectionError("there is no key; swanlab login stores one")
    answered = threading.Event()

    def ask() -> None:
        # A proxy counts, as for SwanLab. Not even looking up the name may take longer, so nobody waits for this thread.
        with suppress(requests.RequestException):
            requests.get(settings.api_host, timeout=_PATIENCE_SECONDS, stream=True).close()
            answered.set()

    import requests

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(_PATIENCE_SECONDS):
        raise ConnectionError(f"{settings.api_host} does not answer")
