"""The command tune: from an adapter folder and samples to another adapter folder."""

import dataclasses
import shutil

import pytest
import torch
from lora_tokenizer import read_adapter, same_bits, write_adapter
from loragen_infer.adapters import tuning
from loragen_infer.models.base_model import load_base_model


@pytest.fixture
def adapter(make, tiny_lm, tmp_path):
    model, _ = load_base_model(str(tiny_lm))
    width = model.get_submodule("model.layers.0.self_attn.q_proj").in_features
    made = make.adapter(0, num_layers=model.config.num_hidden_layers, width=width)
    config = dataclasses.replace(made.config, base_model_name_or_path=str(tiny_lm))
    return write_adapter(dataclasses.replace(made, config=config), tmp_path / "adapter")


def test_an_adapter_is_tuned_and_written_beside(make, adapter, tmp_path, capsys):
    samples, output = make.samples(tmp_path / "samples.jsonl", ["one", "two", "three"]), tmp_path / "tuned"
    words = ["tune", str(adapter), "--samples", str(samples), "--steps", "3", "--folds", "0", "--output", str(output)]
    assert make.cli(*words) == 0
    assert "after 3 steps on 3 samples" in capsys.readouterr().out
    before, after = read_adapter(adapter), read_adapter(output)
    assert after.config == before.config
    assert all(not torch.equal(tensor, before.tensors[name]) for name, tensor in after.tensors.items())
    assert make.cli(*words) == 1
    assert f"{output} exists already; choose another --output" in capsys.readouterr().err


def test_of_a_training_that_is_tuned_its_end_counts_and_not_its_checkpoints(make, adapter, tmp_path, capsys):
    samples, output = make.samples(tmp_path / "samples.jsonl", ["one"]), tmp_path / "tuned"
    shutil.copytree(adapter, adapter / "checkpoint-10")
    end = read_adapter(adapter)
    tensors = {name: 2 * tensor for name, tensor in end.tensors.items()}
    write_adapter(dataclasses.replace(end, tensors=tensors), adapter / "checkpoint-10", overwrite=True)
    assert make.cli("tune", str(adapter), "--samples", str(samples), "--steps", "0", "--output", str(output)) == 0
    assert same_bits(read_adapter(output), end)


def test_a_place_that_cannot_be_written_to_is_named_before_the_work(make, adapter, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "tune_many", lambda *_: pytest.fail("it is tuned"))
    samples = make.samples(tmp_path / "samples.jsonl", ["one"])
    output = samples / "tuned"
    assert make.cli("tune", str(adapter), "--samples", str(samples), "--output", str(output)) == 1
    assert "samples.jsonl" in capsys.readouterr().err


def test_what_is_missing_is_named(make, adapter, tmp_path, capsys):
    samples = make.samples(tmp_path / "samples.jsonl", ["one"])
    where = ["--output", str(tmp_path / "tuned")]
    assert make.cli("tune", str(adapter), "--samples", str(tmp_path / "none.jsonl"), *where) == 1
    assert "none.jsonl is not a file" in capsys.readouterr().err
    assert make.cli("tune", str(tmp_path / "none"), "--samples", str(samples), *where) == 1
    assert "none" in capsys.readouterr().err
    rate = ["--learning-rate", "1e30"]
    assert make.cli("tune", str(adapter), "--samples", str(samples), *where, *rate) == 1
    assert "lower the learning rate (1e+30)" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()
