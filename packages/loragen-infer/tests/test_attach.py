"""An adapter attached in memory is the adapter that PEFT loads from disk, and leaves no trace."""

import copy
import dataclasses

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError, adapter_attached, add_adapter, swap_adapter
from peft import PeftModel
from peft.tuners.lora import LoraLayer

INPUT_IDS = torch.tensor([[10, 20, 30, 40, 50], [60, 61, 62, 63, 64]])
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 6},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 20}},
    "some layers": {"layers_to_transform": [1]},
    "mlp": {"target_modules": ["gate_proj", "down_proj"], "r": 4},
    "dora": {"use_dora": True},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
}


@torch.inference_mode()
def logits(model):
    return model(INPUT_IDS).logits


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_peft(tmp_path, make, llama, name):
    folder = make.adapter(llama, tmp_path / "adapter", **VARIANTS[name])
    expected = logits(PeftModel.from_pretrained(copy.deepcopy(llama), str(folder)).eval())
    assert not torch.allclose(expected, logits(llama), atol=1e-3)
    with adapter_attached(llama, read_adapter(folder)) as adapted:
        assert torch.equal(logits(adapted), expected)


@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_bit_identical_afterwards(tmp_path, make, llama, raises):
    adapter = read_adapter(make.adapter(llama, tmp_path / "adapter"))
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    modules, expected = [name for name, _ in llama.named_modules()], logits(llama)
    try:
        with adapter_attached(llama, adapter) as adapted:
            logits(adapted)
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert raises
    assert llama.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    assert [name for name, _ in llama.named_modules()] == modules
    assert all(parameter.requires_grad for parameter in llama.parameters())
    assert torch.equal(logits(llama), expected)


def test_adapters_follow_each_other_without_mixing(tmp_path, make, llama):
    adapters = [read_adapter(make.adapter(llama, tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    first = []
    for adapter in (*adapters, *adapters):
        with adapter_attached(llama, adapter) as adapted:
            first.append(logits(adapted))
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], first[3])
    assert not torch.allclose(first[0], first[1])


def test_the_adapter_is_in_eval_mode(tmp_path, make, llama):
    adapter = read_adapter(make.adapter(llama, tmp_path / "adapter", lora_dropout=0.5))
    with adapter_attached(llama, adapter) as adapted:
        assert not any(module.training for module in adapted.modules())


def refused(model, adapter, message):
    before = logits(model)
    with pytest.raises(LoragenInferError, match=message) as caught, adapter_attached(model, adapter):
        raise AssertionError("it must not get here")
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model), before)


def state_of(model):
    return (
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, parameter.requires_grad, parameter.data_ptr()) for name, parameter in model.named_parameters()],
        "peft_config" in vars(model),
    )


def misfit(make, llama, folder, target):
    """An adapter that names a module LoRA cannot adapt, which PEFT finds out after it has adapted others."""
    adapter = read_adapter(make.adapter(llama, folder))
    config = dataclasses.replace(adapter.config, target_modules=("q_proj", target))
    return dataclasses.replace(adapter, config=config)


@pytest.mark.parametrize("target", ["v_proj", "mlp"])
def test_a_failed_attach_leaves_no_layer_and_thaws_nothing(tmp_path, make, llama, target):
    model = copy.deepcopy(llama).train()
    model.lm_head.requires_grad_(False)
    before = state_of(model)
    adapter = misfit(make, llama, tmp_path / "a", target)
    if target == "v_proj":  # all modules fit, a tensor is missing
        adapter = dataclasses.replace(adapter, tensors=dict(list(adapter.tensors.items())[:-2]))
    with pytest.raises(LoragenInferError, match="does not fit the model"), adapter_attached(model, adapter):
        raise AssertionError("it must not get here")
    assert state_of(model) == before
    with pytest.raises(LoragenInferError, match="does not fit the model"):
        add_adapter(model, adapter)
    assert state_of(model) == before
    wrapped = add_adapter(model, read_adapter(make.adapter(llama, tmp_path / "good")))
    before = state_of(wrapped)
    with pytest.raises(LoragenInferError, match="does not fit the model"):
        add_adapter(wrapped, adapter, adapter_name="second")
    assert state_of(wrapped) == before
    assert list(wrapped.peft_config) == ["default"]


