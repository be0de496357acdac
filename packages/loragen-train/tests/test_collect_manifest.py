"""zoo.json as collect writes it: what it says is what lies there, and what an adapter is worth is computed rightly."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import read_examples, tokenize_example
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig
from loragen_train.zoo import train_lora
from loragen_train.zoo.collect import collect
from loragen_train.zoo.manifest import write_manifest
from peft import PeftModel
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def config(collect_config) -> CollectConfig:
    return collect_config


@pytest.fixture(scope="module")
def zoo(collected) -> SimpleNamespace:
    return collected


@pytest.fixture
def copy(zoo, tmp_path) -> Path:
    return Path(shutil.copytree(zoo.root, tmp_path / "zoo", ignore=shutil.ignore_patterns(".lock*")))


def test_it_describes_what_lies_there(zoo, config):
    manifest = ZooManifest.read(zoo.root)
    assert manifest.base_model == config.base_model
    assert manifest.base_model_path is None
    assert manifest.lora == asdict(config.lora)
    assert manifest.canonical == "none"
    assert manifest.joint is None
    assert [task.name for task in manifest.tasks] == ["sums", "spelling", "gcd"]
    assert [task.name for task in manifest.training_tasks] == ["sums", "spelling"]
    assert [task.name for task in manifest.held_out_tasks] == ["gcd"]
    for task, described in zip(config.tasks, manifest.tasks, strict=True):
        assert described.sources == [task.source]
        assert described.failure is None
        for part, file, number in (("train", described.prompts, 16), ("test", described.test, 4)):
            content = (zoo.root / part / f"{task.name}.jsonl").read_bytes()
            assert file.path == f"{part}/{task.name}.jsonl"
            assert (file.num_samples, file.sha256) == (number, hashlib.sha256(content).hexdigest())
        steps = [] if task.held_out else [8, 10, 11]
        assert described.adapters == [f"adapters/{task.name}/checkpoint-{step}" for step in steps]


def test_a_held_out_task_may_have_an_adapter_of_its_own_which_is_no_training_task(copy, config):
    sums, spelling, gcd = config.tasks
    before = (copy / "adapters" / "sums" / "training.json").read_bytes()
    own = replace(config, output_dir=str(copy), tasks=[sums, spelling, replace(gcd, own_adapter=True)])
    assert [folder.name for folder in collect(own)] == ["sums", "spelling", "gcd"]
    manifest = ZooManifest.read(copy)
    described = manifest.task("gcd")
    assert described.held_out
    assert described.adapters == [f"adapters/gcd/checkpoint-{step}" for step in (8, 10, 11)]
    assert described.quality is not None
    assert [task.name for task in manifest.training_tasks] == ["sums", "spelling"]
    assert (copy / "adapters" / "sums" / "training.json").read_bytes() == before

    # What the adapter may be used for has no part in its weights, so it need not be trained again.
    trained = (copy / "adapters" / "gcd" / "training.json").read_bytes()
    collect(replace(own, tasks=[sums, spelling, replace(gcd, held_out=False)]))
    assert [task.name for task in ZooManifest.read(copy).training_tasks] == ["sums", "spelling", "gcd"]
    assert (copy / "adapters" / "gcd" / "training.json").read_bytes() == trained


@torch.inference_mode()
def mean_nll(model, tokenizer, file: Path) -> float:
    """Of every response token of the samples, one sample at a time."""
    terms = []
    for sample in read_examples(file):
        item = tokenize_example(tokenizer, sample)
        logits = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        positions = range(item.num_prompt_tokens, len(item.input_ids))
        terms += [-logits[position - 1, item.input_ids[position]].item() for position in positions]
    return sum(terms) / len(terms)


def test_the_quality_is_that_of_test_samples_with_the_last_checkpoint_and_without(zoo, config):
    manifest = ZooManifest.read(zoo.root)
    base, tokenizer = load_base_model(config.base_model, dtype="float32")
    for task in manifest.training_tasks:
        test = manifest.samples(task.test)
        assert task.quality.base_nll == pytest.approx(mean_nll(base, tokenizer, test), rel=1e-4)
        adapted = PeftModel.from_pretrained(base, str(manifest.path(task.adapters[-1])))
        assert task.quality.nll == pytest.approx(mean_nll(adapted, tokenizer, test), rel=1e-4)
        base = adapted.unload()
        assert task.quality.gain > 0.1
        record = json.loads((zoo.root / "adapters" / task.name / "training.json").read_text())
        assert record["quality"] == asdict(task.quality)
    assert manifest.task("gcd").quality is None


@pytest.mark.parametrize("keep_manifest", [True, False])
def test_a_zoo_of_before_there_was_a_manifest_is_continued(make, zoo, config, copy, keep_manifest):
    before = make.weights(copy)
    for file in (copy / "adapters").glob("*/training.json"):
        record = json.loads(file.read_text())
        del record["quality"], record["trained_with"]
        for section in ("training", "task"):
            for new in ("too_long", "adapters_at_once", "tokens_per_pass", "split"):
                record["settings"][section].pop(new, None)
        file.write_text(json.dumps(record))
    if not keep_manifest:
        (copy / "zoo.json").unlink()
    again = replace(config.tasks[0], name="again")
    folders = collect(replace(config, output_dir=str(copy), tasks=[*config.tasks, again]))
    assert [folder.name for folder in folders] == ["sums", "spelling", "again"]
    after = make.weights(copy)
    assert {name: after[name] for name in before} == before
    manifest = ZooManifest.read(copy)
    assert [task.name for task in manifest.tasks] == ["sums", "spelling", "gcd", "again"]
    assert [task.quality is None for task in manifest.tasks] == [True, True, True, False]
    assert len(manifest.task("sums").adapters) == 3


def test_tasks_that_another_config_has_stay_in_it(zoo, config, copy):
    before = ZooManifest.read(copy).tasks
    collect(replace(config, output_dir=str(copy), tasks=config.tasks[1:2]))
    assert ZooManifest.read(copy).tasks == before


def test_a_damaged_manifest_is_one_sentence(config, copy):
    (copy / "zoo.json").write_text("{")
    with pytest.raises(LoragenInferError, match=r"zoo\.json cannot be read as JSON: .*") as caught:
        collect(replace(config, output_dir=str(copy)))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def joint(tmp_path_factory, config) -> SimpleNamespace:
    config = replace(config, output_dir=str(tmp_path_factory.mktemp("joint") / "zoo"), joint=True)
    collect(config)
    return SimpleNamespace(root=Path(config.output_dir), config=config)


def test_a_joint_adapter_is_trained_on_all_tasks_as_long_as_they_are_together(joint, zoo, make):
    manifest = ZooManifest.read(joint.root)
    assert manifest.joint == "joint/checkpoint-22"
    assert sorted(path.name for path in (joint.root / "joint").iterdir()) == [
        *(f"checkpoint-{step}" for step in (18, 20, 22)),
        "training.json",
    ]
    record = json.loads((joint.root / "joint" / "training.json").read_text())
    assert [row["step"] for row in record["loss"]] == list(range(2, 23, 2))
    assert record["loss"][-1]["loss"] < record["loss"][0]["loss"]
    assert list(record["settings"]["tasks"]) == ["sums", "spelling"]
    assert record["quality"] is None
    assert len(manifest.tasks) == 3
    weights = load_file(manifest.path(manifest.joint) / "adapter_model.safetensors")
    initial = load_file(joint.root / "initial_adapter" / "adapter_model.safetensors")
    assert all(not torch.equal(weights[name], value) for name, value in initial.items())
    # Those of the tasks are what they are without it.
    assert make.weights(joint.root / "adapters") == make.weights(zoo.root / "adapters")


def test_a_joint_adapter_is_made_once_and_later_too(joint, zoo, config, copy, make):
    times = {file: file.stat().st_mtime_ns for file in joint.root.rglob("*.safetensors")}
    collect(joint.config)
    assert {file: file.stat().st_mtime_ns for file in joint.root.rglob("*.safetensors")} == times
    collect(replace(config, output_dir=str(copy), joint=True))
    assert make.weights(copy / "joint") == make.weights(joint.root / "joint")
    assert ZooManifest.read(copy).joint == "joint/checkpoint-22"


def test_a_joint_adapter_of_other_tasks_is_refused(joint, tmp_path):
    root = Path(shutil.copytree(joint.root, tmp_path / "zoo", ignore=shutil.ignore_patterns(".lock*")))
    again = replace(joint.config.tasks[0], name="again")
    config = replace(joint.config, output_dir=str(root), tasks=[*joint.config.tasks, again])
    for _ in range(2):  # with the task to be trained, and when it is
        with pytest.raises(
            LoragenTrainError, match=r"zoo/joint was made with other settings \(tasks\.again: None, and"
        ):
            collect(config)
    assert ZooManifest.read(root).task("again").adapters


def test_a_joint_adapter_of_a_length_of_its_own(config, copy):
    config = replace(config, output_dir=str(copy), joint=True, joint_steps=4)
    collect(config)
    assert ZooManifest.read(copy).joint == "joint/checkpoint-4"
    with pytest.raises(LoragenTrainError, match=r"zoo/joint was made with other settings \(joint_steps: 4, and"):
        collect(replace(config, joint_steps=6))


def test_a_training_task_without_an_adapter_of_its_own_lends_its_samples_only(config, copy):
    sums, spelling, gcd = config.tasks
    tasks = [sums, spelling, replace(gcd, held_out=False, own_adapter=False)]
    config = replace(config, output_dir=str(copy), tasks=tasks, joint=True, joint_steps=4)
    assert [folder.name for folder in collect(config)] == ["sums", "spelling"]
    manifest = ZooManifest.read(copy)
    described = manifest.task("gcd")
    assert (described.held_out, described.adapters, described.failure) == (False, [], None)
    assert (described.prompts.num_samples, described.test.num_samples) == (16, 4)
    record = json.loads((copy / "joint" / "training.json").read_text())
    assert list(record["settings"]["tasks"]) == ["sums", "spelling", "gcd"]


@pytest.fixture
def lent(config, copy) -> CollectConfig:
    """A zoo whose joint adapter has learned from a task without an adapter of its own."""
    sums, spelling, gcd = config.tasks
    tasks = [sums, spelling, replace(gcd, held_out=False, own_adapter=False)]
    config = replace(config, output_dir=str(copy), tasks=tasks, joint=True, joint_steps=4)
    collect(config)
    return config


def test_samples_that_a_joint_adapter_has_learned_from_are_never_replaced(lent):
    root, (sums, spelling, gcd) = Path(lent.output_dir), lent.tasks
    before = (root / "train/gcd.jsonl").read_bytes()
    for joint in (True, False):
        with pytest.raises(LoragenTrainError, match=r"zoo/joint was made with other settings \(tasks\.gcd: other samp"):
            collect(replace(lent, tasks=[sums, spelling, replace(gcd, num_train=8)], joint=joint, joint_steps=None))
    assert (root / "train/gcd.jsonl").read_bytes() == before
    manifest = ZooManifest.read(root)
    for task in manifest.tasks:
        manifest.samples(task.prompts)  # raises for others than zoo.json describes


def test_samples_that_are_there_need_their_source_no_more(lent, tmp_path, caplog):
    sums, spelling, gcd = lent.tasks
    gone = replace(gcd, source=str(tmp_path / "gone.jsonl"))
    collect(replace(lent, tasks=[sums, spelling, gone]))
    assert "gcd keeps the samples that it has" in caplog.text
    assert ZooManifest.read(lent.output_dir).task("gcd").failure is None


def test_a_joint_adapter_of_a_task_that_is_held_out_by_now_is_not_that_of_the_zoo(lent, caplog):
    sums, spelling, gcd = lent.tasks
    collect(replace(lent, tasks=[sums, spelling, replace(gcd, held_out=True)], joint=False, joint_steps=None))
    manifest = ZooManifest.read(lent.output_dir)
    assert (manifest.task("gcd").held_out, manifest.joint, manifest.joint_folds) == (True, None, [])
    assert "was trained on gcd, held out by now" in caplog.text


def test_a_task_that_has_its_adapter_has_not_failed(zoo, config, copy):
    collect(replace(config, output_dir=str(copy)))
    assert write_manifest(config, copy, {"sums": "its file is gone", "gcd": "gone too"}).task("sums").failure is None
    assert ZooManifest.read(copy).task("gcd").failure == "gone too"


def test_the_settings_of_the_initialisation_count_for_a_joint_adapter_alone(lent):
    lent_only = replace(lent, tasks=[replace(task, own_adapter=False) for task in lent.tasks])
    shutil.rmtree(Path(lent.output_dir) / "joint")
    with pytest.raises(LoragenTrainError, match=r"initial_adapter was made with other settings \(lora\.r: 2, and"):
        collect(replace(lent_only, lora=replace(lent.lora, r=3)))


def test_what_killed_runs_have_left_anywhere_in_a_zoo_is_cleared(config, copy):
    writing = """import os, sys
