"""A training that was stopped at any moment goes on to the same bits as one that was not."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from loragen_infer import LoragenInferError
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig, TaskConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.experiments.folder import LAST_CHECKPOINT
from loragen_train.training.environment import slurm_job
from loragen_train.training.fit import fit
from loragen_train.training.module import GeneratorModule
from loragen_train.training.resume import Interrupted

# Four checkpoints in batches of one: four steps an epoch, twelve in all.
NUM_STEPS, BATCHES_PER_EPOCH = 12, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory, make) -> FitConfig:
    root = tmp_path_factory.mktemp("resume")
    data = make.zoo(root)
    return FitConfig(
        data=DataConfig(**{**data, "tasks": [TaskConfig(**task) for task in data["tasks"]], "batch_size": 1}),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=1),
        # Noise and importance make the most of a step depend on what must come back.
        training=TrainingConfig(
            max_epochs=3,
            learning_rate=5e-3,
            accelerator="cpu",
            condition_noise=0.1,
            target_noise=0.1,
            gradient_clip_val=1.0,
            checkpoint_every_n_steps=1,
            validate_every_n_epochs=2,
        ),
        name="resumed",
        output_dir=str(root / "experiments"),
    )


@pytest.fixture(scope="module")
def undisturbed(config) -> dict[str, Path]:
    """The experiment folder without an interruption, by optimizer and accumulation."""
    return {}


def bundle(folder: Path) -> bytes:
    return (folder / "results" / "final_model" / "generator.safetensors").read_bytes()


def rows(folder: Path, column: str) -> list[tuple[str, str]]:
    with (folder / "csv_logs" / "metrics.csv").open() as stream:
        return [(row["step"], row[column]) for row in csv.DictReader(stream) if row[column]]


def stop_after(monkeypatch: pytest.MonkeyPatch, num_batches: int, number: int = signal.SIGINT) -> None:
    """Send a signal in the middle of a step, as a user does."""
    original = GeneratorModule.training_step
    seen = []

    def step(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == num_batches:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GeneratorModule, "training_step", step)


@pytest.fixture
def unfinished(config: FitConfig, tmp_path: Path) -> tuple[FitConfig, Path]:
    """A configuration, and the folder of its training that was stopped after two steps."""
    config = replace(config, output_dir=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            fit(config)
    (folder,) = tmp_path.iterdir()
    return config, folder


# The first step, the ends of epochs without and with validation, one within an epoch, and the last.
@pytest.mark.parametrize("num_batches", [1, 4, 6, 8, NUM_STEPS])
def test_after_ctrl_c_in_any_step_the_end_is_the_same(config, undisturbed, tmp_path, monkeypatch, num_batches):
    if "plain" not in undisturbed:
        undisturbed["plain"] = fit(config)
    config = replace(config, output_dir=str(tmp_path))
    with monkeypatch.context() as patch:
        stop_after(patch, num_batches)
        with pytest.raises(Interrupted) as caught:
            fit(config)
    assert caught.value.signal_number == signal.SIGINT
    (folder,) = tmp_path.iterdir()
    assert not (folder / "results").exists()
    assert torch.load(folder / LAST_CHECKPOINT, weights_only=True)["global_step"] == num_batches
    assert fit(config, resume="auto") == folder
    assert bundle(folder) == bundle(undisturbed["plain"])
    assert rows(folder, "val_loss") == rows(undisturbed["plain"], "val_loss")
    # A clock that began with the machine, and not with the run, would make it a fraction of a thousandth.
    speeds = [float(speed) for _, speed in rows(folder, "samples_per_second")]
    assert len(speeds) == NUM_STEPS // BATCHES_PER_EPOCH
    assert min(speeds) > 0.01
    if num_batches % BATCHES_PER_EPOCH == 0:
        assert rows(folder, "train_loss") == rows(undisturbed["plain"], "train_loss")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_type": "sgd", "scheduler_type": "linear", "early_stopping_patience": 5},
        {"accumulate_grad_batches": 2, "precision": "bf16-true"},
    ],
)
def test_other_schedules_and_accumulation_come_back_too(config, undisturbed, tmp_path, monkeypatch, changes):
    config = replace(config, training=replace(config.training, **changes))
    expected = bundle(fit(replace(config, output_dir=str(tmp_path / "undisturbed"))))
    config = replace(config, output_dir=str(tmp_path / "stopped"))
    for num_batches in (6, 3):
        with monkeypatch.context() as patch:
            stop_after(patch, num_batches, signal.SIGTERM)
            with pytest.raises(Interrupted) as caught:
                fit(config, resume="auto")
        assert caught.value.signal_number == signal.SIGTERM
    assert bundle(fit(config, resume="auto")) == expected


def test_a_training_may_go_on_in_mixed_precision(config, tmp_path, monkeypatch):
    """Its optimizer was a fused one, of which Lightning clips no gradients there."""
    config = replace(config, output_dir=str(tmp_path))
    with monkeypatch.context() as patch:
        stop_after(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            fit(config)
    (folder,) = tmp_path.iterdir()
    mixed = replace(config.training, precision="bf16-mixed", gradient_clip_val=1.0)
    assert fit(replace(config, training=mixed), resume=str(folder)) == folder


def as_here() -> dict[str, str]:
    """An environment with as many threads as here: sums to the bit depend on them, whatever the caller's variables."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


