"""Tuning: it learns its samples, each adapter its own, and what is wrong with them is said in one sentence."""

import dataclasses

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError, adapter_attached, tune, tune_many
from loragen_infer.likelihood import response_nll
from loragen_infer.samples import Example, tokenize_example

SAMPLES = [
    [Example(prompt=f"Say {word}", response=word) for word in ("ab", "cd", "efg")],
    [Example(prompt=f"{a}+{b}=", response=str(a + b)) for a, b in ((1, 2), (3, 4), (5, 6), (10, 20))],
]


@pytest.fixture
def model(make):
    return make.llama()


@pytest.fixture
def adapters(make, model, tmp_path):
    folders = [make.adapter(model, tmp_path / str(r), seed=r, r=r, lora_alpha=4) for r in (2, 3)]
    return [read_adapter(folder) for folder in folders]


def nll(model, tokenizer, adapter, samples):
    items = [tokenize_example(tokenizer, sample) for sample in samples]
    with torch.no_grad(), adapter_attached(model, adapter) as adapted:
        return float(response_nll(adapted, items, padding=2).sum())


def test_it_learns_the_samples_and_leaves_everything_else_as_it_was(make, model, adapters):
    tokenizer = make.tokenizer(template=True)
    before = {name: tensor.clone() for name, tensor in adapters[0].tensors.items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = tune(model, tokenizer, adapters[0], SAMPLES[0], num_steps=20, learning_rate=1e-2)
    assert nll(model, tokenizer, tuned, SAMPLES[0]) < 0.8 * nll(model, tokenizer, adapters[0], SAMPLES[0])
    assert tuned.config == adapters[0].config
    assert {name: tensor.shape for name, tensor in tuned.tensors.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapters[0].tensors.items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    assert tune(model, tokenizer, adapters[0], SAMPLES[0], num_steps=0).tensors.keys() == before.keys()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_all_at_once_is_one_by_one(make, model, adapters, batch_size):
    tokenizer = make.tokenizer()
    settings = {"num_steps": 5, "learning_rate": 1e-2, "batch_size": batch_size}
    together = tune_many(model, tokenizer, adapters, SAMPLES, **settings)
    for adapter, samples, found in zip(adapters, SAMPLES, together, strict=True):
        alone = tune(model, tokenizer, adapter, samples, **settings)
        assert found.config == adapter.config
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_adapter_keeps_its_dtype(make, model, adapters):
    tuned = tune(model, make.tokenizer(), adapters[0].to(torch.float16), SAMPLES[0], num_steps=2)
    assert {tensor.dtype for tensor in tuned.tensors.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "There are no samples to tune on"),
        ([Example(prompt="a", response=" ")], {}, "The sample 'a' has no response"),
        ([Example(prompt="x" * 300, response="y")], {}, "has 303 tokens, but the language model takes 256; drop it"),
        (SAMPLES[0], {"learning_rate": 1e30}, r"lower the learning rate \(1e\+30\)"),
        (SAMPLES[0], {"learning_rate": 0.0}, "learning_rate=0; give"),
    ],
)
def test_what_cannot_be_tuned_on_is_named(make, model, adapters, samples, options, message):
    with pytest.raises(LoragenInferError, match=message):
        tune(model, make.tokenizer(), adapters[0], samples, **{"num_steps": 4, **options})
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_of_another_model_or_kind_is_refused(make, model, adapters, tmp_path):
    wide = {name: torch.cat([value, value], dim=1) for name, value in adapters[0].tensors.items() if "lora_A" in name}
    other = dataclasses.replace(adapters[0], tensors={**adapters[0].tensors, **wide})
    with pytest.raises(LoragenInferError, match="they are of another model"):
        tune(model, make.tokenizer(), other, SAMPLES[0])
    dora = read_adapter(make.adapter(model, tmp_path / "dora", use_dora=True))
    with pytest.raises(LoragenInferError, match="use_dora"):
        tune(model, make.tokenizer(), dora, SAMPLES[0])