def test_attaching_in_training_mode_ends_in_training_mode(tmp_path, make, llama):
    model = copy.deepcopy(llama).train()
    before = state_of(model)
    with adapter_attached(model, read_adapter(make.adapter(llama, tmp_path / "a"))):
        pass
    assert state_of(model) == before


def test_a_model_that_keeps_less_of_a_forward_pass_has_no_hook_left(tmp_path, make, llama):
    model = copy.deepcopy(llama)
    model.gradient_checkpointing_enable()
    hooks = dict(model.get_input_embeddings()._forward_hooks)
    with adapter_attached(model, read_adapter(make.adapter(llama, tmp_path / "a"))):
        pass
    assert model.get_input_embeddings()._forward_hooks == hooks


def test_added_adapters_are_those_that_peft_would_load(tmp_path, make, llama):
    folders = [make.adapter(llama, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    model = add_adapter(copy.deepcopy(llama), read_adapter(folders[0]), adapter_name="one")
    assert add_adapter(model, read_adapter(folders[1]), adapter_name="two") is model
    for name, folder in zip(("one", "two"), folders, strict=True):
        model.set_adapter(name)
        expected = PeftModel.from_pretrained(copy.deepcopy(llama), str(folder)).eval()
        assert torch.equal(logits(model), logits(expected))
    with pytest.raises(LoragenInferError, match="has an adapter called 'two' already"):
        add_adapter(model, read_adapter(folders[0]), adapter_name="two")


def test_what_is_saved_after_a_swap_to_another_alpha_is_the_adapter_swapped_in(tmp_path, make, llama):
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(make.adapter(llama, tmp_path / "first"))).eval()
    second = make.adapter(llama, tmp_path / "second", seed=2, lora_alpha=32, use_rslora=True)
    swap_adapter(model, read_adapter(second))
    model.save_pretrained(tmp_path / "saved")
    saved = PeftModel.from_pretrained(copy.deepcopy(llama), str(tmp_path / "saved")).eval()
    assert torch.equal(logits(saved), logits(PeftModel.from_pretrained(copy.deepcopy(llama), str(second)).eval()))


def test_an_adapter_of_a_wider_model_is_refused_with_both_shapes(tmp_path, make, llama):
    adapter = read_adapter(make.adapter(llama, tmp_path / "adapter"))
    wide = {name: torch.cat([t, t], dim=1) if "lora_A" in name else t for name, t in adapter.tensors.items()}
    refused(llama, type(adapter)(config=adapter.config, tensors=wide), r"lora_A\.weight is \(2, 64\), .*\(2, 32\)")


def test_an_adapter_that_lacks_a_module_is_refused(tmp_path, make, llama):
    adapter = read_adapter(make.adapter(llama, tmp_path / "adapter"))
    fewer = {name: tensor for name, tensor in adapter.tensors.items() if "layers.1.self_attn.v_proj" not in name}
    message = r"layers\.1\.self_attn\.v_proj\.lora_A\.weight is missing, but the model takes \(2, 32\)"
    refused(llama, type(adapter)(config=adapter.config, tensors=fewer), message)


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path, make, llama):
    adapter = read_adapter(make.adapter(llama, tmp_path / "adapter"))
    deeper = dict(adapter.tensors)
    for name, tensor in adapter.tensors.items():
        if "layers.1." in name:
            deeper[name.replace("layers.1.", "layers.2.")] = tensor
    message = r"layers\.2\.self_attn\.q_proj\.lora_A\.weight is \(2, 32\), but the model takes no such tensor"
    refused(llama, type(adapter)(config=adapter.config, tensors=deeper), message)


