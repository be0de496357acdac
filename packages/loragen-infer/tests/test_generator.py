"""Prompts in, an adapter out that PEFT takes as its own."""

import copy
import dataclasses
import itertools
import os
import shutil
from fractions import Fraction

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_tokenizer import read_adapter, write_adapter
from loragen_infer import LoraGenerator, LoragenInferError, PromptEncoder, adapter_attached, scale_adapter
from loragen_infer.models import locate_model
from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from torch._dynamo.exc import TorchDynamoException
from transformers import LlamaForCausalLM

PROMPTS = ["What is 17 + 25?", "What is 3 + 88?", "What is 40 + 2?"]


def same(first, second, atol):
    assert first.tensors.keys() == second.tensors.keys()
    return all(torch.allclose(t, second.tensors[name], rtol=0, atol=atol) for name, t in first.tensors.items())


def test_the_order_of_the_prompts_does_not_matter(generator):
    expected = generator.generate(PROMPTS)
    for prompts in itertools.permutations(PROMPTS):
        assert same(generator.generate(prompts), expected, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(prompts=st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=4))
def test_any_prompts_give_a_finite_adapter_of_the_layout(generator, prompts):
    adapter = generator.generate(prompts)
    layout = generator.bundle.layout
    assert {name: tuple(t.shape) for name, t in adapter.tensors.items()} == {s.name: s.shape for s in layout.slots}
    assert all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())
    assert adapter.config == layout.config


def test_other_prompts_give_another_adapter_and_the_same_prompts_the_same_bits(generator):
    adapter = generator.generate(PROMPTS)
    assert same(generator.generate(PROMPTS), adapter, atol=0)
    assert not same(generator.generate(["Name the capital of France."]), adapter, atol=1e-3)


def test_it_is_generator_statistics_and_layout_in_that_order(generator, encoder):
    bundle = generator.bundle
    with torch.inference_mode():
        z_NW = bundle.generator(encoder.encode(PROMPTS)[None])[0]
    expected = bundle.layout.decode(z_NW * bundle.stats.std + bundle.stats.mean)
    assert same(generator.generate(PROMPTS), expected, atol=1e-6)


@pytest.mark.filterwarnings("error:.*missing.*keys.*")
def test_peft_loads_the_folder_without_missing_or_unexpected_keys(zoo, generator, tmp_path):
    adapter = generator.generate(PROMPTS)
    write_adapter(adapter, tmp_path / "adapter")
    base = LlamaForCausalLM.from_pretrained(zoo.model)
    peft_model = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter")).eval()
    loaded = get_peft_model_state_dict(peft_model)
    assert loaded.keys() == adapter.tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in adapter.tensors.items())
    result = peft_model.load_adapter(str(tmp_path / "adapter"), adapter_name="again")
    assert [key for key in result.missing_keys if "lora_" in key] == []
    assert result.unexpected_keys == []
    input_ids = torch.tensor([[10, 20, 30]])
    with torch.inference_mode(), adapter_attached(base, adapter) as adapted:
        assert torch.equal(adapted(input_ids).logits, peft_model(input_ids).logits)


def test_the_mean_adapter_is_the_mean_of_the_training_adapters(zoo, generator):
    first, second = (read_adapter(folder) for folder in zoo.adapters)
    for name, tensor in generator.mean_adapter().tensors.items():
        torch.testing.assert_close(tensor, (first.tensors[name] + second.tensors[name]) / 2)


def test_from_pretrained_finds_the_encoder_that_the_bundle_names(zoo, generator):
    loaded = LoraGenerator.from_pretrained(zoo.experiment)
    assert loaded.encoder.name == "all-MiniLM-L6-v2"
    assert same(loaded.generate(PROMPTS), generator.generate(PROMPTS), atol=1e-6)


def test_from_pretrained_uses_the_fine_tuned_encoder_of_the_bundle(zoo, generator, encoder, tmp_path):
    name = "0.model.encoder.layer.5.output.dense.weight"
    state = {name: 2 * encoder.module.state_dict()[name]}
    bundle = dataclasses.replace(zoo.bundle, text_encoder_state=state)
    loaded = LoraGenerator.from_pretrained(bundle.save(tmp_path / "x.safetensors"))
    tuned = PromptEncoder("all-MiniLM-L6-v2", state=state)
    assert same(loaded.generate(PROMPTS), LoraGenerator(bundle, tuned).generate(PROMPTS), atol=1e-6)
    assert not same(loaded.generate(PROMPTS), generator.generate(PROMPTS), atol=1e-3)


