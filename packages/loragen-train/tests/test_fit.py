"""A whole training on a tiny zoo with the real text encoder: what it leaves, that it can be repeated, how it fails."""

import csv
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lora_tokenizer import read_adapter
from loragen_infer import GeneratorBundle, LoraGenerator
from loragen_infer.bundle.bundle import find_bundle
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig, TaskConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.fit import fit
from loragen_train.training.module import GeneratorModule


@pytest.fixture(scope="module")
def config(tmp_path_factory, make) -> FitConfig:
    root = tmp_path_factory.mktemp("fit")
    data = make.zoo(root)
    return FitConfig(
        data=DataConfig(**{**data, "tasks": [TaskConfig(**task) for task in data["tasks"]]}),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=1),
        training=TrainingConfig(max_epochs=40, learning_rate=5e-3, accelerator="cpu", seed=1),
        name="tiny",
        output_dir=str(root / "experiments"),
    )


@pytest.fixture(scope="module")
def experiment(config) -> Path:
    return fit(config)


def short(config: FitConfig, folder: Path, **training: object) -> FitConfig:
    values = {"max_epochs": 3, **training}
    return replace(config, output_dir=str(folder), training=replace(config.training, **values))


def losses(experiment: Path, column: str) -> list[float]:
    with (experiment / "csv_logs" / "metrics.csv").open() as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if row.get(column)]


def test_the_experiment_folder_holds_what_it_should(experiment, config):
    assert experiment.parent == Path(config.output_dir)
    assert re.fullmatch(r"tiny_\d{8}_\d{6}", experiment.name)
    assert {path.name for path in experiment.iterdir()} >= {"config.yaml", "checkpoints", "csv_logs", "results"}
    assert (experiment / "checkpoints" / "last.ckpt").is_file()
    assert find_bundle(experiment) == experiment / "results" / "final_model" / "generator.safetensors"


def test_the_loss_falls(experiment):
    train, val = losses(experiment, "train_loss"), losses(experiment, "val_loss")
    assert (len(train), len(val)) == (40, 10)
    assert train[-1] < 0.5 * train[0]
    assert val[-1] < 0.5 * train[0]


def test_the_bundle_writes_the_adapter_of_the_task_that_the_prompts_are_of(experiment, config, make, questions):
    generator = LoraGenerator.from_pretrained(experiment)
    for task, other in [("sums", "spelling"), ("spelling", "sums")]:
        rows = make.read(Path(config.data.prompts_dir) / "val_prompts.jsonl")
        adapter = generator.generate([row["prompt"] for row in rows if row["task"] == task])
        stored = {
            name: read_adapter(Path(config.data.tasks[0].checkpoint_dir).parent / name / "checkpoint-1")
            for name in (task, other)
        }
        assert adapter.config == stored[task].config
        distance = {
            name: sum((adapter.tensors[key] - value).square().sum().item() for key, value in known.tensors.items())
            for name, known in stored.items()
        }
        assert distance[task] < 0.5 * distance[other]


def test_the_config_in_the_folder_is_the_config(experiment, config):
    content = yaml.safe_load((experiment / "config.yaml").read_text())
    assert content["training"]["seed"] == 1
    assert content["data"]["tasks"][1]["name"] == "spelling"
    assert content["model"]["max_seq_len"] == 512
    assert content["name"] == "tiny"


def test_two_runs_of_one_second_get_two_folders_and_the_same_generator(config, tmp_path, monkeypatch):
    class Clock:
        @staticmethod
        def now():
            import datetime

            return datetime.datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("loragen_train.experiments.folder.datetime", Clock)
    folders = [fit(short(config, tmp_path)) for _ in range(2)]
    assert [folder.name for folder in folders] == ["tiny_20260102_030405", "tiny_20260102_030405_2"]
    one, two = (GeneratorBundle.load(folder) for folder in folders)
    weights, again = one.generator.state_dict(), two.generator.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert one.fingerprint == two.fingerprint
    assert losses(folders[0], "train_loss") == losses(folders[1], "train_loss")

    other = GeneratorBundle.load(fit(short(config, tmp_path, seed=2)))
    assert other.fingerprint != one.fingerprint


