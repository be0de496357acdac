"""A bundle that is conditioned on states of its base model: loaded, generated with, shown, and its model checked."""

import dataclasses
import json
import shutil

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import GeneratorBundle, LoraGenerator, LoragenInferError, StateEncoder
from loragen_infer.cli.main import main
from loragen_infer.encoder import Condition, load_encoder
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.run import evaluate
from transformers import AutoModelForCausalLM

DESCRIPTION = "Translate English words to French"
PROMPTS = [DESCRIPTION, "Name the capital of France."]


@pytest.fixture(scope="module", params=["lm:1", "both:1"])
def made(request, zoo, make, tmp_path_factory):
    """Path of a bundle with that condition, and its encoder."""
    encoder = load_encoder(
        Condition.parse(request.param), text_encoder="all-MiniLM-L6-v2", condition_model=str(zoo.model)
    )
    bundle = make.bundle(zoo.adapters, condition_dim=encoder.embedding_dim)
    bundle = dataclasses.replace(bundle, **encoder.record)
    return bundle.save(tmp_path_factory.mktemp("made") / "generator.safetensors"), encoder


def changed(bundle_file, path, **changes):
    return dataclasses.replace(GeneratorBundle.load(bundle_file), **changes).save(path)


def another_model(zoo, folder):
    shutil.copytree(zoo.model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(folder)
    return str(folder)


def test_a_bundle_brings_its_encoder_and_a_description_is_a_prompt_like_any_other(made, tmp_path):
    file, encoder = made
    generator = LoraGenerator.from_pretrained(file, cache_dir=tmp_path)
    assert generator.encoder.fingerprint == encoder.fingerprint
    adapters = [generator.generate([prompt]) for prompt in PROMPTS]
    expected = LoraGenerator(GeneratorBundle.load(file), encoder)
    for prompt, adapter in zip(PROMPTS, adapters, strict=True):
        plain = expected.generate([prompt]).tensors
        assert all(torch.allclose(value, plain[name], atol=1e-5) for name, value in adapter.tensors.items())
    assert not all(torch.allclose(value, adapters[1].tensors[name]) for name, value in adapters[0].tensors.items())
    assert list(tmp_path.glob("*.sqlite"))
    moved = generator.to("cpu", dtype="bfloat16")
    assert moved.generate(PROMPTS).tensors.keys() == adapters[0].tensors.keys()


@pytest.mark.parametrize("kind", ["sentence", "states"])
def test_generate_takes_a_task_description(zoo, made, tmp_path, capsys, kind):
    model = str(zoo.experiment if kind == "sentence" else made[0])
    words = ["generate", "--model", model, "--prompt", DESCRIPTION, "--output", str(tmp_path / "adapter")]
    assert main(words) == 0, capsys.readouterr().err
    adapter = read_adapter(tmp_path / "adapter")
    assert all(value.isfinite().all() and value.any() for value in adapter.tensors.values())
    assert DESCRIPTION in (tmp_path / "adapter" / "README.md").read_text()


def test_info_shows_the_condition(zoo, made, capsys):
    file, encoder = made
    assert main(["info", str(file), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["condition"] == encoder.record["condition"]
    fingerprint = encoder.record["condition_model_fingerprint"]
    assert described["condition_model"] == {"name": str(zoo.model), "fingerprint": fingerprint}
    assert described["text_encoder"]["name"] == encoder.record["text_encoder_name"]


def test_the_base_model_may_lie_elsewhere(zoo, made, tmp_path, capsys):
    file, encoder = made
    shutil.copytree(zoo.model, tmp_path / "moved")
    gone = changed(file, tmp_path / "gone.safetensors", condition_model_name="/no/model")
    words = ["generate", "--model", str(gone), "--prompt", "a", "--output", str(tmp_path / "adapter")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"condition_model, whose states are in the condition {encoder.record['condition']}: The base model" in error
    assert main([*words, "--condition-model", str(tmp_path / "moved")]) == 0
    generator = LoraGenerator.from_pretrained(gone, condition_model=str(tmp_path / "moved"))
    assert generator.encoder.fingerprint == encoder.fingerprint


def test_another_model_under_the_same_name_is_refused(zoo, made, tmp_path):
    file, _ = made
    other = another_model(zoo, tmp_path / "other")
    renamed = changed(file, tmp_path / "renamed.safetensors", condition_model_name=other)
    message = r"The base model .* is not the one of training: .* has the fingerprint .*, where the bundle has .*; give"
    with pytest.raises(LoragenInferError, match=message):
        LoraGenerator.from_pretrained(renamed)
    with pytest.raises(LoragenInferError, match=r"as it was then as condition_model \(--condition-model\)\.$"):
        LoraGenerator.from_pretrained(file, condition_model=other)


def test_an_encoder_of_another_condition_is_refused(zoo, made, encoder):
    bundle = GeneratorBundle.load(made[0])
    for wrong in (encoder, StateEncoder(str(zoo.model), layer=2)):
        with pytest.raises(LoragenInferError, match=f"but the generator was trained on '{bundle.condition}'; use"):
            LoraGenerator(bundle, wrong)
    with pytest.raises(
        LoragenInferError, match=r"gives the condition '.*:1', but the generator was trained on 'sentenc"
    ):
        LoraGenerator(zoo.bundle, made[1])


def test_evaluate_takes_it_as_any_other(zoo, made, make, tmp_path):
    make.manifest(tmp_path / "zoo", adapters=zoo.adapters, model=zoo.model)
    options = {"rows": ["base", "generated", "junk"], "num_resamples": 100, "output_dir": str(tmp_path / "out")}
    evaluation = evaluate(
        EvaluateConfig(model=str(made[0]), zoo=str(tmp_path / "zoo"), zoo_tasks="held-out", **options)
    )
    (task,) = evaluation.tasks
    assert task.rows["generated"].nll != task.rows["base"].nll