def test_no_prompt_is_refused(generator):
    with pytest.raises(LoragenInferError, match="There is no prompt"):
        generator.generate([])


def test_an_encoder_of_another_width_is_refused_at_once(zoo, make, encoder):
    bundle = make.bundle(zoo.adapters, condition_dim=16)
    with pytest.raises(LoragenInferError, match="makes embeddings of 384 values, but the generator takes 16"):
        LoraGenerator(bundle, encoder)


def test_an_encoder_that_is_not_there_is_named(zoo, tmp_path):
    path = dataclasses.replace(zoo.bundle, text_encoder_name="some-lab/other").save(tmp_path / "x.safetensors")
    with pytest.raises(LoragenInferError, match="The text encoder 'some-lab/other' is neither"):
        LoraGenerator.from_pretrained(path)


def test_many_are_as_one_by_one_and_read_no_further_ahead_than_a_batch(generator):
    tasks = [PROMPTS[: 1 + index % 3] for index in range(7)]
    taken = []

    def endless():
        for task in itertools.cycle(tasks):
            taken.append(task)
            yield task

    adapters = list(itertools.islice(generator.generate_many(endless(), batch_size=3), 7))
    assert len(taken) == 9
    for task, adapter in zip(tasks, adapters, strict=True):
        assert same(adapter, generator.generate(task), atol=1e-5)


def test_many_refuse_what_one_refuses(generator):
    for tasks, message in (
        ([["a"], []], "There is no prompt"),
        ([["a", " "]], "Prompt 2 of 2 has no text"),
        (["abc"], "The prompts of a task are the text 'abc'; give a list"),
    ):
        with pytest.raises(LoragenInferError, match=message):
            list(generator.generate_many(tasks))
    with pytest.raises(LoragenInferError, match="batch_size is 0"):
        list(generator.generate_many([["a"]], batch_size=0))


def test_a_scale_may_be_any_number(generator):
    expected = generator.generate(["a"], scale=0.5)
    for scale in (np.float32(0.5), np.float64(0.5), Fraction(1, 2)):
        assert same(generator.generate(["a"], scale=scale), expected, atol=0)


def test_of_many_each_has_a_scale_of_its_own_or_none_is_made(generator):
    tasks, scales = [["a"], ["b"], ["c"]], [0.5, 2.0, -1.0]
    for of_tasks, of_scales in ((tasks, scales), (iter(tasks), iter(scales)), (tasks, itertools.cycle(scales))):
        found = list(generator.generate_many(of_tasks, batch_size=2, scale=of_scales))
        for task, scale, adapter in zip(tasks, scales, found, strict=True):
            assert same(adapter, generator.generate(task, scale=scale), atol=1e-5)
    for wrong, message in (
        (scales[:2], "scale has 2 values for 3 tasks"),
        ([*scales, 1.0], "has 4 values for 3 tasks"),
    ):
        with pytest.raises(LoragenInferError, match=f"{message}; give one for each, or a single number for all"):
            next(generator.generate_many(tasks, scale=wrong))
    endless = generator.generate_many(itertools.repeat(["a"]), batch_size=2, scale=iter(scales))
    assert len(list(itertools.islice(endless, 2))) == 2
    with pytest.raises(LoragenInferError, match="scale has fewer values than there are tasks; give one for each"):
        next(endless)


def test_an_adapter_can_be_saved_by_itself(generator, tmp_path):
    adapter = generator.generate(PROMPTS)
    assert same(read_adapter(adapter.save_pretrained(tmp_path / "made")), adapter, atol=0)


@pytest.mark.parametrize("scale", [0.5, -2, 0])
def test_scale_is_a_factor_on_the_effect(generator, scale):
    plain, scaled = generator.generate(PROMPTS), generator.generate(PROMPTS, scale=scale)
    for module in plain.modules:
        torch.testing.assert_close(scaled.delta_weight(module), scale * plain.delta_weight(module))


