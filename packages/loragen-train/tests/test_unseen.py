"""Held-out tasks are watched while a generator trains: what is scored, what it decides, and that training sees none."""

import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lora_tokenizer import LoraAdapter, read_adapter, write_adapter
from loragen_infer import GeneratorBundle, LoraGenerator
from loragen_infer.adapters import adapter_attached
from loragen_infer.likelihood import response_nll
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import prompt_hash, tokenize_example
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, ExportConfig, FitConfig, ModelConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.configs.unseen import UnseenConfig
from loragen_train.training import fit as fit_module
from loragen_train.training.fit import fit
from loragen_train.training.module import GeneratorModule
from loragen_train.training.resume import Interrupted
from loragen_train.training.unseen import UnseenTasks
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.held_out import read_held_out
from transformers import LlamaConfig, LlamaForCausalLM

HELD_OUT = ("capitals", "more", "last")


def write_zoo(root: Path, make, base_model: Path, **changes: dict) -> Path:
    """Two tasks to train on, with adapters of ``base_model``, and three held out."""
    held_out = {name: {"held_out": True, "adapters": [], **changes.get(name, {})} for name in HELD_OUT}
    manifest = make.manifest(root, ("sums", "spelling", *HELD_OUT), **held_out)
    for seed, task in enumerate(manifest.training_tasks):
        for number, path in enumerate(task.adapters):
            adapter, noise = (make.adapter(seed=index, num_layers=2) for index in (seed, 100 + 10 * seed + number))
            tensors = {name: 0.3 * value + 0.03 * noise.tensors[name] for name, value in adapter.tensors.items()}
            write_adapter(LoraAdapter(config=adapter.config, tensors=tensors), root / path, overwrite=True)
    replace(manifest, base_model=str(base_model)).write()
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory, make, tiny_lm) -> FitConfig:
    root = tmp_path_factory.mktemp("unseen")
    zoo = write_zoo(root / "zoo", make, tiny_lm)
    return FitConfig(
        data=DataConfig(zoo=str(zoo), batch_size=2, prompts_per_condition=4, cache_dir=str(root / "cache")),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=1, kernel_size=1),
        training=TrainingConfig(
            max_epochs=5, learning_rate=5e-3, accelerator="cpu", validate_every_n_epochs=1, checkpoint_every_n_steps=1
        ),
        name="watched",
        output_dir=str(root / "experiments"),
    )


def changed(config: FitConfig, folder: Path, *, unseen: UnseenConfig | None = None, **training: object) -> FitConfig:
    training = {**training, **({} if unseen is None else {"unseen": unseen})}
    return replace(config, output_dir=str(folder), training=replace(config.training, **training))


@pytest.fixture(scope="module")
def experiment(config) -> Path:
    return fit(config)


def values(experiment: Path, column: str) -> list[float]:
    with (experiment / "csv_logs" / "metrics.csv").open() as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if row.get(column)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return GeneratorBundle.load(folder).generator.state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def of_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    state = torch.load(file, weights_only=True)["state_dict"]
    return {name.removeprefix("generator."): value for name, value in state.items() if name.startswith("generator.")}


def test_the_start_and_every_validation_are_logged(experiment):
    for column in ("val_unseen_nll", "val_steering_margin"):
        assert len(values(experiment, column)) == 6
        assert all(map(math.isfinite, values(experiment, column)))
    assert len(values(experiment, "val_loss")) == 5


@pytest.mark.parametrize("patience", [0, 1])
def test_the_lowest_nll_of_unseen_tasks_chooses_the_weights_and_stops(config, tmp_path, monkeypatch, patience):
    # Whatever the tiny network does, the second validation is by far the best: first a rehearsal, then the start.
    original, added = FrozenModel.mean_nll, iter([0, 300, 200, 0, 100, 200, 100])

    def shifted(self, adapters, tests):
        shift = next(added)
        return [nll + shift for nll in original(self, adapters, tests)]

    monkeypatch.setattr(FrozenModel, "mean_nll", shifted)
    made = fit(changed(config, tmp_path, early_stopping_patience=patience))
    _, *seen = values(made, "val_unseen_nll")
    val_losses = values(made, "val_loss")
    assert seen.index(min(seen)) == 1 != val_losses.index(min(val_losses))
    assert len(seen) == (3 if patience else 5)
    (file,) = (made / "checkpoints").glob("epoch=*.ckpt")
    assert file.name == f"epoch=1-val_unseen_nll={seen[1]:.4f}.ckpt"
    assert equal(weights(made), of_checkpoint(file))


