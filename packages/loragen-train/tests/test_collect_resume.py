"""Collecting that is stopped at any moment, in this process or in another, and goes on to the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from loragen_infer import LoragenInferError
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig
from loragen_train.zoo.collect import collect
from transformers import Trainer

WEIGHTS = "adapter_model.safetensors"


def weights(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob(WEIGHTS)}


@pytest.fixture(scope="module")
def config(collect_config) -> CollectConfig:
    return collect_config


@pytest.fixture(scope="module")
def zoo(collected) -> SimpleNamespace:
    return collected


def with_output(config: CollectConfig, folder: Path, **changes: object) -> CollectConfig:
    return replace(config, output_dir=str(folder), **changes)


def run_collect(config: CollectConfig, *, code: str = "") -> subprocess.Popen:
    """``loragen-train collect`` in a process of its own, with `code` before it."""
    start = (
        f"import sys\n{code}\n"
        "from loragen_train.cli.main import main\n"
        "sys.exit(main(['collect', '--config', sys.argv[1]]))\n"
    )
    file = Path(config.output_dir).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(asdict(config)))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", start, str(file)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped_at_its_end(self, *args, train=Trainer._inner_training_loop, **kwargs):
    train(self, *args, **kwargs)
    raise KeyboardInterrupt


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    assert path.exists()


# A step that takes its time, so that a signal finds the training where it is meant to.
SLOW = (
    "import time\n"
    "from loragen_train.zoo import train_lora\n"
    "step_end = train_lora._StepProgress.on_step_end\n"
    "def slow(self, *args, **kwargs):\n"
    "    time.sleep(0.3)\n"
    "    step_end(self, *args, **kwargs)\n"
    "train_lora._StepProgress.on_step_end = slow\n"
)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_at_any_moment_goes_on_to_the_same_bits(zoo, config, tmp_path, sent):
    config = with_output(config, tmp_path / "zoo")
    process = run_collect(config, code=SLOW)
    try:
        wait_for(tmp_path / "zoo" / "unfinished" / "spelling" / "checkpoint-4" / "work.json", process)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "loragen-train collect: interrupted; what is finished is kept."
        assert "Traceback" not in said
    assert [path.name for path in (tmp_path / "zoo" / "adapters").iterdir()] == ["sums"]
    # A checkpoint that was being written is no checkpoint.
    half = tmp_path / "zoo" / "unfinished" / "spelling" / "checkpoint-10"
    half.mkdir(exist_ok=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")

    process = run_collect(config)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert re.search(r"spelling: going on after step (4|6|8)\.", said)
    assert out == f"{tmp_path}/zoo/adapters/sums\n{tmp_path}/zoo/adapters/spelling\n"
    assert weights(tmp_path / "zoo") == weights(zoo.root)
    losses = [json.loads((root / "adapters" / "spelling" / "training.json").read_text())["loss"] for root in
              (tmp_path / "zoo", zoo.root)]  # fmt: skip
    assert losses[0] == losses[1]
    assert not (tmp_path / "zoo" / "unfinished").exists()
    assert [path.name for path in (tmp_path / "zoo" / "adapters").iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_task_of_other_settings_starts_over(zoo, config, tmp_path, caplog):
    stale = tmp_path / "unfinished" / "sums"
    (stale / "checkpoint-2").mkdir(parents=True)
    (stale / "begun.json").write_text('{"settings": {}}')
    collect(with_output(config, tmp_path))
    assert "sums was begun with other settings or samples; it starts over" in caplog.text
    assert weights(tmp_path) == weights(zoo.root)


def test_a_training_that_was_stopped_just_before_its_end_is_only_put_in_place(zoo, config, tmp_path, monkeypatch):
    config = with_output(config, tmp_path, tasks=config.tasks[:1])
    with monkeypatch.context() as patch:
        patch.setattr("loragen_train.zoo.collect.checkpoints_of", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect(config)
    assert list((tmp_path / "adapters").iterdir()) == []

    def fail(*args, **kwargs):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr("transformers.Trainer.training_step", fail)
    (folder,) = collect(config)
    assert weights(folder) == weights(zoo.root / "adapters" / "sums")
    record = json.loads((folder / "training.json").read_text())
    assert [row["step"] for row in record["loss"]] == [2, 4, 6, 8, 10]
    assert record["seconds"] >= 0


def test_a_training_that_diverged_just_before_a_stop_is_refused_after_it(config, tmp_path, monkeypatch):
    training = replace(config.training, learning_rate=3e38)
    config = with_output(config, tmp_path, tasks=config.tasks[:1], training=training)
    with monkeypatch.context() as patch:
        patch.setattr("transformers.Trainer._inner_training_loop", stopped_at_its_end)
        with pytest.raises(KeyboardInterrupt):
            collect(config)
    with pytest.raises(LoragenTrainError, match=r"^The training of sums diverged"):
        collect(config)
    assert not (tmp_path / "adapters").exists()


def test_a_second_process_says_that_the_zoo_is_taken(config, tmp_path, make):
    config = with_output(config, tmp_path / "zoo")
    process = run_collect(config, code=SLOW)
    try:
        wait_for(tmp_path / "zoo" / "unfinished" / "sums", process)
        with pytest.raises(LoragenInferError, match=r"^Another process is collecting into .*zoo; wait for it, or"):
            collect(config)
    finally:
        process.kill()
        process.communicate()
    # The lock went with its holder.
    assert len(collect(with_output(config, tmp_path / "zoo", tasks=config.tasks[:1]))) == 1