def test_scales_that_make_no_sense_are_refused(zoo, make, llama, generator, tmp_path):
    for scale in (float("nan"), float("inf")):
        with pytest.raises(LoragenInferError, match="where a finite number belongs"):
            generator.generate(PROMPTS, scale=scale)
    dora = read_adapter(make.adapter(llama, tmp_path / "dora", use_dora=True))
    with pytest.raises(LoragenInferError, match=r"DoRA adapter cannot be scaled by 0\.5"):
        scale_adapter(dora, 0.5)
    biased = read_adapter(make.adapter(llama, tmp_path / "biased", lora_bias=True))
    name = next(name for name in biased.tensors if name.endswith("lora_B.bias"))
    assert torch.equal(scale_adapter(biased, 0.5).tensors[name], 0.5 * biased.tensors[name])


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.3), ("float16", 0.05)])
def test_another_dtype_gives_nearly_the_same_and_leaves_the_bundle_alone(zoo, encoder, generator, dtype, atol):
    before = zoo.bundle.fingerprint
    low = LoraGenerator(zoo.bundle, encoder, dtype=dtype)
    adapter, exact = low.generate(PROMPTS), generator.generate(PROMPTS)
    assert same(adapter, exact, atol=atol)
    assert not same(adapter, exact, atol=0)
    assert zoo.bundle.fingerprint == before
    assert low.fingerprint != generator.fingerprint
    with pytest.raises(LoragenInferError, match="The dtype 'int8' is unknown; use one of float32"):
        LoraGenerator(zoo.bundle, encoder, dtype="int8")


def test_weights_that_make_nan_are_said_and_not_written(zoo, encoder, make):
    bundle = make.bundle(zoo.adapters)
    with torch.no_grad():
        bundle.generator.output_scale.fill_(torch.inf)
    with pytest.raises(LoragenInferError, match="The generator made NaN or Inf in float32"):
        LoraGenerator(bundle, encoder).generate(PROMPTS)


def test_the_fingerprint_knows_bundle_and_encoder(zoo, encoder, make, generator):
    assert LoraGenerator(zoo.bundle, encoder).fingerprint == generator.fingerprint
    assert LoraGenerator(make.bundle(zoo.adapters, seed=5), encoder).fingerprint != generator.fingerprint
    name = "0.model.embeddings.LayerNorm.weight"
    other = PromptEncoder("all-MiniLM-L6-v2", state={name: 2 * encoder.module.state_dict()[name]})
    assert LoraGenerator(zoo.bundle, other).fingerprint != generator.fingerprint


def test_a_generator_moves_saves_itself_and_is_loaded_again(zoo, encoder, generator, tmp_path):
    moved = LoraGenerator(zoo.bundle, encoder).to("cpu", dtype=torch.bfloat16)
    assert same(moved.generate(PROMPTS), LoraGenerator(zoo.bundle, encoder, dtype="bfloat16").generate(PROMPTS), atol=0)
    assert same(moved.to(dtype="float32").generate(PROMPTS), generator.generate(PROMPTS), atol=0)
    with pytest.raises(LoragenInferError, match="The device 'cuda:99' cannot be used"):
        moved.to("cuda:99")
    loaded = LoraGenerator.from_pretrained(moved.save_pretrained(tmp_path / "saved"))
    assert loaded.fingerprint == generator.fingerprint
    assert loaded.base_model == generator.base_model == str(zoo.model)


def test_a_generated_adapter_is_added_to_a_model_in_memory(zoo, generator):
    model = generator.add_to(LlamaForCausalLM.from_pretrained(zoo.model), PROMPTS, adapter_name="sums")
    assert generator.add_to(model, ["Paris?"], adapter_name="capitals", scale=0.5) is model
    for name, adapter in (
        ("sums", generator.generate(PROMPTS)),
        ("capitals", generator.generate(["Paris?"], scale=0.5)),
    ):
        found = get_peft_model_state_dict(model, adapter_name=name)
        assert all(torch.equal(found[key], tensor) for key, tensor in adapter.tensors.items())


def test_adapters_name_a_cached_or_packaged_base_model_as_the_hub_does(zoo, encoder):
    snapshot = "/home/ada/.cache/huggingface/hub/models--lab--base/snapshots/0123abc"
    generator = LoraGenerator(zoo.bundle.with_base_model(snapshot), encoder)
    assert generator.base_model == generator.generate(["a"]).config.base_model_name_or_path == "lab/base"


def pinned(zoo, encoder, **changes):
    changes = {"text_encoder_fingerprint": encoder.fingerprint, **changes}
    return dataclasses.replace(zoo.bundle, **changes)