@pytest.fixture
def second_is_best(monkeypatch):
    """Whatever the tiny network does, the second validation is by far the best."""
    original, added = FrozenModel.mean_nll, iter([0, 300, 200, 0])

    def shifted(self, adapters, tests):
        shift = next(added, 200)
        return [nll + shift for nll in original(self, adapters, tests)]

    monkeypatch.setattr(FrozenModel, "mean_nll", shifted)


def interrupted(config: FitConfig, folder: Path, *, epoch: int) -> Path:
    """The experiment, alone in ``folder``, of a training that Ctrl+C stops after the first step of that epoch."""

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == epoch:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(config, callbacks=[Stop()])
    (experiment,) = folder.iterdir()
    return experiment


@pytest.mark.usefixtures("second_is_best")
def test_a_training_that_stopped_early_takes_no_step_more_when_its_results_are_to_be_written(
    config, tmp_path, monkeypatch
):
    def fail(*_args, **_options):
        raise OSError("the disk is full")

    config = changed(config, tmp_path, early_stopping_patience=1)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "write_results", fail)
        with pytest.raises(OSError, match="disk is full"):
            fit(config)
    monkeypatch.setattr(GeneratorModule, "training_step", lambda *_: pytest.fail("a step is taken"))
    folder = fit(config, resume="auto")
    assert len(values(folder, "val_unseen_nll")) == 4
    (file,) = (folder / "checkpoints").glob("epoch=*.ckpt")
    assert equal(weights(folder), of_checkpoint(file))


@pytest.mark.usefixtures("second_is_best")
def test_an_experiment_that_was_moved_knows_what_was_best(config, tmp_path):
    config = changed(config, tmp_path)
    folder = interrupted(config, tmp_path, epoch=3)
    moved = folder.rename(tmp_path / "moved")
    assert fit(config, resume=str(moved)) == moved
    (file,) = (moved / "checkpoints").glob("epoch=*.ckpt")
    assert file.name.startswith("epoch=1-")
    assert equal(weights(moved), of_checkpoint(file))


def test_where_no_validation_is_better_than_the_start_its_weights_are_the_best(config, tmp_path, caplog):
    made = fit(changed(config, tmp_path, learning_rate=1e-20, weight_decay=0.0, max_epochs=2))
    assert equal(weights(made), of_checkpoint(made / "checkpoints" / "start.ckpt"))
    assert "No validation was better than the start" in caplog.text


def test_the_bundle_names_the_base_model_of_the_zoo_whatever_its_adapters_name(config, experiment, tiny_lm):
    manifest = ZooManifest.read(config.data.zoo)
    (named,) = {read_adapter(manifest.path(path)).config.base_model_name_or_path for path in manifest.tasks[0].adapters}
    assert GeneratorBundle.load(experiment).base_model == str(tiny_lm) != named


def test_the_values_are_those_of_the_adapters_that_the_bundle_writes(config, tmp_path, tiny_lm):
    made = fit(replace(changed(config, tmp_path, max_epochs=2), export=ExportConfig(weights="last")))
    model, tokenizer = load_base_model(str(tiny_lm))
    watched = read_held_out(ZooManifest.read(config.data.zoo), config.data, max_samples=16, test_hashes=(), seen=())
    generator = LoraGenerator.from_pretrained(made)
    adapters = [generator.generate(task.prompts) for task in watched]

    def nll(adapter, task) -> float:
        items = [tokenize_example(tokenizer, test) for test in task.tests]
        with adapter_attached(model, adapter) as adapted, torch.no_grad():
            total = sum(float(response_nll(adapted, [item], padding=0)) for item in items)
        return total / sum(len(item.response_ids) for item in items)

    own = [nll(adapter, task) for adapter, task in zip(adapters, watched, strict=True)]
    wrong = [nll(adapter, task) for adapter, task in zip([*adapters[1:], adapters[0]], watched, strict=True)]
    assert values(made, "val_unseen_nll")[-1] == pytest.approx(sum(own) / 3, rel=1e-4)
    assert values(made, "val_steering_margin")[-1] == pytest.approx((sum(wrong) - sum(own)) / 3, rel=1e-3, abs=1e-5)


