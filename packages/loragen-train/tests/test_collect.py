"""A zoo trained on a tiny language model: what lies in it, and that it can be gone on with."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from lora_tokenizer import find_adapters, read_adapter
from loragen_infer.models.base_model import load_base_model
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.zoo import records
from loragen_train.zoo.collect import collect
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

WEIGHTS = "adapter_model.safetensors"


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below ``folder`` with the time of its last change and its bytes."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def config(collect_config) -> CollectConfig:
    return collect_config


@pytest.fixture(scope="module")
def zoo(collected) -> SimpleNamespace:
    return collected


def with_output(config: CollectConfig, folder: Path, **changes: object) -> CollectConfig:
    return replace(config, output_dir=str(folder), **changes)


def test_it_returns_the_folders_of_the_trained_tasks(zoo):
    assert zoo.folders == [zoo.root / "adapters" / "sums", zoo.root / "adapters" / "spelling"]
    found = sorted(path.name for path in zoo.root.iterdir() if not path.name.startswith("."))
    assert found == ["adapters", "base_model.json", "initial_adapter", "loss_curves.png", "test", "train", "zoo.json"]


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
        assert record["trained_with"] == ["sums", "spelling"]
        assert record["quality"]["nll"] < record["quality"]["base_nll"]
        assert [row["step"] for row in record["loss"]] == [2, 4, 6, 8, 10]
        assert record["loss"][-1]["loss"] < record["loss"][0]["loss"]


def test_a_second_run_trains_nothing_and_changes_nothing(zoo, config):
    before = contents(zoo.root / "adapters") | contents(zoo.root / "initial_adapter")
    assert collect(config) == zoo.folders
    assert contents(zoo.root / "adapters") | contents(zoo.root / "initial_adapter") == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(make, zoo, config, tmp_path):
    collect(with_output(config, tmp_path / "again"))
    assert make.weights(tmp_path / "again") == make.weights(zoo.root)
    assert contents(tmp_path / "again" / "train").keys() == contents(zoo.root / "train").keys()
    collect(with_output(config, tmp_path / "other", seed=4, tasks=config.tasks[:1]))
    for name, value in make.weights(tmp_path / "other").items():
        assert make.weights(zoo.root)[name] != value


def test_trained_adapters_can_be_tokenized_together(zoo):
    shapes = {
        tuple((name, tuple(value.shape)) for name, value in read_adapter(path).tensors.items())
        for path in find_adapters(zoo.root / "adapters")
    }
    assert len(shapes) == 1
    assert len(next(iter(shapes))) == 8


def test_the_record_has_the_work_and_the_versions(zoo):
    for folder in zoo.folders:
        record = json.loads((folder / "training.json").read_text())
        samples = (zoo.root / "train" / f"{folder.name}.jsonl").read_bytes()
        assert record["samples_sha256"] == hashlib.sha256(samples).hexdigest()
        assert record["precision"] == "fp32"
        assert record["cpu_seconds"] >= 0
        assert record["num_tokens"] > 11 * 4
        # The record's seconds, its share of those of both, are rounded to tenths, which is about what they are.
        shortest, longest = max(record["seconds"] - 0.06, 0.001), record["seconds"] + 0.06
        assert record["num_tokens"] / longest <= record["tokens_per_second"] <= record["num_tokens"] / shortest
        assert record["versions"]["peft"] == peft.__version__


def test_the_loss_curves_are_drawn(zoo, config):
    picture = zoo.root / "loss_curves.png"
    with Image.open(picture) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    picture.unlink()
    collect(config)
    assert picture.is_file()


def test_the_measured_precision_is_kept_with_the_zoo(config, tmp_path, monkeypatch):
    training = replace(config.training, precision="auto", max_steps=2)
    config = with_output(config, tmp_path, training=training, tasks=config.tasks[:2])
    measured = []

    def measure():
        # The first time one thing, afterwards the other, as on a busy machine.
        measured.append(1)
        return "bf16" if len(measured) == 1 else "fp32"

    monkeypatch.setattr(records, "faster_precision", measure)
    collect(replace(config, tasks=config.tasks[:1]))
    assert json.loads((tmp_path / "initial_adapter" / "settings.json").read_text())["precision"] == "bf16"
    collect(config)
    assert len(measured) == 1
    for name in ("sums", "spelling"):
        assert json.loads((tmp_path / "adapters" / name / "training.json").read_text())["precision"] == "bf16"


def test_bf16_gives_other_bits_and_the_measurement_one_of_the_two(make, zoo, config, tmp_path):
    assert records.faster_precision() in ("fp32", "bf16")
    training = replace(config.training, precision="bf16")
    collect(with_output(config, tmp_path, training=training, tasks=config.tasks[:1]))
    assert make.weights(tmp_path / "adapters") != make.weights(zoo.root / "adapters" / "sums")


def test_samples_come_from_named_columns(config, make, tmp_path):
    rows = [{"ask": f"{number}?", "reply": f"{number}!"} for number in range(12)]
    source = str(make.rows(tmp_path / "task.jsonl", rows))
    task = CollectTask(
        name="task", source=source, num_train=8, num_test=4, prompt_column="ask", response_column="reply"
    )
    config = with_output(config, tmp_path / "zoo", tasks=[task])
    collect(config)
    written = make.read(tmp_path / "zoo" / "train" / "task.jsonl")
    assert all(row["response"] == row["prompt"].replace("?", "!") for row in written)
    settings = json.loads((tmp_path / "zoo" / "adapters" / "task" / "training.json").read_text())["settings"]
    assert settings["task"]["prompt_column"] == "ask"
    with pytest.raises(LoragenTrainError, match=r"task\.prompt_column: ask, and now None"):
        collect(replace(config, tasks=[replace(task, prompt_column=None)]))


def test_a_gguf_file_is_unpacked_once(config, tiny_lm, tmp_path, monkeypatch):
    """The unpacking itself is that of loragen-infer; here a folder stands for what comes out of the file."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"one")
    unpacked = []

    def unpack(name, folder):
        if not folder.is_dir():
            unpacked.append(name)
            shutil.copytree(tiny_lm, folder)
        return folder

    monkeypatch.setattr("loragen_train.zoo.initial.save_base_model", unpack)
    config = with_output(config, tmp_path / "zoo", base_model=str(gguf), tasks=config.tasks[:1])
    (folder,) = collect(config)
    settings = json.loads((folder / "checkpoint-11" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "zoo" / "base_model")
    collect(replace(config, tasks=[replace(config.tasks[0], name="again")]))
    assert unpacked == [str(gguf)]
    # Another file, after a first run that ended before there was an initialisation.
    shutil.rmtree(tmp_path / "zoo" / "initial_adapter")
    (tmp_path / "zoo" / "zoo.json").unlink()
    other = tmp_path / "other.gguf"
    other.write_bytes(b"two")
    with pytest.raises(LoragenTrainError, match=r"'.*other\.gguf' is not what .*zoo was begun with"):
        collect(replace(config, base_model=str(other), tasks=[replace(config.tasks[0], name="third")]))


def test_adapters_of_a_model_of_the_hub_name_it_and_no_place_on_this_machine(
    make, zoo, config, tiny_lm, tmp_path, recwarn
):
    snapshot = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "c1899de289a0"
    shutil.copytree(tiny_lm, snapshot)
    collect(with_output(config, tmp_path / "zoo", base_model=str(snapshot)))
    settings = list((tmp_path / "zoo").rglob("adapter_config.json"))
    assert len(settings) == 7
    for file in settings:
        assert json.loads(file.read_text())["base_model_name_or_path"] == "acme/tiny"
        assert str(tmp_path) not in file.read_text()
    assert make.weights(tmp_path / "zoo") == make.weights(zoo.root)
    # PEFT warns when it has asked the hub in vain.
    assert not [warning for warning in recwarn if "acme/tiny" in str(warning.message)]


def test_a_model_stored_in_another_type_is_the_same_model(make, config, tiny_lm, tmp_path):
    """Earlier versions hashed the weights as float32, whatever they were stored in."""
    base = tmp_path / "base"
    model, tokenizer = load_base_model(str(tiny_lm), dtype="bfloat16")
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = with_output(config, tmp_path / "zoo", base_model=str(base))
    digest = records.hash_weights(load_base_model(str(base), dtype="float32")[0])
    assert records.hash_weights(load_base_model(str(base))[0]) == digest
    collect(config)
    assert {value.dtype for file in (tmp_path / "zoo").rglob(WEIGHTS) for value in load_file(file).values()} == {
        torch.float32
    }


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_changes_where_the_model_is_and_nothing_else(make, zoo, config, tmp_path, device_map):
    collect(with_output(config, tmp_path, training=replace(config.training, device_map=device_map)))
    assert make.weights(tmp_path) == make.weights(zoo.root)
