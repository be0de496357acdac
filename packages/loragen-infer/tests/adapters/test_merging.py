"""Merging adapters, against PEFT's add_weighted_adapter and by what it does to the weights."""

from dataclasses import replace

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError, merge_adapters
from peft import PeftModel
from transformers import LlamaForCausalLM

WEIGHTS = [0.7, -1.5, 2.0]


@pytest.fixture(scope="module")
def folders(make, llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("merging")
    return [make.adapter(llama, root / str(seed), seed=seed) for seed in (1, 2, 3)]


def of_peft(llama, folders, combination):
    copy = LlamaForCausalLM(llama.config)
    copy.load_state_dict(llama.state_dict())
    model = PeftModel.from_pretrained(copy, str(folders[0]), adapter_name="0")
    for number, folder in enumerate(folders[1:], start=1):
        model.load_adapter(str(folder), adapter_name=str(number))
    names = [str(number) for number in range(len(folders))]
    model.add_weighted_adapter(names, WEIGHTS, "merged", combination_type=combination)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("merged")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize("combination", ["cat", "linear", "svd"])
def test_it_does_what_peft_does(llama, folders, combination):
    merged = merge_adapters([read_adapter(folder) for folder in folders], WEIGHTS, combination=combination)
    expected = of_peft(llama, folders, combination)
    assert set(merged.modules) == set(expected)
    assert merged.config.r == (6 if combination == "cat" else 2)
    for module, delta in expected.items():
        torch.testing.assert_close(merged.delta_weight(module), delta.detach(), rtol=1e-4, atol=1e-5)


def test_stacking_is_exact_over_ranks_modules_and_scalings(make, llama, tmp_path):
    options = [
        {},
        {"r": 3, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]},
        {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"v_proj": 3}, "layers_to_transform": [1]},
    ]
    adapters = [
        read_adapter(make.adapter(llama, tmp_path / str(seed), seed=seed, **own)) for seed, own in enumerate(options)
    ]
    merged = merge_adapters(adapters, WEIGHTS)
    for module in merged.modules:
        terms = [
            weight * adapter.delta_weight(module)
            for adapter, weight in zip(adapters, WEIGHTS, strict=True)
            if module in adapter.modules
        ]
        torch.testing.assert_close(merged.delta_weight(module), torch.stack(terms).sum(dim=0))
    merged.save_pretrained(tmp_path / "merged")
    copy = LlamaForCausalLM(llama.config)
    model = PeftModel.from_pretrained(copy, str(tmp_path / "merged"))
    attached = {name for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    assert {name.removeprefix("base_model.model.") for name in attached} == set(merged.modules)


def test_a_half_precision_adapter_stays_one_and_must_not_overflow(folders):
    half = [read_adapter(folder).to("float16") for folder in folders[:2]]
    assert {tensor.dtype for tensor in merge_adapters(half, [1, 1]).tensors.values()} == {torch.float16}
    with pytest.raises(LoragenInferError, match=r"would hold NaN or Inf in '.*'; use smaller weights"):
        merge_adapters(half, [1e6, 1])


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([1.0], {}, "2 adapters and 1 weights; give one for each"),
        ([1.0, float("nan")], {}, "A weight is nan, where a finite number belongs"),
        ([1.0, 1.0], {"combination": "ties"}, "'ties', where one of cat, linear, svd belongs"),
    ],
)
def test_what_is_refused(folders, weights, options, message):
    with pytest.raises(LoragenInferError, match=message):
        merge_adapters([read_adapter(folder) for folder in folders[:2]], weights, **options)


def test_adapters_that_do_not_go_together_are_refused(make, llama, folders, tmp_path):
    first = read_adapter(folders[0])
    with pytest.raises(LoragenInferError, match="There are no adapters to merge"):
        merge_adapters([], [])
    named = [replace(first, config=replace(first.config, base_model_name_or_path=name)) for name in ("one", "two")]
    with pytest.raises(LoragenInferError, match="different base models, 'one' and 'two'"):
        merge_adapters(named, [1.0, 1.0])
    dora = read_adapter(make.adapter(llama, tmp_path / "dora", use_dora=True))
    with pytest.raises(LoragenInferError, match="An adapter with use_dora is more than two factors"):
        merge_adapters([first, dora], [1.0, 1.0])
    wide = read_adapter(make.adapter(llama, tmp_path / "wide", r=4))
    with pytest.raises(LoragenInferError, match=r"the ranks 2, 4, .* merge them with cat or svd"):
        merge_adapters([first, wide], [1.0, 1.0], combination="linear")