def test_training_sees_nothing_of_held_out_tasks(config, tmp_path, make, tiny_lm, monkeypatch):
    seen = []
    original = GeneratorModule._loss

    def watched(self, batch, *args, **kwargs):
        seen.append(batch.prompts)
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(GeneratorModule, "_loss", watched)
    last = replace(changed(config, tmp_path / "on", max_epochs=2), export=ExportConfig(weights="last"))
    with_them = fit(last)
    # Two tasks of 40 prompts each; those of the others are numbered after them.
    assert max(int(prompts.max()) for prompts in seen) < 80
    without = fit(changed(last, tmp_path / "off", unseen=UnseenConfig(enabled=False)))
    assert equal(weights(with_them), weights(without))
    assert values(with_them, "val_loss") == values(without, "val_loss")
    assert not values(without, "val_unseen_nll")
    (file,) = (without / "checkpoints").glob("epoch=*.ckpt")
    assert "val_loss" in file.name
    # Nor does it matter to training which of them there are.
    other = {"prompts": None, "test": None}
    zoo = write_zoo(tmp_path / "zoo", make, tiny_lm, capitals=other)
    third = fit(replace(changed(last, tmp_path / "third"), data=replace(last.data, zoo=str(zoo))))
    assert equal(weights(with_them), weights(third))


def test_the_prompts_are_of_the_task_and_none_is_a_test_sample(config, questions):
    manifest = ZooManifest.read(config.data.zoo)
    data = replace(config.data, samples_per_prompt=2)
    left_out = {prompt_hash(questions["more"][0])}
    one, again = (read_held_out(manifest, data, max_samples=3, test_hashes=left_out, seen=()) for _ in range(2))
    assert one == again
    for task in one:
        assert len(task.prompts) == 4
        shown = [part for prompt in task.prompts for part in prompt.split("\n\n")]
        assert len(set(shown)) == 8
        assert set(shown) <= set(questions[task.name][:40]) - {questions["more"][0]}
        assert len(task.tests) == 3
        assert {test.prompt for test in task.tests} <= set(questions[task.name][40:])
        assert not any(test.response in prompt for test in task.tests for prompt in task.prompts)


def test_no_held_out_task_is_scored_on_what_a_training_task_has(config, questions, caplog):
    manifest = ZooManifest.read(config.data.zoo)
    seen = {prompt_hash(prompt) for prompt in [*questions["more"][41:], *questions["last"][40:]]}
    found = read_held_out(manifest, config.data, max_samples=8, test_hashes=(), seen=seen)
    tests = {task.name: [test.prompt for test in task.tests] for task in found}
    assert tests.keys() == {"capitals", "more"}
    assert tests["more"] == questions["more"][40:41]
    assert len(tests["capitals"]) == 8
    assert caplog.messages == ["Cannot watch 1 held-out task: last (no test samples that no training task has)."]


@pytest.mark.parametrize("num_batches", [1, 4, 7, 10])
def test_a_resumed_training_knows_what_was_best(config, experiment, tmp_path, monkeypatch, num_batches):
    config = changed(config, tmp_path)
    original, seen = GeneratorModule.training_step, []

    def step(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == num_batches:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorModule, "training_step", step)
        with pytest.raises(Interrupted):
            fit(config)
    folder = fit(config, resume="auto")
    for column in ("val_unseen_nll", "val_steering_margin", "val_loss"):
        assert values(folder, column) == values(experiment, column)
    assert equal(weights(folder), weights(experiment))
    best, other = (next((made / "checkpoints").glob("epoch=*.ckpt")).name for made in (folder, experiment))
    assert best == other


def test_another_choice_after_a_resume_is_a_warning(config, tmp_path, caplog):
    config = changed(config, tmp_path, max_epochs=3)
    folder = interrupted(config, tmp_path, epoch=1)
    fit(changed(config, tmp_path, unseen=UnseenConfig(enabled=False)), resume=str(folder))
    assert "val_unseen_nll chose the best weights until now, and from here on val_loss does" in caplog.text


