"""A whole training on a tiny zoo with the real text encoder: what it leaves, that it can be repeated, how it fails."""

import csv
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hyperconv import GeneratorConfig
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lora_tokenizer import TokenLayout, read_adapter
from loragen_infer import GeneratorBundle, LoraGenerator
from loragen_infer.bundle.bundle import find_bundle
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, ExportConfig, FitConfig, ModelConfig, TaskConfig
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
    assert content["model"]["max_seq_len"] == "auto"
    # Each option once: the width is a key of the model itself.
    assert "hidden_dim" not in content["model"]["generator"]
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


@pytest.mark.parametrize("learning_rate", [1e6, 1e30])
def test_a_training_that_diverges_is_marked_and_never_continued(config, tmp_path, learning_rate, caplog):
    config = short(config, tmp_path, learning_rate=learning_rate, checkpoint_every_n_steps=1)
    with pytest.raises(LoragenTrainError, match=r"^The training diverged \(.*val_loss.*nan.*\); lower") as caught:
        fit(config)
    assert str(caught.value).endswith(f"training.learning_rate, which is {learning_rate}.")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("generator.safetensors"))
    (failed,) = tmp_path.iterdir()
    assert (failed / "checkpoints" / "last.ckpt").is_file()
    with pytest.raises(
        LoragenTrainError, match=rf"--resume {failed}: this experiment has failed: The training diverged"
    ):
        fit(config, resume=str(failed))
    # Another one begins, with the learning rate that is asked for now.
    other = fit(replace(config, training=replace(config.training, learning_rate=1e-3)), resume="auto")
    assert other != failed
    assert yaml.safe_load((other / "config.yaml").read_text())["training"]["learning_rate"] == 1e-3


