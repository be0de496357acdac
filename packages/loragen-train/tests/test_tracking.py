"""Loggers: what they record, that SwanLab's run has the right state, and that it cannot end a training."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from lightning.pytorch.loggers import Logger
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig
from loragen_train.configs.logging import LoggingConfig, SwanLabConfig
from loragen_train.training.tracking import Tracker, make_loggers, with_team_of_environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def config(mode: str = "disabled", *, tensorboard: bool = False, **swanlab: str) -> FitConfig:
    logging = LoggingConfig(tensorboard=tensorboard, swanlab=SwanLabConfig(mode=mode, **swanlab))
    return FitConfig(data=DataConfig(checkpoint_dir="x"), logging=logging, name="zoo")


def record(loggers: list[Logger]) -> None:
    for logger in loggers:
        logger.log_hyperparams({"data": {"batch_size": 4}})
        for step in range(5):
            logger.log_metrics({"train_loss": 1 / (step + 1)}, step)
        logger.finalize("success")
        if isinstance(logger, Tracker):
            logger.close("success")


def test_the_csv_log_goes_on_where_a_resumed_run_does(tmp_path):
    record(make_loggers(config(), tmp_path))
    file = tmp_path / "csv_logs" / "metrics.csv"
    before = file.read_text().splitlines()
    assert len(before) == 6
    (logger,) = make_loggers(config(), tmp_path, resumed_step=3)
    logger.log_metrics({"train_loss": 7.0, "val_loss": 8.0}, 3)
    logger.finalize("success")
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert rows[0] == ["step", "train_loss", "val_loss"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "3"]
    assert rows[-1] == ["3", "7.0", "8.0"]


def test_a_line_that_a_kill_has_cut_off_is_not_kept(tmp_path):
    file = tmp_path / "csv_logs" / "metrics.csv"
    file.parent.mkdir()
    file.write_text("epoch,learning_rate,step,train_loss\n0,0.1,1,2.0\n1,0.\n")
    (logger,) = make_loggers(config(), tmp_path, resumed_step=3)
    logger.finalize("success")
    assert file.read_text().splitlines()[1:] == ["0,0.1,1,2.0"]


def test_tensorboard_reads_what_was_recorded(tmp_path):
    record(make_loggers(config(tensorboard=True), tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard_logs")).Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("train_loss")][:2] == [(0, 1.0), (1, 0.5)]


def test_a_tracker_that_fails_warns_once_and_is_silent(caplog):
    def fail(*_args) -> None:
        raise ConnectionError("the server\nis away")

    record([Tracker("SwanLab", fail, fail)] * 2)
    assert caplog.text.count("SwanLab stopped recording (the server is away); the training goes on without it") == 1


def test_tensorboard_that_cannot_write_ends_nothing(tmp_path, caplog):
    (tmp_path / "tensorboard_logs").write_text("a file where the folder belongs")
    record(make_loggers(config(tensorboard=True), tmp_path))
    assert caplog.text.count("TensorBoard stopped recording") == 1


SCRIPT = """
import json, logging, os, sys
from pathlib import Path
from loragen_train.configs.fit import DataConfig, FitConfig
from loragen_train.configs.logging import LoggingConfig, SwanLabConfig
from loragen_train.training.tracking import tracked, with_team_of_environment
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
errors = {"success": None, "aborted": KeyboardInterrupt, "crashed": ValueError}
known = dict(os.environ)
for folder, outcome, swanlab, variables in json.loads(sys.argv[1]):
    print("=== run", file=sys.stderr)
    os.environ.clear()
    os.environ.update({**known, **variables})
    before = dict(os.environ)
    Path(folder).mkdir(exist_ok=True)
    logging_config = LoggingConfig(tensorboard=False, swanlab=SwanLabConfig(**swanlab))
    config = FitConfig(data=DataConfig(checkpoint_dir="x"), name="zoo", logging=logging_config)
    try:
        with tracked(with_team_of_environment(config), Path(folder), None) as loggers:
            for logger in loggers:
                for step in range(5):
                    logger.log_metrics({"train_loss": 1 / (step + 1)}, step)
                logger.finalize("success")
            if errors[outcome]:
                raise errors[outcome]("out of luck")
    except (KeyboardInterrupt, ValueError):
        pass
    assert os.environ.get("SWANLAB_PROJECT") == before.get("SWANLAB_PROJECT")
    assert "swanlab" in sys.modules or swanlab.get("mode") == "disabled"
    assert "swanlab" not in sys.modules or swanlab.get("mode") != "disabled"