@pytest.mark.parametrize(
    ("held_out", "base_model", "said"),
    [
        ({name: {"test": None} for name in HELD_OUT}, None, "zoo has no held-out task with test samples"),
        ({name: {"held_out": False} for name in HELD_OUT}, None, "zoo has no held-out task with test samples"),
        ({}, "/nowhere/model", "The base model '/nowhere/model' does not exist"),
        ({}, "nobody/nothing", "neither a path, nor nobody/nothing in the hub cache"),
        ({}, "wider", r"but the model's has 64 to 32; they are of another model"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(config, tmp_path, make, tiny_lm, caplog, held_out, base_model, said):
    caplog.set_level("INFO")
    if base_model == "wider":
        model, tokenizer = load_base_model(str(tiny_lm))
        wider = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "hidden_size": 64}))
        base_model = str(tmp_path / "wider")
        for part in (wider, tokenizer):
            part.save_pretrained(base_model)
    zoo = write_zoo(tmp_path / "zoo", make, Path(base_model or tiny_lm), **held_out)
    if base_model == "nobody/nothing":
        replace(ZooManifest.read(zoo), base_model=base_model).write()
    config = replace(changed(config, tmp_path / "out", max_epochs=1), data=replace(config.data, zoo=str(zoo)))
    made = fit(config)
    records = [record for record in caplog.records if said in record.message]
    assert [record.levelname for record in records] == ["WARNING" if not held_out else "INFO"]
    assert "val_loss decides which weights are best" in records[0].message
    assert not values(made, "val_unseen_nll")
    with pytest.raises(LoragenTrainError, match=said) as caught:
        fit(changed(config, tmp_path / "out", unseen=UnseenConfig(enabled=True)))
    assert "training.unseen.enabled" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_without_test_samples_is_named_once_and_the_others_are_watched(config, tmp_path, make, tiny_lm, caplog):
    zoo = write_zoo(tmp_path / "zoo", make, tiny_lm, more={"test": None}, last={"prompts": None})
    made = fit(replace(changed(config, tmp_path / "out", max_epochs=2), data=replace(config.data, zoo=str(zoo))))
    said = [record.message for record in caplog.records if "held-out task" in record.message]
    assert said == ["Cannot watch 2 held-out tasks: more (no test samples), last (no prompts beside its test samples)."]
    assert len(values(made, "val_unseen_nll")) == 3
    # There is no other task whose prompts could be taken.
    assert not values(made, "val_steering_margin")


class Overflow(Callback):
    """Makes the logits of the base model NaN from the second validation on."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            (watching,) = (callback for callback in trainer.callbacks if isinstance(callback, UnseenTasks))
            watching._frozen.model.lm_head.weight.data[0] = math.nan


def test_a_nll_that_is_not_finite_is_one_sentence_and_nothing_is_lost(config, tmp_path, make, tiny_lm):
    config = changed(config, tmp_path / "out", max_epochs=3)
    with pytest.raises(
        LoragenTrainError, match=r"held-out task 'capitals' is nan in epoch 1, although val_loss"
    ) as caught:
        fit(config, callbacks=[Overflow()])
    assert "\n" not in str(caught.value)
    (folder,) = (tmp_path / "out").iterdir()
    assert fit(config, resume="auto") == folder

    model, tokenizer = load_base_model(str(tiny_lm))
    model.lm_head.weight.data[0] = math.nan
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "broken")
    zoo = write_zoo(tmp_path / "zoo", make, tmp_path / "broken")
    with pytest.raises(LoragenTrainError, match="held-out task 'capitals' is nan before the first step"):
        fit(replace(config, data=replace(config.data, zoo=str(zoo))))


def test_two_processes_score_a_part_each(config, experiment, tmp_path):
    two = changed(config, tmp_path / "out", devices=2, strategy="ddp", max_epochs=1)
    two = replace(two, data=replace(two.data, batch_size=1))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(asdict(two)))
    command = [sys.executable, "-m", "loragen_train.cli", "fit", "--config", str(tmp_path / "fit.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    # The margin is a difference of such likelihoods, and so has their rounding, whatever its own size.
    rounding = 1e-5 * values(experiment, "val_unseen_nll")[0]
    for column in ("val_unseen_nll", "val_steering_margin"):
        start, after = values(folder, column)
        assert start == pytest.approx(values(experiment, column)[0], abs=rounding)
        assert start != after


def test_a_trained_encoder_makes_the_condition_of_the_unseen_tasks_too(config, tmp_path):
    config = changed(config, tmp_path, max_epochs=1, learning_rate=1e-4)
    made = fit(replace(config, model=replace(config.model, freeze_text_encoder=False)))
    assert len(values(made, "val_unseen_nll")) == 2
    assert all(map(math.isfinite, values(made, "val_unseen_nll")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"enabled": "yes"}, r"training\.unseen\.enabled is 'yes', but must be true, false or auto"),
        ({"max_samples": 0}, r"training\.unseen\.max_samples is 0, but must be positive"),
    ],
)
def test_settings_out_of_range_are_named(settings, said):
    with pytest.raises(LoragenTrainError, match=said):
        UnseenConfig(**settings)