class Spoil(Callback):
    """Makes the weights worse from the sixth epoch on."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch >= 5:
            with torch.no_grad():
                pl_module.generator.expander.strength.mul_(-2)


@pytest.mark.parametrize("patience", [0, 1])
def test_the_bundle_holds_the_weights_of_the_best_validation(config, tmp_path, patience):
    changes = {"max_epochs": 8, "validate_every_n_epochs": 1, "early_stopping_patience": patience}
    config = short(config, tmp_path, **changes)
    experiment = fit(config, callbacks=[Spoil()])
    seen = losses(experiment, "val_loss")
    assert min(seen) < seen[-1]
    assert (len(seen) < 8) is bool(patience)
    (best,) = (experiment / "checkpoints").glob("epoch=*.ckpt")
    assert f"val_loss={min(seen):.4f}" in best.name
    config = replace(config, output_dir=str(tmp_path / "last"), export=ExportConfig(weights="last"))
    last = fit(config, callbacks=[Spoil()])
    for folder, checkpoint in ((experiment, best), (last, last / "checkpoints" / "last.ckpt")):
        known = torch.load(checkpoint, weights_only=True)["state_dict"]
        exported = GeneratorBundle.load(folder).generator.state_dict()
        assert all(torch.equal(exported[name], known[f"generator.{name}"]) for name in exported)


def test_the_generator_may_be_of_bfloat16_while_targets_and_losses_are_not(config, tmp_path, monkeypatch):
    seen = set()
    original = GeneratorModule.training_step

    def watched(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        seen.add((next(self.generator.parameters()).dtype, self.objective.shift.dtype, batch.tokens.dtype, loss.dtype))
        return loss

    monkeypatch.setattr(GeneratorModule, "training_step", watched)
    half = losses(fit(short(config, tmp_path / "half", precision="bf16-true", max_epochs=10)), "val_loss")
    assert seen == {(torch.bfloat16, torch.float32, torch.float32, torch.float32)}
    full = losses(fit(short(config, tmp_path / "full", max_epochs=10)), "val_loss")
    assert half[-1] == pytest.approx(full[-1], rel=0.1)
    exported = GeneratorBundle.load(next((tmp_path / "half").iterdir())).generator
    assert {value.dtype for value in exported.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipped_gradients_are_trained_on_in_mixed_precision_too(config, tmp_path, precision):
    """Lightning refuses to clip those of a fused optimizer there."""
    train = losses(
        fit(short(config, tmp_path, precision=precision, gradient_clip_val=1.0, max_epochs=10)), "train_loss"
    )
    assert train[-1] < 0.9 * train[0]


def test_every_option_of_the_network_can_be_set(config, tmp_path):
    network = GeneratorConfig(num_basis=3, pooling="attention", film=False)
    made = fit(replace(short(config, tmp_path), model=replace(config.model, generator=network)))
    written = GeneratorBundle.load(made).generator.config
    assert (written.num_basis, written.pooling, written.film, written.hidden_dim) == (3, "attention", False, 16)
    with pytest.raises(
        LoragenTrainError, match=r"model\.generator\.kernel_size is 5, but model\.kernel_size decides it"
    ):
        ModelConfig(generator=GeneratorConfig(kernel_size=5))
    with pytest.raises(LoragenTrainError, match=r"model\.kernel_size is 4, expected an odd integer"):
        ModelConfig(kernel_size=4)


def test_a_generator_of_rank_components(config, tmp_path, make):
    made = fit(replace(short(config, tmp_path), model=ModelConfig(hidden_dim=16, output_dim="auto", transpose_b=True)))
    bundle = GeneratorBundle.load(made)
    assert bundle.layout.transpose_b
    assert (bundle.layout.token_dim, bundle.generator.config.output_dim) == (16, 16)
    record = yaml.safe_load((made / "config.yaml").read_text())
    assert (record["model"]["output_dim"], record["model"]["transpose_b"]) == ("auto", True)
    adapter = LoraGenerator.from_pretrained(made).generate(["What is 1 + 2?"])
    stored = read_adapter(Path(config.data.tasks[0].checkpoint_dir) / "checkpoint-1")
    assert {n: t.shape for n, t in adapter.tensors.items()} == {n: t.shape for n, t in stored.tensors.items()}


def test_a_kernel_that_the_zoo_is_too_small_for_is_refused_before_anything_is_tokenized(config, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenLayout, "encode", None)
    config = replace(short(config, tmp_path), model=replace(config.model, kernel_size=5))
    with pytest.raises(LoragenTrainError, match=r"model\.kernel_size is 5, longer than the axis L of size 3"):
        fit(config)


def test_the_losses_of_single_steps_are_logged_every_so_many(config, tmp_path):
    # Two steps an epoch.
    made = fit(replace(short(config, tmp_path, max_epochs=4), logging=replace(config.logging, every_n_steps=3)))
    with (made / "csv_logs" / "metrics.csv").open() as stream:
        logged = [
            (int(row["step"]), float(row["train_loss_step"]))
            for row in csv.DictReader(stream)
            if row.get("train_loss_step")
        ]
    assert [step for step, _ in logged] == [2, 5]


def test_the_last_steps_of_a_run_are_told_in_the_words_of_this_package_alone(config, tmp_path, caplog):
    caplog.set_level("INFO")
    fit(short(config, tmp_path, validate_every_n_epochs=1))
    assert "weights_only" not in caplog.text


@pytest.mark.parametrize(
    ("tasks", "num_checkpoints", "said"),
    [
        (("sums",), 1, "The zoo has a single checkpoint, so the generator can only learn to repeat it"),
        (("sums", "spelling"), 1, "Each task has a single checkpoint"),
        (("sums", "spelling"), 2, None),
    ],
)
def test_a_zoo_with_little_to_learn_is_a_warning(config, make, tmp_path, caplog, tasks, num_checkpoints, said):
    data = make.zoo(tmp_path, tasks, num_checkpoints)
    data = DataConfig(**{**data, "tasks": [TaskConfig(**task) for task in data["tasks"]]})
    fit(replace(short(config, tmp_path / "out", max_epochs=1), data=data))
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in warned if "checkpoint" in line]) == (said is not None)
    assert said is None or said in " ".join(warned)


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
    for stage, name in (("train", "training_step"), ("val", "validation_step")):
        original = getattr(GeneratorModule, name)

        def watched(self, batch, batch_idx, stage=stage, original=original):
            seen[stage].append(batch.prompts.clone())
            return original(self, batch, batch_idx)

        monkeypatch.setattr(GeneratorModule, name, watched)
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
def test_what_lightning_does_not_know_is_one_sentence_before_anything_is_read(config, tmp_path, monkeypatch, changes):
    monkeypatch.setattr("loragen_train.training.fit.build_setup", None)
    with pytest.raises(
        LoragenTrainError, match=rf"{next(iter(changes.values()))}.*is nothing that Lightning"
    ) as caught:
        fit(short(config, tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB"), "GPU"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"), "machine"),
        (MemoryError(), "machine"),
    ],
)
@pytest.mark.parametrize(("batch_size", "hint"), [(2, "try data.batch_size 1"), (1, "lower model.hidden_dim")])
def test_a_full_memory_is_one_sentence_with_the_batch_size_to_try(
    config, tmp_path, monkeypatch, batch_size, hint, error, where
):
    def run_out(self, batch, batch_idx):
        raise error

    monkeypatch.setattr(GeneratorModule, "training_step", run_out)
    config = replace(short(config, tmp_path), data=replace(config.data, batch_size=batch_size))
    sentence = rf"The {where}'s memory does not hold a step with data\.batch_size {batch_size}; {hint}"
    with pytest.raises(LoragenTrainError, match=sentence):
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
