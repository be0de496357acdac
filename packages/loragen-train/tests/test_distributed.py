"""Two processes train what one does with the same global batch, and only one of them writes."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from loragen_infer import GeneratorBundle


@pytest.fixture(scope="module")
def content(tmp_path_factory, make) -> dict:
    root = tmp_path_factory.mktemp("distributed")
    return {
        "data": make.zoo(root),
        "model": {"hidden_dim": 16, "output_dim": 16, "num_hyperconv_blocks": 1},
        "training": {"max_epochs": 4, "accelerator": "cpu", "learning_rate": 5e-3},
        "name": "shared",
    }


def run(
    content: dict,
    folder: Path,
    *words: str,
    launcher: tuple[str, ...] = (sys.executable,),
    failed: str | None = None,
) -> Path:
    folder.mkdir()
    config = folder / "fit.yaml"
    config.write_text(yaml.safe_dump({**content, "output_dir": str(folder / "out")}))
    command = [*launcher, "-m", "loragen_train.cli", "fit", "--config", str(config), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    (experiment,) = (folder / "out").iterdir()
    if failed is None:
        assert done.returncode == 0, done.stderr
        # The one line on standard output is the writer's.
        assert done.stdout.splitlines() == [str(experiment)]
    else:
        assert done.returncode != 0
        assert re.search(failed, done.stderr), done.stderr
    return experiment


def losses(experiment: Path, column: str) -> list[float]:
    with (experiment / "csv_logs" / "metrics.csv").open() as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if row[column]]


TWO = ("--training.devices", "2", "--training.strategy", "ddp", "--data.batch_size", "1")


@pytest.fixture(scope="module")
def alone(content, tmp_path_factory) -> Path:
    return run(content, tmp_path_factory.mktemp("one") / "run", "--data.batch_size", "2")


def test_validation_is_the_same_for_any_batch_size_and_for_two_processes(make, tmp_path):
    # Five checkpoints fill no batch of two; the weights stay as they begin.
    root = tmp_path / "zoo"
    data = make.zoo(root, ("sums", "spelling", "capitals", "more", "last"), 1)
    content = {
        "data": data,
        "model": {"hidden_dim": 16, "output_dim": 16, "num_hyperconv_blocks": 1},
        "training": {"max_epochs": 1, "accelerator": "cpu", "learning_rate": 1e-20, "weight_decay": 0.0},
        "name": "same",
    }
    seen = []
    for name, words in {"1": (), "2": (), "5": (), "2 processes": TWO[:4]}.items():
        size = name[0]
        experiment = run(content, tmp_path / name, *words, "--data.batch_size", size)
        with (experiment / "csv_logs" / "metrics.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("val_loss")]
        seen.append({key: float(value) for key, value in rows[-1].items() if key.startswith("val_")})
    assert len(seen[0]) == 13
    for others in seen[1:]:
        assert others == pytest.approx(seen[0], rel=1e-5)


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_are_one_with_the_same_global_batch(content, alone, tmp_path, launcher):
    words = (sys.executable,)
    if launcher == "torchrun":
        words = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = run(content, tmp_path / "run", *TWO, launcher=words)
    for column in ("train_loss", "val_loss", "val_weight_cosine", "learning_rate"):
        assert losses(two, column) == pytest.approx(losses(alone, column), rel=2e-3, abs=1e-7)
    one, other = (GeneratorBundle.load(folder).generator.state_dict() for folder in (alone, two))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-3)


# The command, whose weights are spoiled in the second epoch.
SPOILED = """
import sys
import torch
from loragen_train.cli.main import main
from loragen_train.training.module import GeneratorModule

def spoil(self, batch, batch_idx):
    if self.current_epoch == 1:
        with torch.no_grad():
            next(self.generator.parameters()).fill_(torch.nan)

GeneratorModule.on_train_batch_start = spoil
sys.exit(main(sys.argv[sys.argv.index("fit"):]))
"""


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_what_was_best_before_two_processes_diverged_is_exported(content, tmp_path, launcher):
    script = tmp_path / "spoiled.py"
    script.write_text(SPOILED)
    words = (sys.executable, str(script))
    if launcher == "torchrun":
        words = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script))
    said = r"The training diverged \(.*What was best by then \(best val_loss [\d.]+\) is in "
    experiment = run(content, tmp_path / "run", *TWO, launcher=words, failed=said)
    weights = GeneratorBundle.load(experiment).generator.state_dict()
    assert all(value.isfinite().all() for value in weights.values())
    assert (experiment / "failed.txt").is_file()


def test_a_trained_encoder_goes_into_the_bundle_and_the_processes_agree(content, tmp_path):
    content = {**content, "model": {**content["model"], "freeze_text_encoder": False}}
    content["training"] = {**content["training"], "max_epochs": 1, "learning_rate": 1e-4}
    two = GeneratorBundle.load(run(content, tmp_path / "two", *TWO))
    one = GeneratorBundle.load(run(content, tmp_path / "one", "--data.batch_size", "2"))
    assert one.text_encoder_state is not None
    assert two.text_encoder_state.keys() == one.text_encoder_state.keys()
    changed = 0
    from loragen_infer import PromptEncoder

    before = PromptEncoder(one.text_encoder_name).module.state_dict()
    changed = sum(not torch.equal(before[name], value) for name, value in one.text_encoder_state.items())
    assert changed > 50


def test_two_processes_share_the_tasks_of_a_step_through_the_language_model(make, tmp_path, tiny_lm):
    make.manifest(tmp_path / "zoo", ("sums", "spelling", "capitals"), base_model=tiny_lm, capitals={"adapters": []})
    content = {
        "data": {"zoo": str(tmp_path / "zoo"), "cache_dir": str(tmp_path / "cache"), "prompts_per_condition": 3},
        "model": {"hidden_dim": 16, "output_dim": 16, "num_hyperconv_blocks": 0},
        "training": {
            "objective": "lm",
            "max_epochs": 3,
            "accelerator": "cpu",
            "learning_rate": 5e-3,
            "lm": {"samples_per_task": 2, "precision": "fp32"},
        },
        "name": "shared",
    }
    one = run(content, tmp_path / "one", "--training.lm.tasks_per_step", "2")
    words = ("--training.devices", "2", "--training.strategy", "ddp", "--training.lm.tasks_per_step", "1")
    two = run(content, tmp_path / "two", *words)
    for column in ("train_loss", "val_loss"):
        assert losses(two, column) == pytest.approx(losses(one, column), rel=1e-4)
    assert losses(one, "train_loss")[0] != losses(one, "train_loss")[-1]