"""


class Run(NamedTuple):
    """What a run said on standard error, and where SwanLab keeps it."""

    said: str
    logs: Path

    @property
    def content(self) -> bytes:
        (file,) = self.logs.glob("run-*/run-*.swanlab")
        return file.read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Runs of every kind by name, in one process that nobody answers at the terminal of: starting it is what takes."""
    root = tmp_path_factory.mktemp("runs")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # Nothing listens on the discard port; the other takes connections and says nothing.
        nobody, never = (
            {"SWANLAB_API_KEY": "a" * 21, "SWANLAB_API_HOST": f"http://127.0.0.1:{port}"}
            for port in (9, silent.getsockname()[1])
        )
        team = {"project": "ours", "workspace": "team"}
        kinds = {
            "disabled": ("success", {"mode": "disabled"}, {}),
            "without a key": ("success", {}, {}),
            "nobody answers": ("success", {"mode": "online"}, nobody),
            "never answers": ("success", {"mode": "online"}, never),
            "unknown mode": ("success", {}, {"SWANLAB_MODE": "sideways"}),
            "team given": ("success", {"mode": "offline", **team}, {}),
            "team of the environment": (
                *("success", {"mode": "offline"}),
                {f"SWANLAB_{name.upper()}": value for name, value in team.items()},
            ),
            "no project": ("success", {"mode": "offline"}, {}),
        }
        if find_spec("swanboard") is not None:
            local = {
                "first": ("success", {"project": "ours"}, {}),
                "second": ("crashed", {}, {"SWANLAB_PROJECT": "ours"}),
                "third": ("aborted", {}, {"SWANLAB_PROJ_NAME": "ours"}),
            }
            for name, (outcome, given, variables) in local.items():
                kinds[name] = (outcome, {"mode": "local", "experiment_name": name, **given}, variables)
        folders = {
            name: root / ("experiment" if value[1].get("mode") == "local" else name) for name, value in kinds.items()
        }
        words = json.dumps([(str(folders[name]), *value) for name, value in kinds.items()])
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SWANLAB")}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, words],
            env={**environment, "HOME": str(root)},
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = done.stderr.split("=== run\n")[1:]
    return {name: Run(text, folders[name] / "swanlab_logs") for name, text in zip(kinds, said, strict=True)}


@pytest.mark.parametrize("name", ["without a key", "nobody answers", "never answers"])
def test_what_cannot_be_sent_is_kept_offline_with_one_sentence(runs, name):
    said = runs[name].said
    assert said.count("SwanLab cannot be reached (") == 1
    assert ("(there is no key; " in said) is (name == "without a key")
    assert "can be sent with: swanlab sync" in said
    assert "Traceback" not in said
    assert "[HTTP]" not in said
    assert runs[name].content


def test_a_team_of_the_environment_is_part_of_the_configuration(monkeypatch):
    monkeypatch.setenv("SWANLAB_PROJECT", "ours")
    monkeypatch.setenv("SWANLAB_WORKSPACE", "team")
    for mode, given, known in (
        ("online", {}, ("ours", "team")),
        ("online", {"project": "mine"}, ("mine", "team")),
        ("disabled", {}, (None, None)),
    ):
        swanlab = with_team_of_environment(config(mode, **given)).logging.swanlab
        assert (swanlab.project, swanlab.workspace) == known


def test_disabled_writes_nothing_and_an_unknown_mode_ends_nothing(runs):
    assert runs["disabled"].said == ""
    assert not runs["disabled"].logs.exists()
    assert "SwanLab stopped recording (" in runs["unknown mode"].said


def test_local_without_the_dashboard_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_train.training.tracking.find_spec", lambda name: None)
    with pytest.raises(LoragenTrainError, match=r"pip install 'loragen-train\[dashboard\]'"):
        make_loggers(config("local"), tmp_path)


@pytest.fixture(scope="module")
def dashboard(runs):
    """Reads from the dashboard that shows three runs of one folder, each ended otherwise."""
    pytest.importorskip("swanboard", reason="needs the extra 'dashboard'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    watch = [sys.executable, "-m", "swanlab", "watch", str(runs["first"].logs), "--port", str(port)]
    server = subprocess.Popen(watch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(path: str) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                get("project")
                break
            time.sleep(0.2)
        yield get
    finally:
        server.kill()
        server.wait()


def test_the_local_dashboard_shows_runs_states_settings_and_curves(dashboard):
    project = dashboard("project")
    assert project["name"] == "ours"
    # SwanLab's numbers: 1 is success, -1 a crash or an abort.
    states = {run["name"]: run["status"] for run in project["experiments"]}
    assert states == {"first": 1, "second": -1, "third": -1}
    first = next(run["id"] for run in project["experiments"] if run["name"] == "first")
    assert dashboard(f"experiment/{first}")["config"]["data"]["value"]["batch_size"] == 8
    curve = dashboard(f"experiment/{first}/tag/train_loss")["list"]
    assert [(point["index"], round(point["data"], 3)) for point in curve] == [
        (0, 1.0),
        (1, 0.5),
        (2, 0.333),
        (3, 0.25),
        (4, 0.2),
    ]


@pytest.mark.parametrize("name", ["team given", "team of the environment"])
def test_the_team_is_taken_from_the_configuration_or_the_environment(runs, name):
    assert b"ours" in runs[name].content
    assert b"team" in runs[name].content


def test_a_default_project_is_named_after_the_experiment(runs):
    assert b"loragen-zoo" in runs["no project"].content