def test_target_modules_that_the_model_does_not_have_are_refused(tmp_path, make, llama):
    adapter = read_adapter(make.adapter(llama, tmp_path / "adapter"))
    tensors = {name.replace("q_proj", "query").replace("v_proj", "value"): t for name, t in adapter.tensors.items()}
    config = type(adapter.config)(r=2, lora_alpha=8, target_modules=("query", "value"))
    refused(llama, type(adapter)(config=config, tensors=tensors), "The adapter does not fit the model: ")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_swapped_adapter_is_the_one_that_peft_would_load(tmp_path, make, llama, name):
    first = make.adapter(llama, tmp_path / "first", seed=1, **VARIANTS[name])
    second = make.adapter(llama, tmp_path / "second", seed=2, **VARIANTS[name])
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(first)).eval()
    addresses = {key: value.data_ptr() for key, value in model.state_dict().items()}
    swap_adapter(model, read_adapter(second))
    expected = logits(PeftModel.from_pretrained(copy.deepcopy(llama), str(second)).eval())
    assert torch.equal(logits(model), expected)
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == addresses


def test_a_swap_sets_the_scaling_too(tmp_path, make, llama):
    first = make.adapter(llama, tmp_path / "first", seed=1)
    second = make.adapter(llama, tmp_path / "second", seed=2, lora_alpha=3, use_rslora=True)
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(first)).eval()
    swap_adapter(model, read_adapter(second))
    expected = PeftModel.from_pretrained(copy.deepcopy(llama), str(second)).eval()
    assert torch.equal(logits(model), logits(expected))
    for adapted in (model, expected):  # PEFT finds the scaling anew
        for layer in adapted.modules():
            if isinstance(layer, LoraLayer):
                layer.set_scale("default", 1.0)
    assert torch.equal(logits(model), logits(expected))


def test_a_swap_does_without_what_older_versions_of_peft_do_not_note(tmp_path, make, llama):
    first, second = (make.adapter(llama, tmp_path / str(seed), seed=seed) for seed in (1, 2))
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(first)).eval()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            del layer.use_rslora
    swap_adapter(model, read_adapter(second))
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(copy.deepcopy(llama), str(second)).eval()))


def test_only_the_adapter_that_is_named_is_swapped(tmp_path, make, llama):
    folders = [make.adapter(llama, tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(folders[0])).eval()
    model.load_adapter(str(folders[1]), adapter_name="other")
    before = logits(model)
    swap_adapter(model, read_adapter(folders[2]), adapter_name="other")
    assert torch.equal(logits(model), before)
    model.set_adapter("other")
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(copy.deepcopy(llama), str(folders[2])).eval()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 3}, r"q_proj.lora_A.weight is \(3, 32\), but the model takes \(2, 32\)"),
        ({"target_modules": ["q_proj"]}, "v_proj.lora_A.weight is missing, but the model takes"),
        ({"use_dora": True}, "only one is a DoRA"),
    ],
)
def test_a_swap_that_does_not_fit_changes_nothing(tmp_path, make, llama, options, message):
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(make.adapter(llama, tmp_path / "first"))).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(LoragenInferError, match=message):
        swap_adapter(model, read_adapter(make.adapter(llama, tmp_path / "second", seed=2, **options)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_merged_or_unknown_adapter_is_refused(tmp_path, make, llama):
    folder = make.adapter(llama, tmp_path / "first")
    model = PeftModel.from_pretrained(copy.deepcopy(llama), str(folder)).eval()
    with pytest.raises(LoragenInferError, match="no adapter called 'x'; it has default"):
        swap_adapter(model, read_adapter(folder), adapter_name="x")
    model.merge_adapter()
    with pytest.raises(LoragenInferError, match=r"merged into the base weights; call unmerge_adapter\(\) first"):
        swap_adapter(model, read_adapter(folder))