def test_a_training_that_diverges_writes_no_bundle(config, tmp_path):
    for learning_rate in (1e6, 1e30):
        with pytest.raises(
            LoragenTrainError, match=r"^The training diverged \(.* val_loss, nan, .*\); lower training\.learning_rate"
        ) as caught:
            fit(short(config, tmp_path, learning_rate=learning_rate))
        assert str(caught.value).endswith(f"which is {learning_rate}.")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("generator.safetensors"))


def test_the_last_epoch_is_validated_whatever_the_interval(config, tmp_path):
    # Of 7 epochs every third is validated, and the last.
    experiment = fit(short(config, tmp_path, max_epochs=7, validate_every_n_epochs=3))
    with (experiment / "csv_logs" / "metrics.csv").open() as stream:
        validated = [int(row["epoch"]) for row in csv.DictReader(stream) if row["val_loss"]]
    assert validated == [2, 5, 6]


def test_an_interrupt_is_a_keyboard_interrupt_and_the_next_is_heard(config, tmp_path, monkeypatch):
    def stop(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(GeneratorModule, "training_step", stop)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(short(config, tmp_path))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(tmp_path.rglob("generator.safetensors"))


def test_epochs_draw_new_prompts_and_validation_the_same(config, tmp_path, monkeypatch):
    seen = {"train": [], "val": []}
    original = GeneratorModule._step

    def watched(self, batch, stage, **options):
        seen[stage].append(batch.prompts.clone())
        return original(self, batch, stage, **options)

    monkeypatch.setattr(GeneratorModule, "_step", watched)
    fit(short(config, tmp_path))
    # Four checkpoints in batches of two: two batches an epoch, over three epochs.
    assert {stage: len(batches) for stage, batches in seen.items()} == {"train": 6, "val": 6}
    assert not torch.equal(torch.cat(seen["train"][:2]), torch.cat(seen["train"][2:4]))
    assert torch.equal(torch.cat(seen["val"][:2]), torch.cat(seen["val"][2:4]))


def test_a_task_in_one_prompt_file_only_is_named(config, make, tmp_path):
    for part, tasks in {"train": ("sums", "spelling"), "val": ("sums",)}.items():
        make.rows(tmp_path / f"{part}_prompts.jsonl", [{"task": task, "prompt": "x"} for task in tasks])
    data = replace(config.data, prompts_dir=str(tmp_path))
    with pytest.raises(LoragenTrainError, match="The task 'spelling' is in only one of the two prompt files in "):
        fit(replace(config, data=data))


@pytest.mark.parametrize("changes", [{"precision": "half-true"}, {"accelerator": "abacus"}])
def test_what_lightning_does_not_know_is_one_sentence(config, tmp_path, changes):
    with pytest.raises(
        LoragenTrainError, match=rf"{next(iter(changes.values()))}.*is nothing that Lightning"
    ) as caught:
        fit(short(config, tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch_size", "hint"), [(2, "try data.batch_size 1"), (1, "lower model.hidden_dim")])
def test_a_full_gpu_is_one_sentence_with_the_batch_size_to_try(config, tmp_path, monkeypatch, batch_size, hint):
    def run_out(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(GeneratorModule, "training_step", run_out)
    config = replace(short(config, tmp_path), data=replace(config.data, batch_size=batch_size))
    with pytest.raises(LoragenTrainError, match=rf"does not hold a step with data\.batch_size {batch_size}; {hint}"):
        fit(config)


def test_an_output_folder_that_is_a_file_is_one_sentence(config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LoragenTrainError, match=r"file/tiny_.* cannot be made: Not a directory; choose another output"):
        fit(short(config, tmp_path / "file"))


def test_an_exit_that_is_no_interrupt_stays_one(config, tmp_path, monkeypatch):
    def leave(self, *args, **kwargs):
        raise SystemExit(7)

    monkeypatch.setattr(Trainer, "fit", leave)
    with pytest.raises(SystemExit, match="7"):
        fit(short(config, tmp_path))
