"""A zoo trained on a tiny language model: what lies in it, that it can be gone on with, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_tokenizer import find_adapters, read_adapter
from loragen_infer.base_model import load_base_model
from loragen_train import LoragenTrainError, lora_training
from loragen_train.collect import collect
from loragen_train.collect_config import CollectConfig, CollectTask, LoraSettings, LoraTraining
from peft import PeftModel
from safetensors.torch import load_file

WEIGHTS = "adapter_model.safetensors"


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below ``folder`` with the time of its last change and its bytes."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def weights(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob(WEIGHTS)}


@pytest.fixture(scope="module")
def config(tmp_path_factory, make, questions, tiny_lm) -> CollectConfig:
    """Two tasks to train and one held out; dropout, so that the seed of the training matters too."""
    root = tmp_path_factory.mktemp("collect")
    files = {name: str(make.samples(root / f"{name}.jsonl", questions[name])) for name in ("sums", "spelling")}
    return CollectConfig(
        base_model=str(tiny_lm),
        output_dir=str(root / "zoo"),
        tasks=[
            CollectTask(name="sums", source=files["sums"], num_train=16, num_test=4),
            CollectTask(name="spelling", source=files["spelling"], num_train=16, num_test=4),
            CollectTask(name="gcd", source="reasoning-gym:gcd", num_train=16, num_test=4, held_out=True),
        ],
        lora=LoraSettings(r=2, lora_alpha=4, lora_dropout=0.1),
        training=LoraTraining(
            max_steps=11, batch_size=4, learning_rate=1e-2, save_every=2, keep_last=3, max_length=200, precision="fp32"
        ),
        seed=3,
    )


@pytest.fixture(scope="module")
def zoo(config) -> SimpleNamespace:
    return SimpleNamespace(root=Path(config.output_dir), folders=collect(config))


def with_output(config: CollectConfig, folder: Path, **changes: object) -> CollectConfig:
    return replace(config, output_dir=str(folder), **changes)


def test_it_returns_the_folders_of_the_trained_tasks(zoo):
    assert zoo.folders == [zoo.root / "adapters" / "sums", zoo.root / "adapters" / "spelling"]
    found = sorted(path.name for path in zoo.root.iterdir() if not path.name.startswith("."))
    assert found == ["adapters", "base_model.json", "initial_adapter", "loss_curves.png", "test", "train"]


def test_the_last_checkpoints_are_kept_and_the_last_step_is_among_them(zoo):
    for folder in zoo.folders:
        names = ["checkpoint-8", "checkpoint-10", "checkpoint-11"]
        assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "training.json"])
        assert [path.name for path in find_adapters(folder)] == names


def test_a_checkpoint_is_an_ordinary_peft_folder_and_nothing_more(zoo, tiny_lm):
    for checkpoint in find_adapters(zoo.root / "adapters"):
        assert sorted(file.name for file in checkpoint.iterdir()) == ["adapter_config.json", WEIGHTS]
        model, _ = load_base_model(str(tiny_lm))
        loaded = {
            name.replace(".default", ""): value
            for name, value in PeftModel.from_pretrained(model, str(checkpoint)).state_dict().items()
            if "lora_" in name
        }
        stored = load_file(checkpoint / WEIGHTS)
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(loaded[name], value) for name, value in stored.items())
        settings = json.loads((checkpoint / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (2, 4, "CAUSAL_LM")
        assert sorted(settings["target_modules"]) == ["q_proj", "v_proj"]
        assert settings["base_model_name_or_path"] == str(tiny_lm)


def test_training_moves_every_tensor_and_tasks_differ(zoo):
    initial = load_file(zoo.root / "initial_adapter" / WEIGHTS)
    sums, spelling = (load_file(folder / "checkpoint-11" / WEIGHTS) for folder in zoo.folders)
    for name, value in initial.items():
        assert not torch.equal(sums[name], value)
        assert not torch.equal(sums[name], spelling[name])


def test_all_tasks_start_from_the_one_initial_adapter(config, tmp_path):
    # The first step of a warm-up has a learning rate of zero, so its checkpoint is what the training started from.
    training = replace(config.training, max_steps=1, save_every=1)
    folders = collect(with_output(config, tmp_path, training=training))
    initial = load_file(tmp_path / "initial_adapter" / WEIGHTS)
    for folder in folders:
        start = load_file(folder / "checkpoint-1" / WEIGHTS)
        assert start.keys() == initial.keys()
        assert all(torch.equal(start[name], value) for name, value in initial.items())
    assert all(bool(value.any()) == ("lora_A" in name) for name, value in initial.items())


def test_samples_are_split_and_none_is_on_both_sides(zoo, config, make, questions):
    for task in config.tasks:
        train, test = (make.read(zoo.root / part / f"{task.name}.jsonl") for part in ("train", "test"))
        assert (len(train), len(test)) == (16, 4)
        prompts = [row["prompt"] for row in train + test]
        assert len(set(prompts)) == 20
        assert all(row["response"] for row in train + test)
        if task.name in questions:
            assert set(prompts) == set(questions[task.name][:20])
            assert prompts != questions[task.name][:20]


def test_a_held_out_task_has_samples_and_no_adapter(zoo):
    assert (zoo.root / "train" / "gcd.jsonl").is_file()
    assert (zoo.root / "test" / "gcd.jsonl").is_file()
    assert not (zoo.root / "adapters" / "gcd").exists()


def test_the_record_says_with_what_and_how_well_it_was_trained(zoo, config, tiny_lm):
    for folder, task in zip(zoo.folders, config.tasks[:2], strict=True):
        record = json.loads((folder / "training.json").read_text())
        settings = record["settings"]
        assert settings["base_model"] == str(tiny_lm)
        assert settings["lora"]["r"] == 2
        assert settings["training"]["max_steps"] == 11
        assert settings["seed"] == 3
        assert settings["task"]["name"] == task.name
        assert record["tokens_per_second"] > 0
        assert [row["step"] for row in record["loss"]] == [2, 4, 6, 8, 10]
        assert record["loss"][-1]["loss"] < record["loss"][0]["loss"]


def test_a_second_run_trains_nothing_and_changes_nothing(zoo, config):
    before = contents(zoo.root / "adapters") | contents(zoo.root / "initial_adapter")
    assert collect(config) == zoo.folders
    assert contents(zoo.root / "adapters") | contents(zoo.root / "initial_adapter") == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(zoo, config, tmp_path):
    collect(with_output(config, tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(zoo.root)
    assert contents(tmp_path / "again" / "train").keys() == contents(zoo.root / "train").keys()
    collect(with_output(config, tmp_path / "other", seed=4, tasks=config.tasks[:1]))
    for name, value in weights(tmp_path / "other").items():
        assert weights(zoo.root)[name] != value


def test_a_task_trained_later_or_alone_gets_the_same_bits(zoo, config, tmp_path):
    collect(with_output(config, tmp_path, tasks=config.tasks[1:2]))
    assert {name: value for name, value in weights(zoo.root).items() if "sums" not in name} == weights(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_task_leaves_nothing_half_and_the_next_run_goes_on(zoo, config, tmp_path, monkeypatch, error):
    def stop_in_the_second_task(self, args, state, control, **kwargs):
        if self._name == "spelling" and state.global_step == 5:
            raise error
        self._bar.advance()

    with monkeypatch.context() as patch:
        patch.setattr(lora_training._StepProgress, "on_step_end", stop_in_the_second_task)
        with pytest.raises(error):
            collect(with_output(config, tmp_path))
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["sums"]
    first = contents(tmp_path / "adapters" / "sums")

    collect(with_output(config, tmp_path))
    assert contents(tmp_path / "adapters" / "sums") == first
    assert weights(tmp_path) == weights(zoo.root)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("seed", {"seed": 9}),
        ("lora", {"lora": LoraSettings(r=3)}),
        ("training", {"training": LoraTraining(max_steps=2, save_every=1)}),
        ("task", {"tasks": [CollectTask(name="sums", source="reasoning-gym:gcd", num_train=5, num_test=1)]}),
    ],
)
def test_other_settings_on_the_same_folder_are_refused_and_change_nothing(zoo, config, key, change):
    before = contents(zoo.root)
    with pytest.raises(LoragenTrainError) as caught:
        collect(replace(config, **change))
    message = str(caught.value)
    assert f"{zoo.root}/adapters/sums was made with other settings ({key}" in message
    assert message.endswith("; remove it or choose another output_dir.")
    assert "\n" not in message
    assert contents(zoo.root) == before


@pytest.mark.parametrize(("key", "change"), [("seed", {"seed": 9}), ("lora", {"lora": LoraSettings(r=3)})])
def test_a_new_task_cannot_join_a_zoo_of_another_initialisation(zoo, config, key, change):
    new = CollectTask(name="capitals", source="reasoning-gym:gcd", num_train=5, num_test=1)
    before = contents(zoo.root)
    with pytest.raises(LoragenTrainError, match=rf"initial_adapter was made with other settings \({key}"):
        collect(replace(config, tasks=[new], **change))
    assert contents(zoo.root) == before


def test_a_folder_that_is_not_ours_is_left_alone(config, tmp_path):
    (tmp_path / "adapters" / "sums").mkdir(parents=True)
    (tmp_path / "adapters" / "sums" / "precious.txt").write_text("x")
    with pytest.raises(LoragenTrainError, match=r"adapters/sums exists but was not written by collect; choose another"):
        collect(with_output(config, tmp_path))
    assert (tmp_path / "adapters" / "sums" / "precious.txt").read_text() == "x"


@pytest.mark.parametrize("modules", [["no_such_module"], ["q_proj", "no_such_module"]])
def test_target_modules_that_the_model_lacks_are_refused(config, tmp_path, modules):
    lora = replace(config.lora, target_modules=modules)
    with pytest.raises(
        LoragenTrainError, match=r"^lora\.target_modules names 'no_such_module', which .*tiny-llama lacks"
    ) as caught:
        collect(with_output(config, tmp_path, lora=lora))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "adapters").exists()
    assert not (tmp_path / "initial_adapter").exists()


def test_a_training_that_diverges_is_refused_and_leaves_no_adapter(config, tmp_path):
    training = replace(config.training, learning_rate=3e38)
    with pytest.raises(LoragenTrainError, match=r"^The training of sums diverged.*; lower training\.learning_rate"):
        collect(with_output(config, tmp_path, training=training))
    assert not (tmp_path / "adapters").exists()
    assert not (tmp_path / "unfinished").exists()


def test_trained_adapters_can_be_tokenized_together(zoo):
    shapes = {
        tuple((name, tuple(value.shape)) for name, value in read_adapter(path).tensors.items())
        for path in find_adapters(zoo.root / "adapters")
    }
    assert len(shapes) == 1
    assert len(next(iter(shapes))) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [CollectTask(name="a", source="x"), CollectTask(name="a", source="y")]}, "'a' is used twice"),
        ({"seed": -1}, "seed is -1, but must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296, but must be from 0 to 4294967295"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    values = {"base_model": "x", "tasks": [CollectTask(name="a", source="x")], **changes}
    with pytest.raises(LoragenTrainError, match=message):
        CollectConfig(**values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (CollectTask, {"name": "../x", "source": "x"}, "becomes a file name"),
        (CollectTask, {"name": "a", "source": "x", "num_train": 0}, r"tasks \(a\): num_train is 0"),
        (CollectTask, {"name": "a", "source": "x", "num_test": -1}, r"tasks \(a\): num_test is -1"),
        (LoraSettings, {"r": 0}, r"lora\.r is 0"),
        (LoraSettings, {"lora_alpha": 0}, r"lora\.lora_alpha is 0"),
        (LoraSettings, {"lora_dropout": 1.0}, r"lora\.lora_dropout is 1\.0"),
        (LoraSettings, {"target_modules": []}, r"lora\.target_modules is empty"),
        (LoraTraining, {"max_steps": 3, "save_every": 4}, r"training\.save_every is 4, over max_steps=3"),
        (LoraTraining, {"learning_rate": 0.0}, r"training\.learning_rate is 0\.0"),
        (LoraTraining, {"learning_rate": float("nan")}, r"training\.learning_rate is nan"),
        (LoraTraining, {"keep_last": 0}, r"training\.keep_last is 0"),
    ],
)
def test_a_setting_out_of_range_is_named(kind, values, message):
    with pytest.raises(LoragenTrainError, match=message):
        kind(**values)