from pathlib import Path
from lora_tokenizer.io.atomic import atomic_folder
writes = [atomic_folder(Path(name)) for name in sys.argv[1:]]
for write in writes:
    write.__enter__()
os._exit(1)"""
    names = ("base_model", "adapters/one", "joint_folds/1", "train/folder", "test/folder")
    subprocess.run([sys.executable, "-c", writing, *(str(copy / name) for name in names)], check=False)
    assert len(list(copy.rglob(".*.tmp-*"))) == len(names)
    collect(replace(config, output_dir=str(copy)))
    assert not list(copy.rglob(".*.tmp-*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint": True, "joint_steps": 0}, "joint_steps is 0"),
        ({"joint_steps": 4}, "joint_steps is 4, but there is no joint adapter; set joint."),
    ],
)
def test_bad_length_of_a_joint_adapter(config, settings, message):
    with pytest.raises(LoragenTrainError, match=message):
        replace(config, **settings)


def test_no_joint_adapter_without_all_tasks(config, tmp_path, caplog):
    bad = replace(config.tasks[1], source=str(tmp_path / "missing.jsonl"))
    with pytest.raises(LoragenTrainError, match=r"^1 of 2 tasks have failed"):
        collect(replace(config, output_dir=str(tmp_path / "zoo"), tasks=[config.tasks[0], bad], joint=True))
    assert "No joint adapter is trained as long as tasks lack theirs, or samples: spelling." in caplog.text
    assert ZooManifest.read(tmp_path / "zoo").joint is None
    without = replace(config, output_dir=str(tmp_path / "zoo"), joint=True)
    with pytest.raises(LoragenTrainError):
        collect(replace(without, tasks=[config.tasks[0], replace(bad, own_adapter=False)]))
    assert caplog.text.count("or samples: spelling.") == 2


def test_a_joint_adapter_that_diverges_is_named_and_made_by_the_next_run(config, tmp_path, monkeypatch):
    config = replace(config, output_dir=str(tmp_path / "zoo"), joint=True)
    clip = train_lora._Run._clip

    def ruin(self):
        clip(self)
        if self._num_steps == 22:
            self._weights[0].grad.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(train_lora._Run, "_clip", ruin)
        with pytest.raises(LoragenTrainError, match=r"^1 of 3 tasks have failed \(joint\).*training of joint diverged"):
            collect(config)
    assert ZooManifest.read(tmp_path / "zoo").joint is None
    assert len(collect(config)) == 2
    assert ZooManifest.read(tmp_path / "zoo").joint == "joint/checkpoint-22"
