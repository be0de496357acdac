"""A task that fails is named in zoo.json and at the end, and stops no other; the next run tries it again."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from loragen_infer.zoo import ZooManifest
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.zoo import train_lora
from loragen_train.zoo.collect import collect
from safetensors.torch import load_file

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def config(make, questions, collect_config, tmp_path) -> CollectConfig:
    """Three tasks that are trained at once; without dropout, so that none depends on the others in its group."""
    files = {name: str(make.samples(tmp_path / f"{name}.jsonl", questions[name])) for name in ("sums", "more", "last")}
    return replace(
        collect_config,
        output_dir=str(tmp_path / "zoo"),
        tasks=[CollectTask(name=name, source=file, num_train=16, num_test=4) for name, file in files.items()],
        lora=replace(collect_config.lora, lora_dropout=0.0),
    )


def tensors(root: Path, name: str) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name} {key}": value
        for file in (root / "adapters" / name).rglob(WEIGHTS)
        for key, value in load_file(file).items()
    }


def failures(root: Path) -> dict[str, str]:
    return {task.name: task.failure for task in ZooManifest.read(root).tasks if task.failure is not None}


def run_cli(make, config: CollectConfig) -> int:
    file = Path(config.output_dir).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    return make.cli("collect", "--config", str(file))


@pytest.fixture
def let_diverge(config, monkeypatch):
    """Make the weights of one adapter of the group infinite after a step."""

    def patch(adapter: int, step: int, value: float = torch.inf) -> None:
        advance = train_lora._Run.advance

        def break_one(self):
            advance(self)
            if self.step == step:
                with torch.no_grad():
                    for weight in self._weights:
                        weight[adapter] = value

        monkeypatch.setattr(train_lora._Run, "advance", break_one)

    return patch


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("step", [1, 4, 10])
def test_one_that_diverges_leaves_the_others_as_they_would_be(
    make, config, tmp_path, let_diverge, value, step, capsys, caplog, monkeypatch
):
    root = tmp_path / "zoo"
    with monkeypatch.context():
        collect(replace(config, output_dir=str(tmp_path / "undisturbed")))
        group = json.loads((tmp_path / "undisturbed/adapters/sums/training.json").read_text())["trained_with"]
        assert sorted(group) == ["last", "more", "sums"]
        let_diverge(1, step, value)
        lost = group[1]
        capsys.readouterr()
        assert run_cli(make, config) == 1
    out, said = capsys.readouterr()
    assert out == "".join(f"{root}/adapters/{name}\n" for name in ("sums", "more", "last") if name != lost)
    problem = f"The training of {lost} diverged; lower training.learning_rate, which is 0.01."
    assert said.strip().splitlines()[-1] == (
        f"loragen-train collect: error: 1 of 3 tasks have failed ({lost}), as {root}/zoo.json says; the first: "
        f"{problem}"
    )
    assert f"{lost} gets no adapter: {problem}" in caplog.text
    assert "Traceback" not in said
    assert failures(root) == {lost: problem}
    assert not (root / "adapters" / lost).exists()
    assert not (root / "unfinished").exists()
    for name in group[:1] + group[2:]:
        torch.testing.assert_close(tensors(root, name), tensors(tmp_path / "undisturbed", name), atol=0, rtol=0)


def test_the_next_run_tries_what_has_failed_again(config, tmp_path, let_diverge, monkeypatch, caplog):
    with monkeypatch.context():
        let_diverge(0, 4)
        with pytest.raises(LoragenTrainError, match=r"^1 of 3 tasks have failed"):
            collect(config)
        monkeypatch.undo()
    (lost,) = failures(tmp_path / "zoo")
    kept = {task.name for task in config.tasks} - {lost}
    before = {name: (tmp_path / "zoo/adapters" / name / "training.json").stat().st_mtime_ns for name in kept}
    with caplog.at_level("INFO"):
        assert [folder.name for folder in collect(config)] == ["sums", "more", "last"]
    assert f"Training 1 adapter: {lost}." in caplog.text
    assert failures(tmp_path / "zoo") == {}
    assert {name: (tmp_path / "zoo/adapters" / name / "training.json").stat().st_mtime_ns for name in kept} == before


@pytest.mark.parametrize("save_every", [2, 11])
def test_a_single_task_that_diverges_is_refused_in_its_own_sentence(config, tmp_path, save_every):
    training = replace(config.training, learning_rate=1e37, save_every=save_every)
    with pytest.raises(LoragenTrainError) as caught:
        collect(replace(config, training=training, tasks=config.tasks[:1]))
    assert str(caught.value) == ("The training of sums diverged; lower training.learning_rate, which is 1e+37.")
    assert not (tmp_path / "zoo" / "adapters").exists()
    assert not (tmp_path / "zoo" / "unfinished").exists()


def test_weights_that_the_last_step_ruins_are_no_adapter(config, tmp_path, monkeypatch):
    clip = train_lora._Run._clip

    def ruin(self):
        clip(self)
        if self.step == 10:
            self._weights[0].grad[1] = torch.nan

    monkeypatch.setattr(train_lora._Run, "_clip", ruin)
    with pytest.raises(LoragenTrainError, match=r"^1 of 3 tasks have failed .* diverged; lower"):
        collect(config)
    assert len(list((tmp_path / "zoo" / "adapters").iterdir())) == 2


def test_bad_sources_among_good_ones_are_named_before_the_first_step_and_the_rest_is_trained(
    make, config, tmp_path, monkeypatch, caplog, capsys
):
    few = str(make.samples(tmp_path / "few.jsonl", ["a", "b", "a "]))
    bad = [
        CollectTask(name="nowhere", source=str(tmp_path / "missing.jsonl"), num_train=4, num_test=1),
        CollectTask(name="few", source=few, num_train=4, num_test=1),
        CollectTask(name="unseen", source=str(tmp_path / "missing.jsonl"), num_train=4, num_test=1, held_out=True),
    ]
    config = replace(config, tasks=[bad[0], *config.tasks[:2], *bad[1:]])
    known = []
    advance = train_lora._Run.advance

    def watch(self):
        known.append(failures(tmp_path / "zoo"))
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(train_lora._Run, "advance", watch)
        with pytest.raises(LoragenTrainError) as caught:
            collect(config)
    found = failures(tmp_path / "zoo")
    assert known[0] == found
    assert list(found) == ["nowhere", "few", "unseen"]
    assert "missing.jsonl is not a file" in found["nowhere"] == found["unseen"]
    assert re.search(r"few\.jsonl has 2 different prompts, fewer than the 5 .*num_train", found["few"])
    assert str(caught.value) == (
        f"3 of 5 tasks have failed (nowhere, few, unseen), as {tmp_path}/zoo/zoo.json says; the first: "
        f"{found['nowhere']}"
    )
    for name, problem in found.items():
        assert f"{name} gets no adapter: {problem}" in caplog.text
    assert sorted(path.name for path in (tmp_path / "zoo" / "adapters").iterdir()) == ["more", "sums"]

    # Mended, but for one.
    make.samples(tmp_path / "missing.jsonl", [f"{number}?" for number in range(5)])
    with pytest.raises(LoragenTrainError, match=r"^1 of 5 tasks have failed \(few\)"):
        collect(config)
    assert list(failures(tmp_path / "zoo")) == ["few"]
    assert (tmp_path / "zoo" / "adapters" / "nowhere").is_dir()


def test_too_few_samples_say_which_keys_to_lower_and_duplicates_are_counted(config, make, tmp_path, caplog):
    source = str(make.samples(tmp_path / "task.jsonl", ["a", "b", "a ", "c"]))
    task = CollectTask(name="task", source=source, num_train=3, num_test=1)
    config = replace(config, tasks=[task])
    with pytest.raises(LoragenTrainError, match=r"task\.jsonl has 3 different prompts, fewer than the 4 .*num_train"):
        collect(config)
    with caplog.at_level("INFO"):
        collect(replace(config, tasks=[replace(task, num_train=2, held_out=True)]))
    assert "task: 3 samples; not used: 1 duplicate." in caplog.text


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate"])
def test_samples_over_the_limit_fail_or_are_left_out_or_cut_off(make, config, tmp_path, too_long, caplog):
    prompts = [f"{number}: " + "a very long prompt " * (5 if number % 4 == 0 else 1) for number in range(24)]
    long = str(make.samples(tmp_path / "long.jsonl", prompts))
    tasks = [*config.tasks[:1], CollectTask(name="long", source=long, num_train=20, num_test=4)]
    training = replace(config.training, max_length=60, too_long=too_long)
    config = replace(config, tasks=tasks, training=training)
    file = tmp_path / "zoo" / "train" / "long.jsonl"
    if too_long == "error":
        with pytest.raises(LoragenTrainError) as caught:
            collect(config)
        row = next(number for number, sample in enumerate(make.read(file), start=1) if len(sample["prompt"]) > 60)
        message = failures(tmp_path / "zoo")["long"]
        assert re.fullmatch(
            rf"{file}, row {row} has \d+ tokens, over training\.max_length, which is 60; raise it, or set "
            r"training\.too_long to drop or truncate\.",
            message,
        )
        assert str(caught.value).endswith(message)
        assert [path.name for path in (tmp_path / "zoo" / "adapters").iterdir()] == ["sums"]
        return
    assert len(collect(config)) == 2
    num_long = sum(len(sample["prompt"]) > 60 for sample in make.read(file))
    done = {"drop": "left out", "truncate": "cut off"}[too_long]
    assert f"{file}: {num_long} samples over training.max_length {done}." in caplog.text
    assert ZooManifest.read(tmp_path / "zoo").task("long").quality is not None
