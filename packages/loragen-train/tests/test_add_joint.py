"""The joint adapter of a zoo that is there: what collect would have trained, noted in zoo.json, and made once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_tokenizer import find_adapters
from loragen_infer.files import locked
from loragen_infer.zoo import SampleFile, ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig
from loragen_train.configs.objectives import LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.build import build_setup
from loragen_train.zoo import add_joint as adding
from loragen_train.zoo import train_lora
from loragen_train.zoo.add_joint import add_joint
from loragen_train.zoo.collect import collect
from safetensors.torch import load_file


def weights(zoo: Path) -> dict[str, torch.Tensor]:
    (file,) = (zoo / "joint").glob("checkpoint-*/adapter_model.safetensors")
    return load_file(file)


def test_adapters_from_elsewhere_get_the_joint_adapter_that_collect_would_train(joint_config, joint_collection):
    before = ZooManifest.read(joint_config.zoo)
    assert before.joint is None
    assert add_joint(joint_config) == Path(joint_config.zoo) / "joint"
    after = ZooManifest.read(joint_config.zoo)
    assert after == replace(before, joint=after.joint, joint_folds=after.joint_folds)
    assert after.joint == "joint/checkpoint-4"
    assert [fold.tasks for fold in after.joint_folds] == [["sums"], ["spelling"]]
    expected = weights(Path(joint_collection.output_dir))
    for name, tensor in weights(Path(joint_config.zoo)).items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("canonical", ["none", "svd"])
def test_a_generator_starts_from_it(joint_config, tmp_path, canonical):
    replace(ZooManifest.read(joint_config.zoo), canonical=canonical).write()
    add_joint(joint_config)
    training = TrainingConfig(accelerator="cpu", objective="lm", lm=LmConfig(precision="fp32"))
    fitted = FitConfig(
        data=DataConfig(zoo=joint_config.zoo, cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(output_dim=16, unseen_from="joint"),
        training=training,
    )
    joint = build_setup(fitted, tmp_path / "cache").joint
    assert joint.has_folds
    assert joint.fold_of == {"sums": 0, "spelling": 1}


def test_a_zoo_collected_without_one_gets_it(joint_config, joint_collection, tmp_path):
    locks = shutil.ignore_patterns(".lock*")
    zoo = Path(shutil.copytree(joint_collection.output_dir, tmp_path / "collected", ignore=locks))
    expected = weights(zoo)
    for folder in ("joint", "joint_folds"):
        shutil.rmtree(zoo / folder)
    without = replace(joint_collection, output_dir=str(zoo), joint=False, joint_steps=None, joint_folds="auto")
    collect(without)
    assert ZooManifest.read(zoo).joint is None
    add_joint(replace(joint_config, zoo=str(zoo)))
    found = weights(zoo)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    collect(without)
    assert ZooManifest.read(zoo).joint == "joint/checkpoint-4"


def test_it_is_made_once_and_goes_on_where_it_was_interrupted(joint_config, joint_collection, monkeypatch):
    advance, steps = train_lora._Run.advance, []

    def interrupted(self):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        advance(self)

    monkeypatch.setattr(train_lora._Run, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_joint(joint_config)
    assert ZooManifest.read(joint_config.zoo).joint is None
    gone_on = []

    def noted(self):
        gone_on.append(self.step)
        advance(self)

    monkeypatch.setattr(train_lora._Run, "advance", noted)
    add_joint(joint_config)
    assert gone_on == [2, 3]  # of four steps, after the checkpoint of the second
    expected, found = weights(Path(joint_collection.output_dir)), weights(Path(joint_config.zoo))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    monkeypatch.setattr(adding, "train_group", lambda *_, **__: pytest.fail("nothing is left to train"))
    add_joint(joint_config)


def test_samples_to_test_with_are_not_needed(joint_config, joint_collection):
    zoo = Path(joint_config.zoo)
    shutil.rmtree(zoo / "test")
    manifest = ZooManifest.read(zoo)
    replace(manifest, tasks=[replace(task, test=None) for task in manifest.tasks]).write()
    add_joint(joint_config)
    expected, found = weights(Path(joint_collection.output_dir)), weights(zoo)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_samples_without_a_response_are_passed_over(joint_config, caplog):
    zoo = Path(joint_config.zoo)
    strip_responses(zoo, "spelling", num_samples=1)
    add_joint(replace(joint_config, folds=1))
    assert "spelling.jsonl: 1 of 16 samples have no response and are passed over." in caplog.text
    record = json.loads((zoo / "joint/training.json").read_text())
    assert list(record["settings"]["tasks"]) == ["sums", "spelling"]


def test_checkpoints_may_be_rarer_than_a_task_of_its_own_has_steps(joint_config):
    few = replace(joint_config.training, max_steps=2, save_every=50)
    add_joint(replace(joint_config, steps=6, training=few))
    assert ZooManifest.read(joint_config.zoo).joint == "joint/checkpoint-3"


def test_a_task_without_responses_is_left_out_and_named(joint_config, caplog):
    zoo = Path(joint_config.zoo)
    strip_responses(zoo, "spelling")
    add_joint(replace(joint_config, folds=1))
    assert "The joint adapter is trained without spelling: " in caplog.text
    record = json.loads((zoo / "joint/training.json").read_text())
    assert list(record["settings"]["tasks"]) == ["sums"]


def test_without_any_response_nothing_is_trained(joint_config):
    for name in ("sums", "spelling"):
        strip_responses(Path(joint_config.zoo), name)
    with pytest.raises(LoragenTrainError, match=r"has samples to learn from; the first: .*sums"):
        add_joint(joint_config)
    assert not (Path(joint_config.zoo) / "joint").exists()


def strip_responses(zoo: Path, task: str, num_samples: int | None = None) -> None:
    file = zoo / "train" / f"{task}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[:num_samples]:
        row["response"] = ""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = ZooManifest.read(zoo)
    described = [
        replace(known, prompts=SampleFile.of(file, zoo)) if known.name == task else known for known in manifest.tasks
    ]
    replace(manifest, tasks=described).write()


def test_two_processes_do_not_train_it_at_once(joint_config):
    with (
        locked(Path(joint_config.zoo) / ".locks", None, name=".joint.lock"),
        pytest.raises(Exception, match="Another process is training the joint adapter"),
    ):
        add_joint(joint_config)


def test_afterwards_nothing_is_collected_into_a_zoo_of_imported_adapters(joint_config, joint_collection):
    add_joint(joint_config)
    with pytest.raises(LoragenTrainError, match="holds imported adapters"):
        collect(replace(joint_collection, output_dir=joint_config.zoo))
    assert find_adapters(Path(joint_config.zoo) / "joint")


def test_the_command_prints_its_folder(joint_config, joint_collection, make, capsys):
    training = [f"--training.{key}={getattr(joint_collection.training, key)}" for key in ("max_steps", "batch_size")]
    words = ["joint", "--zoo", joint_config.zoo, "--steps", "2", *training, "--training.save_every=1"]
    assert make.cli(*words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(Path(joint_config.zoo) / "joint")
    assert make.cli("joint", "--zoo", joint_config.zoo + "x") == 1
