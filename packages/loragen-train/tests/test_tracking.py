"""Trackers: what they record, that the run's state is right, and that none of them can end a training."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig
from loragen_train.configs.logging import LoggingConfig, SwanLabConfig
from loragen_train.training.tracking import Tracker, make_trackers, with_team_of_environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def config(mode: str = "disabled", *, tensorboard: bool = False, **swanlab: str) -> FitConfig:
    logging = LoggingConfig(tensorboard=tensorboard, swanlab=SwanLabConfig(mode=mode, **swanlab))
    return FitConfig(data=DataConfig(checkpoint_dir="x"), logging=logging, name="zoo")


def record(trackers: list[Tracker], outcome: str = "success") -> None:
    for tracker in trackers:
        tracker.log_hyperparams({"data": {"batch_size": 4}})
        for step in range(5):
            tracker.log_metrics({"train_loss": 1 / (step + 1)}, step)
        tracker.finalize("success")
        tracker.close(outcome, "out of luck" if outcome == "crashed" else None)


def test_the_csv_log_goes_on_where_a_resumed_run_does(tmp_path):
    record(make_trackers(config(), tmp_path))
    file = tmp_path / "csv_logs" / "metrics.csv"
    before = file.read_text().splitlines()
    assert len(before) == 6
    (tracker,) = make_trackers(config(), tmp_path, resumed_step=3)
    tracker.log_metrics({"train_loss": 7.0, "val_loss": 8.0}, 3)
    tracker.finalize("success")
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert rows[0] == ["step", "train_loss", "val_loss"]
    assert [row[0] for row in rows[1:]] == ["0", "1", "2", "3"]
    assert rows[-1] == ["3", "7.0", "8.0"]


def test_tensorboard_reads_what_was_recorded(tmp_path):
    record(make_trackers(config(tensorboard=True), tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard_logs")).Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("train_loss")][:2] == [(0, 1.0), (1, 0.5)]


def test_a_tracker_that_fails_warns_once_and_is_silent(caplog):
    def fail() -> None:
        raise ConnectionError("the server\nis away")

    tracker = Tracker("Somebody's tracker", fail)
    record([tracker, tracker])
    assert caplog.text.count("stopped recording (the server is away); the training goes on without it") == 1


SCRIPT = """
import json, logging, os, sys
from pathlib import Path
from loragen_train.configs.fit import DataConfig, FitConfig
from loragen_train.configs.logging import LoggingConfig, SwanLabConfig
from loragen_train.training.tracking import tracked, with_team_of_environment
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
folder, outcome, swanlab = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
config = FitConfig(
    data=DataConfig(checkpoint_dir="x"), name="zoo",
    logging=LoggingConfig(tensorboard=False, swanlab=SwanLabConfig(**swanlab)),
)
before = dict(os.environ)
config = with_team_of_environment(config)
errors = {"success": None, "aborted": KeyboardInterrupt, "crashed": ValueError}
try:
    with tracked(config, folder, None) as trackers:
        for tracker in trackers:
            for step in range(5):
                tracker.log_metrics({"train_loss": 1 / (step + 1)}, step)
            tracker.finalize("success")
        if errors[outcome]:
            raise errors[outcome]("out of luck")
except (KeyboardInterrupt, ValueError):
    pass
assert os.environ.get("SWANLAB_PROJECT") == before.get("SWANLAB_PROJECT")
assert ("swanlab" in sys.modules) == (swanlab.get("mode") != "disabled")
"""


def in_a_process(folder: Path, outcome: str, swanlab: dict, **environment: str) -> str:
    """Record in a process of its own, whose terminal nobody answers at; returns what it said."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("SWANLAB")}
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), outcome, json.dumps(swanlab)],
        env={**known, "HOME": str(folder), **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == ""
    return done.stderr


def test_without_a_key_the_run_is_kept_offline_with_one_warning(tmp_path):
    said = in_a_process(tmp_path / "run", "success", {})
    assert said.count("SwanLab cannot be reached (there is no key; ") == 1
    assert "can be sent with: swanlab sync" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert list((tmp_path / "run" / "swanlab_logs").glob("run-*/run-*.swanlab"))


@pytest.mark.parametrize("answers", ["nobody", "never"])
def test_without_a_network_the_run_is_kept_offline_with_one_sentence(tmp_path, answers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # Nothing listens on the discard port; the other takes connections and says nothing.
        port = 9 if answers == "nobody" else silent.getsockname()[1]
        address = {"SWANLAB_API_KEY": "a" * 21, "SWANLAB_API_HOST": f"http://127.0.0.1:{port}"}
        said = in_a_process(tmp_path / "run", "success", {"mode": "online"}, **address)
    assert said.count("SwanLab cannot be reached (") == 1
    assert "[HTTP]" not in said
    assert list((tmp_path / "run" / "swanlab_logs").glob("run-*/run-*.swanlab"))


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


def test_disabled_writes_nothing_and_an_unknown_mode_ends_nothing(tmp_path):
    assert in_a_process(tmp_path / "run", "success", {"mode": "disabled"}) == ""
    assert not (tmp_path / "run" / "swanlab_logs").exists()
    said = in_a_process(tmp_path / "other", "success", {}, SWANLAB_MODE="sideways")
    assert "SwanLab stopped recording (" in said


def test_local_without_the_dashboard_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_train.training.tracking.find_spec", lambda name: None)
    with pytest.raises(LoragenTrainError, match=r"pip install 'loragen-train\[dashboard\]'"):
        make_trackers(config("local"), tmp_path)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """Four runs in one folder, each ended otherwise, and the address of the dashboard that shows them."""
    pytest.importorskip("swanboard", reason="needs the extra 'dashboard'")
    root = tmp_path_factory.mktemp("dashboard")
    folder = root / "experiment"
    for outcome, given, variables in (
        ("success", {"project": "ours", "experiment_name": "first"}, {}),
        ("crashed", {"experiment_name": "second"}, {"SWANLAB_PROJECT": "ours"}),
        ("aborted", {"experiment_name": "third"}, {"SWANLAB_PROJ_NAME": "ours"}),
    ):
        in_a_process(folder, outcome, {"mode": "local", **given}, **variables)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    watch = [sys.executable, "-m", "swanlab", "watch", str(folder / "swanlab_logs"), "--port", str(port)]
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


def test_the_team_is_taken_from_the_configuration_or_the_environment(tmp_path):
    for number, (given, variables) in enumerate(
        [({"project": "ours", "workspace": "team"}, {}), ({}, {"SWANLAB_PROJECT": "ours", "SWANLAB_WORKSPACE": "team"})]
    ):
        folder = tmp_path / str(number)
        in_a_process(folder, "success", {"mode": "offline", **given}, **variables)
        (file,) = (folder / "swanlab_logs").glob("run-*/run-*.swanlab")
        content = file.read_bytes()
        assert b"ours" in content
        assert b"team" in content


def test_a_default_project_is_named_after_the_experiment(tmp_path):
    in_a_process(tmp_path / "run", "success", {"mode": "offline"})
    (file,) = (tmp_path / "run" / "swanlab_logs").glob("run-*/run-*.swanlab")
    assert b"loragen-zoo" in file.read_bytes()
    assert replace(config(), name="other").name == "other"
