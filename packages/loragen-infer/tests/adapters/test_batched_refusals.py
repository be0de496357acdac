"""What cannot be applied is refused by name, and a model is afterwards as it was before."""

import dataclasses

import pytest
import torch
from lora_tokenizer import AdapterConfig, LoraAdapter
from loragen_infer import AdapterStack, BatchedLora, LoragenInferError, add_adapter
from torch import nn

IDS = torch.arange(5, 29).view(4, 6)
Q_PROJ = "model.layers.0.self_attn.q_proj"


def state_of(model):
    """All that hooks, freezing and modes would change."""
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
        for name, module in model.named_modules()
    ]
    return hooks, [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]


def extended(adapter, option, part, size):
    """``adapter`` with one more tensor per module, which ``option`` asks for."""
    extra = {f"base_model.model.{name}.{part}": torch.ones(size) for name in adapter.modules}
    config = dataclasses.replace(adapter.config, **{option: True})
    return LoraAdapter(config=config, tensors={**adapter.tensors, **extra})


def test_dora_and_bias_are_refused(tiny):
    adapter = tiny.adapter(tiny.model(), ("q_proj",))
    dora = extended(adapter, "use_dora", "lora_magnitude_vector", 16)
    bias = extended(adapter, "lora_bias", "lora_B.bias", 16)
    for other, option in ((dora, "use_dora"), (bias, "lora_bias")):
        with pytest.raises(LoragenInferError, match=f"Adapter 1 has {option}"):
            AdapterStack.of([adapter, other])


def test_an_adapted_embedding_is_refused():
    name = "base_model.model.model.embed_tokens.lora_embedding_{}"
    adapter = LoraAdapter(
        config=AdapterConfig(r=2, lora_alpha=2, target_modules=("embed_tokens",)),
        tensors={name.format("A"): torch.ones(2, 61), name.format("B"): torch.ones(16, 2)},
    )
    with pytest.raises(LoragenInferError, match=r"embed_tokens.* of adapter 0 adapts an embedding"):
        AdapterStack.of([adapter])


def test_adapters_that_do_not_go_together_are_refused(tiny):
    model = tiny.model()
    narrow = tiny.adapter(model, ("k_proj",))
    with pytest.raises(LoragenInferError, match="no adapters"):
        AdapterStack.of([])
    with pytest.raises(LoragenInferError, match=r"Adapter 1 and adapter 0 differ in the module .*v_proj"):
        AdapterStack.of([tiny.adapter(model, ("q_proj",)), tiny.adapter(model, ("q_proj", "v_proj"))])
    with pytest.raises(LoragenInferError, match=r"different shapes in .*k_proj"):
        AdapterStack.of([narrow, reshaped(narrow)])


def reshaped(adapter):
    tensors = {
        name: torch.ones(value.shape[0], 17) if "lora_A" in name else value for name, value in adapter.tensors.items()
    }
    return LoraAdapter(config=adapter.config, tensors=tensors)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 16), (2, 16, 3), (3,)), "where those of 3 adapters have"),
        (((2, 3, 16), (2, 16, 4), (2,)), "A of 'x' has the shape"),
        (((3, 16), (16, 3), (1,)), "A of 'x' has the shape"),
    ],
)
def test_factors_of_wrong_shapes_are_refused(shapes, message):
    a, b, scaling = (torch.ones(shape) for shape in shapes)
    with pytest.raises(LoragenInferError, match=message):
        AdapterStack(a_Kri={"x": a}, b_Kor={"x": b}, scaling_K={"x": scaling})


def test_factors_of_different_modules_are_refused():
    with pytest.raises(LoragenInferError, match="not all have 'x'"):
        AdapterStack(a_Kri={"x": torch.ones(1, 2, 3)}, b_Kor={"y": torch.ones(1, 3, 2)}, scaling_K={"x": torch.ones(1)})