def test_an_encoder_of_the_same_name_and_other_content_is_refused(zoo, encoder, tmp_path):
    LoraGenerator(pinned(zoo, encoder), encoder)
    path = pinned(zoo, encoder, text_encoder_fingerprint="0" * 32, text_encoder_revision="abc").save(tmp_path / "x.pt")
    message = f"has the fingerprint {encoder.fingerprint}, where the bundle has {'0' * 32}; use 'all-MiniLM-L6-v2' at"
    with pytest.raises(LoragenInferError, match=message):
        LoraGenerator.from_pretrained(path)


def test_a_fine_tuned_encoder_is_pinned_with_its_weights(zoo, encoder, tmp_path):
    state = {"0.model.embeddings.LayerNorm.weight": torch.full((384,), 0.5)}
    tuned = PromptEncoder("all-MiniLM-L6-v2", state=state)
    bundle = pinned(zoo, tuned, text_encoder_state=state)
    assert LoraGenerator.from_pretrained(bundle.save(tmp_path / "x.pt")).encoder.fingerprint == tuned.fingerprint
    with pytest.raises(LoragenInferError, match="is not the one of training"):
        LoraGenerator(bundle, encoder)


def test_an_encoder_in_a_relative_folder_is_found_from_elsewhere(zoo, encoder, tmp_path, monkeypatch):
    source = locate_model("all-MiniLM-L6-v2", kind="text encoder")
    training, elsewhere = tmp_path / "training", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(source, training / "encoders" / "mine", ignore=shutil.ignore_patterns("*.safetensors"))
    (training / "encoders" / "mine" / "model.safetensors").symlink_to(f"{source}/model.safetensors")
    monkeypatch.chdir(training)
    name = PromptEncoder("encoders/mine").name
    assert name == str(training / "encoders" / "mine")
    bundle = pinned(zoo, encoder, text_encoder_name=name).save(training / "x.safetensors")
    old = pinned(zoo, encoder, text_encoder_name="encoders/mine").save(training / "old.safetensors")
    monkeypatch.chdir(elsewhere)
    for path in (bundle, old):
        assert LoraGenerator.from_pretrained(path).encoder.name == name
    shutil.move(training, tmp_path / "moved")  # the encoder goes along with its bundle, or lies beside it
    assert LoraGenerator.from_pretrained(tmp_path / "moved" / "old.safetensors").encoder.name.startswith(str(tmp_path))
    shutil.move(tmp_path / "moved" / "encoders" / "mine", tmp_path / "moved")
    assert (
        LoraGenerator.from_pretrained(tmp_path / "moved" / "x.safetensors").encoder.fingerprint == encoder.fingerprint
    )


def test_a_bundle_in_the_hub_cache_is_loaded_by_name_and_revision(zoo, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--lab--generator" / "snapshots" / commit
    zoo.bundle.save(snapshot / "generator.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert LoraGenerator.from_pretrained("lab/generator", revision=commit).bundle.fingerprint == zoo.bundle.fingerprint
    with pytest.raises(LoragenInferError, match="The model lab/generator does not exist; give a bundle"):
        LoraGenerator.from_pretrained("lab/generator", revision="1" * 40)


@pytest.mark.skipif(os.environ.get("LORAGEN_TEST_COMPILE") != "1", reason="slow; set LORAGEN_TEST_COMPILE=1")
def test_compiled_and_plain_agree(zoo, encoder, generator):
    compiled = LoraGenerator(zoo.bundle, encoder, compile=True)
    for prompts in (["a"], ["a", "b", "c"]):
        assert same(compiled.generate(prompts), generator.generate(prompts), atol=1e-4)


def test_a_compilation_that_fails_is_one_sentence(zoo, encoder, monkeypatch):
    def refuse(*_args):
        raise TorchDynamoException("no compiler\nand a long story")

    compiled = LoraGenerator(zoo.bundle, encoder, compile=True)
    monkeypatch.setattr(compiled, "_network", refuse)
    with pytest.raises(LoragenInferError, match=r"^torch\.compile failed \(no compiler\); leave --compile away\.$"):
        compiled.generate(["a"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_agrees_with_the_cpu(zoo, generator, dtype, compiled):
    on_gpu = LoraGenerator.from_pretrained(zoo.experiment, device="cuda", dtype=dtype, compile=compiled)
    atol = 1e-3 if dtype == "float32" else 0.3
    adapters = list(on_gpu.generate_many([["a"], ["b", "c"], ["d"]], batch_size=2))
    for prompts, adapter in zip((["a"], ["b", "c"], ["d"]), adapters, strict=True):
        assert same(adapter, generator.generate(prompts), atol=atol)
