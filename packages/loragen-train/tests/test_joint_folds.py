"""The joint adapter in folds: who is in which, what is written, and that it is the mean of them, made once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_tokenizer import read_adapter
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.zoo import collect as collecting
from loragen_train.zoo import joint, train_lora
from loragen_train.zoo.collect import collect
from loragen_train.zoo.items import AdapterTask
from safetensors.torch import load_file

SOURCES = ["reasoning-gym:gcd", "reasoning-gym:gcd?max_value=9", "reasoning-gym:lcm", "sums.jsonl", "words.jsonl"]


@pytest.fixture(scope="module")
def config(collect_config, tmp_path_factory) -> CollectConfig:
    """Three training tasks, one with samples only, of which two are variants of one; one is held out."""
    sums, spelling, gcd = collect_config.tasks
    variants = [
        replace(gcd, name=name, source=f"reasoning-gym:{settings}", held_out=False, own_adapter=False)
        for name, settings in (("small", "gcd?max_value=9"), ("large", "gcd?max_value=99"))
    ]
    return replace(
        collect_config,
        output_dir=str(tmp_path_factory.mktemp("folds") / "zoo"),
        tasks=[sums, *variants, replace(spelling, held_out=True, own_adapter=False)],
        joint=True,
        joint_steps=7,
        joint_folds=2,
    )


@pytest.fixture(scope="module")
def folded(config) -> SimpleNamespace:
    collect(config)
    return SimpleNamespace(root=Path(config.output_dir), config=config)


@pytest.fixture
def copy(folded, tmp_path) -> Path:
    return Path(shutil.copytree(folded.root, tmp_path / "zoo", ignore=shutil.ignore_patterns(".lock*")))


def test_every_training_task_is_in_one_fold_and_variants_are_in_the_same(folded):
    manifest = ZooManifest.read(folded.root)
    assert [fold.tasks for fold in manifest.joint_folds] == [["small", "large"], ["sums"]]
    # Seven steps in all are four for each of two.
    assert [fold.adapter for fold in manifest.joint_folds] == [f"joint_folds/{n}/checkpoint-4" for n in (1, 2)]
    for fold in manifest.joint_folds:
        record = json.loads((manifest.path(fold.adapter).parent / "training.json").read_text())
        assert list(record["settings"]["tasks"]) == fold.tasks
        assert record["num_tokens"] > 0
    assert not (folded.root / "unfinished").exists()


def test_the_joint_adapter_is_the_mean_of_the_folds(folded):
    manifest = ZooManifest.read(folded.root)
    assert manifest.joint == "joint/checkpoint-4"
    assert list(json.loads((folded.root / "joint/training.json").read_text())["settings"]["tasks"]) == [
        "sums",
        "small",
        "large",
    ]
    whole, *parts = (
        json.loads((folded.root / folder / "training.json").read_text())
        for folder in ("joint", "joint_folds/1", "joint_folds/2")
    )
    # An evaluation shows what its rows cost.
    for key in ("seconds", "cpu_seconds", "num_tokens"):
        assert whole[key] == pytest.approx(sum(part[key] for part in parts))
    assert whole["num_tokens"] > 0  # the times of so short a training may be 0.0, rounded
    mean = read_adapter(manifest.path(manifest.joint))
    first, second = (read_adapter(manifest.path(fold.adapter)) for fold in manifest.joint_folds)
    assert mean.config == first.config
    for name, tensor in mean.tensors.items():
        torch.testing.assert_close(tensor, (first.tensors[name] + second.tensors[name]) / 2)
        assert not torch.equal(first.tensors[name], second.tensors[name])


def test_the_adapter_of_a_fold_is_what_its_tasks_alone_give(folded, tmp_path):
    """So nothing of the other folds is in it."""
    alone = replace(folded.config, tasks=folded.config.tasks[1:], output_dir=str(tmp_path / "zoo"), joint_folds=1)
    alone = replace(alone, joint_steps=4, lora=replace(alone.lora, lora_dropout=0.0))
    both = replace(alone, tasks=folded.config.tasks, output_dir=str(tmp_path / "both"), joint_folds=2, joint_steps=8)
    collect(alone)
    collect(both)
    file = "checkpoint-4/adapter_model.safetensors"
    of_fold = load_file(tmp_path / "both/joint_folds/1" / file)
    for name, tensor in load_file(tmp_path / "zoo/joint" / file).items():
        torch.testing.assert_close(of_fold[name], tensor, rtol=1e-3, atol=1e-4)


def test_it_is_made_once_and_only_the_mean_where_that_is_missing(folded, copy, make, monkeypatch):
    config = replace(folded.config, output_dir=str(copy))
    monkeypatch.setattr(collecting, "train_group", lambda *_, **__: pytest.fail("nothing is left to train"))
    collect(config)
    before = make.weights(copy)
    shutil.rmtree(copy / "joint")
    collect(replace(config, joint_folds=2))
    assert make.weights(copy) == before
    assert ZooManifest.read(copy) == replace(ZooManifest.read(folded.root), folder=copy)


def test_a_fold_that_diverges_is_named_and_made_by_the_next_run(folded, copy, make, monkeypatch):
    for folder in ("joint", "joint_folds"):
        shutil.rmtree(copy / folder)
    config = replace(folded.config, output_dir=str(copy))
    clip = train_lora._Run._clip

    def ruin(self):
        clip(self)
        self._weights[0].grad[1].fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(train_lora._Run, "_clip", ruin)
        with pytest.raises(LoragenTrainError, match=r"\(joint fold 2\).*training of joint fold 2 diverged"):
            collect(config)
    manifest = ZooManifest.read(copy)
    assert (manifest.joint, manifest.joint_folds) == (None, [])
    collect(config)
    assert make.weights(copy / "joint_folds") == make.weights(folded.root / "joint_folds")
    assert make.weights(copy / "joint") == make.weights(folded.root / "joint")


@pytest.mark.parametrize("change", [{"joint_folds": 1}, {"joint_steps": 9}])
def test_another_division_is_refused(folded, copy, change):
    with pytest.raises(LoragenTrainError, match=r"zoo/joint was made with other settings \(joint_"):
        collect(replace(folded.config, output_dir=str(copy), **change))


def test_folds_of_other_settings_are_refused(folded, copy):
    shutil.rmtree(copy / "joint")
    config = replace(folded.config, output_dir=str(copy), joint_steps=9)
    with pytest.raises(LoragenTrainError, match=r"joint_folds/1 was made with other settings \(joint_steps: 7, and"):
        collect(config)


def test_a_zoo_that_lost_a_fold_still_has_its_joint_adapter(folded, copy):
    shutil.rmtree(copy / "joint_folds" / "2")
    collect(replace(folded.config, output_dir=str(copy)))
    manifest = ZooManifest.read(copy)
    assert (manifest.joint, manifest.joint_folds) == ("joint/checkpoint-4", [])


def test_by_default_what_is_there_stays(folded, copy, make):
    before = make.weights(copy)
    collect(replace(folded.config, output_dir=str(copy), joint_folds="auto"))
    assert make.weights(copy) == before


@pytest.mark.parametrize(
    ("num_tasks", "is_begun", "num_folds"), [(49, False, 1), (50, False, 2), (50, True, 1)], ids=str
)
def test_by_default_there_are_folds_of_many_tasks(make, tmp_path, num_tasks, is_begun, num_folds):
    if is_begun:  # by a version without folds
        (tmp_path / "unfinished" / "joint").mkdir(parents=True)
    tasks = [CollectTask(name=f"task{number}", source=f"{number}.jsonl") for number in range(num_tasks)]
    for task in tasks:
        make.samples(tmp_path / "train" / f"{task.name}.jsonl", ["a", "b"])
    config = CollectConfig(base_model="x", tasks=tasks, joint=True)
    ready = [AdapterTask(name=task.name, folder=tmp_path, train=[task.name], test=[], decided_by={}) for task in tasks]
    trained = joint.joint_tasks(ready, config, tmp_path)
    assert len(trained) == num_folds
    # What was begun in one piece goes on under the settings that it was begun with.
    assert ("joint_folds" in trained[0].decided_by["settings"]) is (num_folds > 1)
    assert sorted(item for fold in trained for item in fold.train) == sorted(task.name for task in tasks)
    assert joint.num_joint_steps(config, num_folds) == -(-48 * num_tasks // num_folds)


@given(st.lists(st.sampled_from(SOURCES), min_size=1, max_size=30), st.data())
def test_folds_are_a_division_of_like_sizes(sources, data):
    tasks = [CollectTask(name=f"task{number}", source=source) for number, source in enumerate(sources)]
    families = {task.family for task in tasks}
    folds = joint._folds(tasks, data.draw(st.integers(1, len(families))))
    assert all(folds)
    assert sorted(task.name for fold in folds for task in fold) == sorted(task.name for task in tasks)
    for family in families:
        assert sum(family in {task.family for task in fold} for fold in folds) == 1
    largest = max(sum(task.family == family for task in tasks) for family in families)
    assert max(map(len, folds)) - min(map(len, folds)) <= largest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint_folds": 0}, r"^joint_folds is 0, but must be positive"),
        ({"joint_folds": 2, "joint": False, "joint_steps": None}, r"^joint_folds is 2, but there is no joint adapter"),
        ({"joint_folds": 3}, r"^There cannot be 3 folds: the training tasks are of 2 source\(s\), whose variants stay"),
    ],
)
def test_bad_numbers_of_folds(config, settings, message):
    with pytest.raises(LoragenTrainError, match=message):
        replace(config, **settings)
