"""The joint adapter of a zoo that is there: what collect would have trained, noted in zoo.json, and made once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_tokenizer import find_adapters
from loragen_infer import LoragenInferError
from loragen_infer.files import locked
from loragen_infer.zoo import SampleFile, ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig
from loragen_train.configs.importing import ImportConfig
from loragen_train.configs.joint import JointConfig
from loragen_train.configs.objectives import LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.build import build_setup
from loragen_train.zoo import add_joint as adding
from loragen_train.zoo import train_lora
from loragen_train.zoo.add_joint import add_joint
from loragen_train.zoo.collect import collect
from loragen_train.zoo.importing import import_zoo
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def collection(collect_config, tmp_path_factory) -> CollectConfig:
    """A zoo of two tasks and one held out, with a joint adapter in two folds."""
    config = replace(
        collect_config,
        output_dir=str(tmp_path_factory.mktemp("collected") / "zoo"),
        lora=replace(collect_config.lora, lora_dropout=0.0),
        joint=True,
        joint_steps=7,
        joint_folds=2,
    )
    collect(config)
    return config


@pytest.fixture
def config(collection, tmp_path) -> JointConfig:
    """For the adapters of that zoo, imported without what collect knows of them."""
    source, zoo = Path(collection.output_dir), tmp_path / "zoo"
    rows = [
        {"name": task.name, "prompts": str(source / "train" / f"{task.name}.jsonl"), "held_out": task.held_out}
        | {"test": str(source / "test" / f"{task.name}.jsonl")}
        | ({} if task.held_out else {"adapter": str(source / "adapters" / task.name)})
        for task in collection.tasks
    ]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    import_zoo(ImportConfig(table=str(tmp_path / "table.json"), output_dir=str(zoo)))
    return JointConfig(zoo=str(zoo), steps=7, folds=2, training=collection.training, seed=collection.seed)


def weights(zoo: Path) -> dict[str, torch.Tensor]:
    (file,) = (zoo / "joint").glob("checkpoint-*/adapter_model.safetensors")
    return load_file(file)


def test_adapters_from_elsewhere_get_the_joint_adapter_that_collect_would_train(config, collection):
    before = ZooManifest.read(config.zoo)
    assert before.joint is None
    assert add_joint(config) == Path(config.zoo) / "joint"
    after = ZooManifest.read(config.zoo)
    assert after == replace(before, joint=after.joint, joint_folds=after.joint_folds)
    assert after.joint == "joint/checkpoint-4"
    assert [fold.tasks for fold in after.joint_folds] == [["sums"], ["spelling"]]
    expected = weights(Path(collection.output_dir))
    for name, tensor in weights(Path(config.zoo)).items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("canonical", ["none", "svd"])
def test_a_generator_starts_from_it(config, tmp_path, canonical):
    replace(ZooManifest.read(config.zoo), canonical=canonical).write()
    add_joint(config)
    training = TrainingConfig(accelerator="cpu", objective="lm", lm=LmConfig(precision="fp32"))
    fitted = FitConfig(
        data=DataConfig(zoo=config.zoo, cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(output_dim=16, unseen_from="joint"),
        training=training,
    )
    joint = build_setup(fitted, tmp_path / "cache").joint
    assert joint.has_folds
    assert joint.fold_of == {"sums": 0, "spelling": 1}


def test_a_zoo_collected_without_one_gets_it(collection, tmp_path):
    zoo = Path(shutil.copytree(collection.output_dir, tmp_path / "zoo", ignore=shutil.ignore_patterns(".lock*")))
    expected = weights(zoo)
    for folder in ("joint", "joint_folds"):
        shutil.rmtree(zoo / folder)
    without = replace(collection, output_dir=str(zoo), joint=False, joint_steps=None, joint_folds="auto")
    collect(without)
    assert ZooManifest.read(zoo).joint is None
    add_joint(JointConfig(zoo=str(zoo), steps=7, folds=2, training=collection.training, seed=collection.seed))
    found = weights(zoo)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    collect(without)
    assert ZooManifest.read(zoo).joint == "joint/checkpoint-4"


def test_it_is_made_once_and_goes_on_where_it_was_interrupted(config, collection, monkeypatch):
    advance, steps = train_lora._Run.advance, []

    def interrupted(self):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        advance(self)

    monkeypatch.setattr(train_lora._Run, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_joint(config)
    assert ZooManifest.read(config.zoo).joint is None
    monkeypatch.setattr(train_lora._Run, "advance", advance)
    add_joint(config)
    expected, found = weights(Path(collection.output_dir)), weights(Path(config.zoo))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    monkeypatch.setattr(adding, "train_group", lambda *_, **__: pytest.fail("nothing is left to train"))
    add_joint(config)


def test_a_task_without_responses_is_left_out_and_named(config, caplog):
    zoo = Path(config.zoo)
    strip_responses(zoo, "spelling")
    add_joint(replace(config, folds=1))
    assert "The joint adapter is trained without spelling: " in caplog.text
    record = json.loads((zoo / "joint/training.json").read_text())
    assert list(record["settings"]["tasks"]) == ["sums"]


def test_without_any_response_nothing_is_trained(config):
    for name in ("sums", "spelling"):
        strip_responses(Path(config.zoo), name)
    with pytest.raises(LoragenTrainError, match=r"has samples to learn from; the first: .*sums"):
        add_joint(config)
    assert not (Path(config.zoo) / "joint").exists()


def strip_responses(zoo: Path, task: str) -> None:
    file = zoo / "train" / f"{task}.jsonl"
    rows = [{**json.loads(line), "response": ""} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = ZooManifest.read(zoo)
    described = [
        replace(known, prompts=SampleFile.of(file, zoo)) if known.name == task else known for known in manifest.tasks
    ]
    replace(manifest, tasks=described).write()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": True}}, "have use_dora, and"),
        ({"lora": {"r": 2, "lora_alpha": 4.5, "target_modules": ["q_proj"]}}, "have no rank, whole alpha and"),
        ({"lora": {}}, "have no rank, whole alpha and list"),
        ({"lora": {"r": 2, "lora_alpha": "4", "target_modules": ["q_proj"]}}, "have no rank, whole alpha and list"),
        ({"joint": "/other/joint/checkpoint-4"}, "has a joint adapter elsewhere, /other/joint/checkpoint-4; take"),
        ({"tasks": []}, "has no training task with samples"),
    ],
)
def test_what_it_cannot_be_trained_for_is_named(config, change, message):
    replace(ZooManifest.read(config.zoo), **change).write()
    with pytest.raises(LoragenTrainError, match=message):
        add_joint(config)


def test_samples_that_lie_elsewhere_are_named(config, tmp_path):
    manifest = ZooManifest.read(config.zoo)
    first, *rest = manifest.tasks
    file = shutil.copyfile(manifest.samples(first.prompts), tmp_path / "elsewhere.jsonl")
    replace(manifest, tasks=[replace(first, prompts=SampleFile.of(Path(file), manifest.folder)), *rest]).write()
    with pytest.raises(LoragenTrainError, match=r"The samples of sums lie in .*elsewhere\.jsonl, and not in .*train"):
        add_joint(config)


def test_samples_that_were_changed_are_refused_before_the_training(config):
    file = Path(config.zoo) / "train/sums.jsonl"
    file.write_text(file.read_text().replace("What", "Tell me what", 1) + "\n")
    with pytest.raises(LoragenInferError, match=r"sums\.jsonl"):
        add_joint(config)
    assert not (Path(config.zoo) / "unfinished").exists()


def test_two_processes_do_not_train_it_at_once(config):
    with (
        locked(Path(config.zoo) / ".locks", None, name=".joint.lock"),
        pytest.raises(Exception, match="Another process is training the joint adapter"),
    ):
        add_joint(config)


def test_afterwards_nothing_is_collected_into_a_zoo_of_imported_adapters(config, collection):
    add_joint(config)
    with pytest.raises(LoragenTrainError, match="holds imported adapters"):
        collect(replace(collection, output_dir=config.zoo))
    assert find_adapters(Path(config.zoo) / "joint")


def test_the_command_prints_its_folder(config, collection, make, capsys):
    training = [f"--training.{key}={getattr(collection.training, key)}" for key in ("max_steps", "batch_size")]
    words = ["joint", "--zoo", config.zoo, "--steps", "2", *training, "--training.save_every=1"]
    assert make.cli(*words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(Path(config.zoo) / "joint")
    assert make.cli("joint", "--zoo", config.zoo + "x") == 1