def test_layers_that_cannot_be_adapted_are_refused_and_the_model_is_as_before(tiny):
    model, gpt2 = tiny.model(), tiny.model("gpt2")
    peft = add_adapter(tiny.model(), tiny.adapter(tiny.model(), ("q_proj",))).base_model.model
    model.spare = nn.Linear(16, 16)
    cases = [
        (model, [], "no module to adapt"),
        (model, [Q_PROJ, "model.layers.0.self_attn.q_prj"], "did you mean 'model.layers.0.self_attn.q_proj'"),
        (model, ["model.embed_tokens"], "'model.embed_tokens' is a torch.*Embedding; only torch.nn.Linear"),
        (model, [Q_PROJ, "spare"], "does not reach 'spare'"),
        (gpt2, ["transformer.h.0.attn.c_attn"], "is a transformers.pytorch_utils.Conv1D; only torch.nn.Linear"),
        (peft, [Q_PROJ], "is a peft.tuners.lora.layer.Linear; only torch.nn.Linear"),
    ]
    for owner, names, message in cases:
        before = state_of(owner)
        with pytest.raises(LoragenInferError, match=message):
            BatchedLora(owner, names)
        assert state_of(owner) == before


class Picky(nn.Module):
    """An expert: it sees some tokens only."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        return x + self.inner(x.flatten(0, 1)[::2]).sum()


def test_a_layer_that_sees_some_tokens_only_is_refused(tiny):
    model = tiny.model()
    model.model.norm = nn.Sequential(model.model.norm, Picky())
    with pytest.raises(LoragenInferError, match=r"'model.norm.1.inner' sees the shape \[3, 16\] of a batch of 2"):
        BatchedLora(model, ["model.norm.1.inner"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": [2, 2], "num_tokens": [2, 2]}, "exclude each other"),
        ({"num_samples": [4]}, r"2 adapters, but the counts \[4\]"),
        ({"num_samples": []}, r"2 adapters, but the counts \[\]"),
        ({"num_samples": [5, -1]}, r"2 adapters, but the counts \[5, -1\]"),
        ({"num_tokens": [0, 0]}, r"2 adapters, but the counts \[0, 0\]"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_samples": [3, 2]}, r"batch has the shape \[4, 6\], but the adapters have 3 \+ 2 samples"),
        ({"num_samples": [1, 1]}, r"batch has the shape \[4, 6\], but the adapters have 1 \+ 1 samples"),
        ({"num_tokens": [4, 4]}, r"batch has the shape \[4, 6\], but the adapters have 4 \+ 4 tokens"),
    ],
)
def test_counts_that_are_not_those_of_the_batch_are_refused(tiny, options, message):
    model = tiny.model()
    adapters = [tiny.adapter(model, seed=seed) for seed in range(2)]
    batched = BatchedLora(model, adapters[0].modules)
    expected = model(IDS).logits
    with pytest.raises(LoragenInferError, match=message), batched.applied(AdapterStack.of(adapters), **options):
        model(IDS)
    assert torch.equal(model(IDS).logits, expected)


def test_a_batch_that_does_not_divide_is_refused(tiny):
    model = tiny.model()
    adapters = [tiny.adapter(model, seed=seed) for seed in range(3)]
    batched = BatchedLora(model, adapters[0].modules)
    for call in (model, model.model):  # a part of the model is watched too
        with (
            pytest.raises(LoragenInferError, match="3, which do not divide it"),
            batched.applied(AdapterStack.of(adapters)),
        ):
            call(IDS)
    with (
        pytest.raises(LoragenInferError, match=r"sees the shape \[4, 6, 16\], but the adapters have 1 \+ 1 \+ 1"),
        batched.applied(AdapterStack.of(adapters), num_samples=[1, 1, 1]),
    ):
        model.model(IDS)


def test_a_packed_row_of_which_the_head_sees_the_end_is_refused(tiny):
    model = tiny.model()
    adapters = [tiny.adapter(model, ("lm_head",), seed=seed) for seed in range(2)]
    batched = BatchedLora(model, ["lm_head"])
    with (
        pytest.raises(LoragenInferError, match=r"'lm_head' sees the shape \[1, 2, 16\]"),
        batched.applied(AdapterStack.of(adapters), num_tokens=[3, 3]),
    ):
        model(IDS[:1], logits_to_keep=2)


def test_an_adapter_that_no_pass_reached_is_noticed(tiny):
    model = tiny.model()
    adapters = [tiny.adapter(model, ("q_proj", "lm_head"))]
    batched = BatchedLora(model, adapters[0].modules)
    with (
        pytest.raises(LoragenInferError, match="No forward pass reached 'lm_head'"),
        batched.applied(AdapterStack.of(adapters)),
    ):
        model.model(IDS)


def test_a_stack_of_other_layers_or_another_model_is_refused(tiny):
    model = tiny.model()
    batched = BatchedLora(model, tiny.modules(model, ("q_proj",)))
    with (
        pytest.raises(LoragenInferError, match=r"differ in .*v_proj"),
        batched.applied(AdapterStack.of([tiny.adapter(model, ("q_proj", "v_proj"))])),
    ):
        pass
    with (
        pytest.raises(LoragenInferError, match="of 17 to 16 features, but the model's has 16 to 16"),
        batched.applied(AdapterStack.of([reshaped(tiny.adapter(model, ("q_proj",)))])),
    ):
        pass


def interrupted(_):
    raise KeyboardInterrupt


def test_blocks_do_not_nest_and_an_error_ends_one(tiny):
    model = tiny.model()
    expected = model(IDS).logits
    adapters = [tiny.adapter(model)]
    batched = BatchedLora(model, adapters[0].modules)
    stack = AdapterStack.of(adapters)
    with pytest.raises(LoragenInferError, match="applied already"), batched.applied(stack), batched.applied(stack):
        pass
    with pytest.raises(KeyboardInterrupt), batched.applied(stack):
        interrupted(model(IDS))
    with pytest.raises(IndexError), batched.applied(stack):
        model(IDS + 100)
    assert torch.equal(model(IDS).logits, expected)
    with batched.applied(stack):
        assert not torch.allclose(model(IDS).logits, expected, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_remove_leaves_the_model_as_it_was(tiny, training):
    model = tiny.model("opt").train(training)
    model.model.decoder.layers[0].eval()
    for parameter in model.model.decoder.layers[1].parameters():
        parameter.requires_grad_(False)
    before, random = state_of(model), torch.get_rng_state()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    adapters = [tiny.adapter(model)]
    batched = BatchedLora(model, adapters[0].modules)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == [training for *_, training in before[0]]
    with batched.applied(AdapterStack.of(adapters)):
        model(IDS)
    for _ in range(2):
        batched.remove()
        assert state_of(model) == before
        model.lm_head.weight.requires_grad_(False)  # what is done afterwards is no matter of a second remove()
        batched.remove()
        assert not model.lm_head.weight.requires_grad
        model.lm_head.weight.requires_grad_(True)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    with pytest.raises(LoragenInferError, match="were removed"), batched.applied(AdapterStack.of(adapters)):
        pass


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_on_one_model_add_up_and_go_in_any_order(tiny, order):
    model = tiny.model()
    before = state_of(model)
    pair = [tiny.adapter(model, ("q_proj",), seed=1), tiny.adapter(model, ("q_proj", "v_proj"), seed=2)]
    both = [BatchedLora(model, adapter.modules) for adapter in pair]
    with both[0].applied(AdapterStack.of(pair[:1])), both[1].applied(AdapterStack.of(pair[1:])):
        logits = model(IDS).logits
    merged = tiny.model()
    with torch.no_grad():
        for adapter in pair:
            for name in adapter.modules:
                merged.get_submodule(name).weight += adapter.delta_weight(name)
    torch.testing.assert_close(logits, merged(IDS).logits, rtol=1e-4, atol=1e-4)
    both[order[0]].remove()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    both[order[1]].remove()
    assert state_of(model) == before