SCRIPT = "import sys; from loragen_train.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_after_kill_9_at_any_moment_the_end_is_the_same(config, undisturbed, tmp_path, make):
    """Real processes, killed without warning, twice over, then left alone."""
    if "plain" not in undisturbed:
        undisturbed["plain"] = fit(config)
    content = {**asdict(config), "output_dir": str(tmp_path / "out")}
    file = tmp_path / "fit.yaml"
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", SCRIPT, "fit", "--config", str(file), "--resume", "auto"]
    saved_at = 0.0
    for _ in range(2):
        process = subprocess.Popen(command, env=as_here(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            found = list((tmp_path / "out").glob(f"*/{LAST_CHECKPOINT}"))
            if found and found[0].exists() and found[0].stat().st_mtime > saved_at:
                saved_at = found[0].stat().st_mtime
                break
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert subprocess.run(command, env=as_here(), check=False, capture_output=True).returncode == 0
    (folder,) = (tmp_path / "out").iterdir()
    assert bundle(folder) == bundle(undisturbed["plain"])


def test_slurms_notice_puts_the_job_back_and_it_goes_on(config, undisturbed, tmp_path):
    if "plain" not in undisturbed:
        undisturbed["plain"] = fit(config)
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    scontrol.chmod(0o755)
    file = tmp_path / "fit.yaml"
    file.write_text(yaml.safe_dump({**asdict(config), "output_dir": str(tmp_path / "out")}))
    job = {"JOB_ID": "42", "JOB_NAME": "fit", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    environment = {**as_here(), **{f"SLURM_{name}": value for name, value in job.items()}}
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    notice = (
        "import os, signal; from loragen_train.training.module import GeneratorModule as M; step = M.training_step\n"
        "def noticed(self, batch, batch_idx):\n"
        "    if self.global_step == 4: os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    return step(self, batch, batch_idx)\n"
        "M.training_step = noticed\n"
    )
    command = [sys.executable, "-c", notice + SCRIPT, "fit", "--config", str(file), "--resume", "auto"]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert (tmp_path / "said").read_text() == "requeue 42\n"
    command[2] = SCRIPT
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert bundle(folder) == bundle(undisturbed["plain"])


def test_nothing_to_resume_starts_anew_and_a_finished_run_is_not_touched(config, tmp_path):
    config = replace(config, output_dir=str(tmp_path), training=replace(config.training, max_epochs=1))
    first = fit(config, resume="auto")
    before = bundle(first)
    second = fit(config, resume="auto")
    assert first != second
    assert bundle(first) == before == bundle(second)
    with pytest.raises(LoragenTrainError, match=f"--resume {first}: this experiment is finished; its model is"):
        fit(config, resume=str(first))


def test_a_folder_without_a_checkpoint_is_named(config, tmp_path):
    with pytest.raises(LoragenTrainError, match=r"--resume .* holds no checkpoints/last.ckpt"):
        fit(config, resume=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe"])
def test_a_damaged_config_is_named(unfinished, content):
    config, folder = unfinished
    (folder / "config.yaml").write_bytes(content)
    with pytest.raises(LoragenTrainError, match=r"config\.yaml cannot be read \(.*\); resume needs it"):
        fit(config, resume=str(folder))


def test_weights_without_a_state_are_no_place_to_go_on_from(unfinished):
    config, folder = unfinished
    best = folder / "checkpoints" / "epoch=0-val_loss=1.0.ckpt"
    best.write_bytes(b"")
    with pytest.raises(LoragenTrainError, match=rf"{best.name} holds weights only; give .*{LAST_CHECKPOINT}, or the"):
        fit(config, resume=str(best))


def test_nothing_is_said_of_going_on_where_nothing_was_saved(config, tmp_path, caplog):
    class Stop(Callback):
        def on_train_start(self, trainer, pl_module):
            raise KeyboardInterrupt

    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        fit(replace(config, output_dir=str(tmp_path)), callbacks=[Stop()])
    assert "Experiment: " in caplog.text
    assert "Go on with" not in caplog.text


def test_a_damaged_checkpoint_is_one_sentence(unfinished):
    config, folder = unfinished
    file = folder / LAST_CHECKPOINT
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(LoragenTrainError, match=r"last\.ckpt cannot be read .*; ") as caught:
        fit(config, resume="auto")
    assert "\n" not in str(caught.value)


def test_a_changed_configuration_is_refused_under_auto_and_a_warning_for_a_folder(unfinished, caplog):
    config, folder = unfinished
    before = (folder / LAST_CHECKPOINT).read_bytes()
    changed = replace(config, training=replace(config.training, weight_decay=0.5))
    difference = "training.weight_decay was 0.01 and is 0.5"
    with pytest.raises(
        LoragenTrainError, match=rf"begun with another configuration: {difference}\. .* --resume {folder}"
    ):
        fit(changed, resume="auto")
    assert (folder / LAST_CHECKPOINT).read_bytes() == before
    caplog.clear()
    # What decides nothing of the result may change.
    assert fit(replace(changed, data=replace(config.data, cache_tokenized=False)), resume=str(folder)) == folder
    assert [record.message for record in caplog.records if "Resuming with" in record.message] == [
        f"Resuming with a changed configuration: {difference}."
    ]


def test_two_live_runs_never_share_a_folder(unfinished):
    config, folder = unfinished
    refused = []

    class SecondRun(Callback):
        def on_train_start(self, trainer, pl_module):
            for resume in ("auto", str(folder)):
                with pytest.raises(LoragenInferError, match=f"Another process is training {folder}; wait for it") as no:
                    fit(config, resume=resume)
                refused.append(no)

    assert fit(config, resume="auto", callbacks=[SecondRun()]) == folder
    assert len(refused) == 2


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "42"}, "42"),
        ({"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "1"}, "42_1"),
    ],
)
def test_of_a_slurm_array_only_the_member_goes_back_into_the_queue(monkeypatch, variables, job):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert slurm_job() == job
