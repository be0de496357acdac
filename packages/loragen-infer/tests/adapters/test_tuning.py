"""Tuning: it learns its samples, each adapter its own, and what is wrong with them is said in one sentence."""

import dataclasses

import pytest
import torch
from lora_tokenizer import read_adapter, same_bits
from loragen_infer import LoragenInferError, TuneSettings, adapter_attached, tune, tune_many
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
    tuned = tune(model, tokenizer, adapters[0], SAMPLES[0], num_steps=20, num_folds=0, learning_rate=1e-2)
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


@pytest.mark.parametrize(("batch_size", "num_folds"), [(1, 0), (3, 0), (8, 0), (8, 2)])
def test_all_at_once_is_one_by_one(make, model, adapters, batch_size, num_folds):
    tokenizer = make.tokenizer()
    settings = {"num_steps": 5, "num_folds": num_folds, "learning_rate": 1e-2, "batch_size": batch_size}
    together = tune_many(model, tokenizer, adapters, SAMPLES, TuneSettings(**settings))
    for adapter, samples, found in zip(adapters, SAMPLES, together, strict=True):
        alone = tune(model, tokenizer, adapter, samples, **settings)
        assert found.adapter.config == adapter.config
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(found.adapter.tensors[name], tensor, atol=1e-4, rtol=1e-3)


def loss_left_out(model, tokenizer, adapter, samples, num_folds, num_steps, most):
    """Mean NLL per token of all samples, each after so many of ``most`` steps on those of the other folds."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    samples, losses = [samples[place] for place in order], []
    for fold in range(num_folds):
        others = [sample for place, sample in enumerate(samples) if place % num_folds != fold]
        tuned = tune_stopped(model, tokenizer, adapter, others, num_steps, most)
        for sample in samples[fold::num_folds]:
            num_tokens = len(tokenize_example(tokenizer, sample).response_ids)
            losses.append(nll(model, tokenizer, tuned, [sample]) / num_tokens)
    return sum(losses) / len(losses)


def tune_stopped(model, tokenizer, adapter, samples, num_steps, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loragen_infer.adapters.tuning._best_number", lambda *_: num_steps)
        return tune(model, tokenizer, adapter, samples, num_steps=most, learning_rate=1e-2)


@pytest.mark.parametrize(("num_folds", "batch_size"), [(2, 8), (4, 8), (9, 8), (4, 3)])
def test_it_stops_where_samples_left_out_are_likeliest(make, model, adapters, num_folds, batch_size):
    tokenizer, most, samples = make.tokenizer(), 6, SAMPLES[1]
    settings = TuneSettings(num_steps=most, num_folds=num_folds, learning_rate=1e-2, batch_size=batch_size)
    (found,) = tune_many(model, tokenizer, adapters[:1], [samples], settings)
    folds = min(num_folds, len(samples))
    numbers = range(min(most, found.num_steps + 4) + 1)
    losses = [loss_left_out(model, tokenizer, adapters[0], samples, folds, number, most) for number in numbers]
    assert losses[found.num_steps] == pytest.approx(min(losses), abs=1e-4)
    if batch_size >= len(samples):
        stopped = tune_stopped(model, tokenizer, adapters[0], samples, found.num_steps, most)
        for name, tensor in stopped.tensors.items():
            torch.testing.assert_close(found.adapter.tensors[name], tensor, atol=1e-5, rtol=1e-4)


def test_leaving_out_lets_no_more_samples_pass_at_once_than_a_step(make, model, adapters, monkeypatch):
    seen = []

    def watched(model, items, **rest):
        seen.append(len(items))
        return response_nll(model, items, **rest)

    monkeypatch.setattr("loragen_infer.adapters.tuning.response_nll", watched)
    many = [Example(prompt=f"{a}+{a}=", response=str(2 * a)) for a in range(40)]
    tune(model, make.tokenizer(), adapters[0], many, num_steps=2, batch_size=6)
    assert max(seen) == 6
    # Two folds of three samples each.
    seen.clear()
    tune(model, make.tokenizer(), adapters[0], SAMPLES[1], num_steps=2)
    assert max(seen) == 6


def test_what_makes_samples_left_out_less_likely_is_not_done(make, model, adapters):
    tokenizer = make.tokenizer()
    samples = [Example(prompt="Say it", response=word) for word in ("aaaa", "bbbb", "aaaa", "bbbb")]
    # It holds both for likely, and each fold would teach one of them alone.
    start = tune(model, tokenizer, adapters[0], samples, num_steps=40, num_folds=0, learning_rate=0.03)
    settings = TuneSettings(num_steps=8, num_folds=2, learning_rate=0.3)
    (found,) = tune_many(model, tokenizer, [start], [samples], settings)
    assert found.num_steps == 0
    assert all(torch.equal(found.adapter.tensors[name], tensor) for name, tensor in start.tensors.items())


def test_a_single_sample_takes_all_steps(make, model, adapters):
    (found,) = tune_many(model, make.tokenizer(), adapters[:1], [SAMPLES[0][:1]], TuneSettings(num_steps=3))
    assert found.num_steps == 3


def test_the_adapter_keeps_its_dtype(make, model, adapters):
    tuned = tune(model, make.tokenizer(), adapters[0].to(torch.float16), SAMPLES[0], num_steps=2)
    assert {tensor.dtype for tensor in tuned.tensors.values()} == {torch.float16}


def test_without_a_step_it_is_the_adapter_itself(make, model, adapters):
    fine = adapters[0].to(torch.float64)
    fine = dataclasses.replace(fine, tensors={name: value + 1e-12 for name, value in fine.tensors.items()})
    assert same_bits(tune(model, make.tokenizer(), fine, SAMPLES[0], num_steps=0), fine)


@pytest.mark.parametrize("count", [0, 1])
def test_each_adapter_needs_samples_of_its_own(make, model, adapters, count):
    with pytest.raises(LoragenInferError, match=f"samples of 2 tasks for {count} adapters"):
        tune_many(model, make.tokenizer(), adapters[:count], [SAMPLES[0], SAMPLES[0]])


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "There are no samples to tune on"),
        ([Example(prompt="a", response=" ")], {}, "The sample 'a' has no response"),
        ([Example(prompt="x" * 300, response="y")], {}, "has 303 tokens, but the language model takes 256; drop it"),
        (SAMPLES[0], {"learning_rate": 1e30}, r"lower the learning rate \(1e\+30\)"),
        (SAMPLES[0], {"learning_rate": 1e30, "num_folds": 0}, r"lower the learning rate \(1e\+30\)"),
        (SAMPLES[0], {"learning_rate": 0.0}, "learning_rate=0; give"),
        (SAMPLES[0], {"num_folds": -1}, "num_folds=-1, batch_size=8"),
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
