"""info says what a bundle holds, to people and to scripts."""

import dataclasses
import json

import pytest
import torch
import yaml
from loragen_infer import GeneratorBundle, LoragenInferError, TrainingTasks
from loragen_infer.bundle.info import describe_bundle
from loragen_infer.cli.main import main


def test_everything_about_a_bundle_as_json(zoo, capsys):
    assert main(["info", str(zoo.experiment), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    bundle, config = zoo.bundle, zoo.bundle.generator.config
    assert described["file"] == str(zoo.file)
    assert described["size_bytes"] == zoo.file.stat().st_size
    assert described["fingerprint"] == bundle.fingerprint
    assert described["base_model"] == str(zoo.model)
    assert described["text_encoder"]["name"] == "all-MiniLM-L6-v2"
    assert described["text_encoder"]["fine_tuned"] is False
    assert described["generator"]["num_parameters"] == sum(p.numel() for p in bundle.generator.parameters())
    assert described["generator"]["flops_per_adapter"]["8_prompts"] == bundle.generator.flops(8)
    assert described["generator"]["config"] == config.to_dict()
    assert described["layout"]["grid"] == list(bundle.layout.grid)
    assert described["adapter"] == {
        "num_parameters": 448,
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert described["training"]["num_checkpoints"] == 2
    assert described["versions"].keys() == {"hyperconv", "lora-tokenizer", "loragen-infer", "torch"}


def test_it_tells_a_fine_tuned_encoder_and_its_tasks(zoo, tmp_path, capsys):
    bundle = dataclasses.replace(
        zoo.bundle,
        text_encoder_name="some-lab/other",
        text_encoder_state={"0.x": torch.zeros(1)},
        training_tasks=TrainingTasks(names=("sums",)),
        provenance={"experiment": "zoo_1"},
    )
    path = bundle.save(tmp_path / "x.safetensors")
    described = describe_bundle(path)
    assert described["format_version"] == 2
    assert described["text_encoder"]["fine_tuned"] is True
    assert described["training"]["tasks"] == ["sums"]
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "  revision: null\n" in text
    assert "    experiment: zoo_1\n" in text
    assert yaml.safe_load(text)["fingerprint"] == GeneratorBundle.load(path).fingerprint


def test_what_is_no_bundle_is_named(tmp_path, capsys):
    with pytest.raises(LoragenInferError, match="does not exist"):
        describe_bundle(tmp_path / "x")
    assert main(["info", str(tmp_path)]) == 1
    assert "holds no generator.safetensors" in capsys.readouterr().err
