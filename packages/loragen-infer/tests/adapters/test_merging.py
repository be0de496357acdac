"""Merging is PEFT's add_weighted_adapter, and refuses what does not add up."""

import dataclasses
import math

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError
from loragen_infer.adapters.merging import COMBINATIONS, merge_adapters
from loragen_infer.cli.main import main
from peft import PeftModel
from transformers import LlamaForCausalLM


def deltas(adapter):
    return {module: adapter.delta_weight(module) for module in adapter.modules}


def changed(adapter, **settings):
    return dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, **settings))


@pytest.fixture
def pair(zoo):
    return [read_adapter(folder) for folder in zoo.adapters]


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.5, -0.5]])
@pytest.mark.parametrize("combination", list(COMBINATIONS))
def test_it_is_what_peft_makes(zoo, tmp_path, capsys, combination, weights):
    words = ["merge", *map(str, zoo.adapters), "--weights", *map(str, weights), "--combination", combination]
    assert main([*words, "--output", str(tmp_path / "merged")]) == 0
    assert "2 adapters merged" in capsys.readouterr().out
    merged = read_adapter(tmp_path / "merged")
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(zoo.model), zoo.adapters[0], "one")
    model.load_adapter(zoo.adapters[1], "two")
    model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=combination)
    for module, delta in deltas(merged).items():
        expected = model.get_submodule(f"base_model.model.{module}").get_delta_weight("both")
        torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-4)
    assert merged.config.r == {"cat": 4, "linear": 2, "svd": 2}[combination]
    assert merged.config.base_model_name_or_path == str(zoo.model)


def test_cat_and_svd_of_full_rank_are_the_sum(make, llama, tmp_path):
    settings = ({"use_rslora": True}, {"r": 3, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"q_proj": 5}})
    adapters = [
        read_adapter(make.adapter(llama, tmp_path / str(number), seed=number, **options))
        for number, options in enumerate(settings)
    ]
    expected = {module: 2 * a + 0.5 * deltas(adapters[1])[module] for module, a in deltas(adapters[0]).items()}
    merged = merge_adapters(adapters, [2, 0.5])
    assert merged.config.r == 5
    torch.testing.assert_close(deltas(merged), expected)
    wide = merge_adapters([*adapters, adapters[0]], [1, 0.5, 1], combination="svd")
    assert wide.config.r == 3
    errors = [float((deltas(wide)[module] - value).norm() / value.norm()) for module, value in expected.items()]
    assert max(errors) < 1
    v_proj = next(module for module in merged.modules if module.endswith("v_proj"))
    assert errors[list(expected).index(v_proj)] < 1e-5  # ranks 2 and 1 fit into 3


def test_the_dtype_of_the_first_stays(pair):
    half = [pair[0].to("bfloat16"), pair[1]]
    merged = merge_adapters(half, [1, 1], combination="svd")
    assert {value.dtype for value in merged.tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_double_precision_stays(pair, combination):
    fine = [one.to("float64") for one in pair]
    rank = sum(one.config.r for one in fine)
    merged = merge_adapters(fine, [1 / 3, 2], combination="cat")
    if combination == "svd":  # of a rank that holds all of it
        merged = merge_adapters([merged, merged], [0.25, 0.75], combination="svd")
    for module in merged.modules:
        expected = fine[0].delta_weight(module) / 3 + 2 * fine[1].delta_weight(module)
        torch.testing.assert_close(merged.delta_weight(module), expected, rtol=1e-12, atol=1e-14)
    assert merged.config.r == rank


def test_what_does_not_add_up_is_refused(pair, make, llama, tmp_path):
    with pytest.raises(LoragenInferError, match="1 weights for 2 adapters"):
        merge_adapters(pair, [1])
    with pytest.raises(LoragenInferError, match="0 weights for 0 adapters"):
        merge_adapters([], [])
    with pytest.raises(LoragenInferError, match="A weight is nan"):
        merge_adapters(pair, [1, math.nan])
    with pytest.raises(LoragenInferError, match="'ties'; give one of cat, linear, svd"):
        merge_adapters(pair, [1, 1], combination="ties")
    with pytest.raises(LoragenInferError, match=r"Adapter 2 is one of other/model, and adapter 1 one of .*; merge"):
        merge_adapters([pair[0], changed(pair[1], base_model_name_or_path="other/model")], [1, 1])
    broken = {name: value * torch.nan for name, value in pair[1].tensors.items()}
    with pytest.raises(LoragenInferError, match=r"NaN or Inf in base_model.*q_proj"):
        merge_adapters([pair[0], dataclasses.replace(pair[1], tensors=broken)], [1, 1])
    base = pair[0].config.base_model_name_or_path
    for number, (options, reason) in enumerate(
        [
            ({"target_modules": ["q_proj"]}, r"Adapter 1 has the module .*v_proj, and adapter 2 has not"),
            ({"use_dora": True}, "Adapter 2 has use_dora"),
            ({"lora_bias": True}, "Adapter 2 has lora_bias"),
            ({"r": 3}, r"linear needs equal ranks, but .* has 2, 3; use cat or svd"),
        ]
    ):
        other = read_adapter(make.adapter(llama, tmp_path / str(number), **options))
        other = changed(other, base_model_name_or_path=base)
        with pytest.raises(LoragenInferError, match=reason):
            merge_adapters([pair[0], other], [1, 1], combination="linear")


def test_a_name_that_one_lacks_is_the_others(pair):
    nameless = changed(pair[0], base_model_name_or_path=None)
    assert merge_adapters([nameless, pair[1]], [1, 1]).config.base_model_name_or_path


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["A", "B", "--weights", "1"], 2, "--weights has 1 numbers for 2 adapters"),
        (["A", "--weights", "1", "B"], 2, "'B', where a number belongs"),
        (["A", "B", "--weights", "1", "nan"], 1, "A weight is nan"),
        (["A", "B", "--weights", "1", "1", "--combination", "ties"], 2, "ties"),
        (["A", "nowhere", "--weights", "1", "1"], 1, "nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(zoo, tmp_path, capsys, words, code, sentence):
    places = {"A": str(zoo.adapters[0]), "B": str(zoo.adapters[1])}
    try:
        found = main(["merge", *(places.get(word, word) for word in words), "--output", str(tmp_path / "out")])
    except SystemExit as stop:
        found = stop.code
    assert found == code
    said = capsys.readouterr().err
    assert sentence.replace("'B'", repr(places["B"])) in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_looks_at_its_output_before_the_work(zoo, tmp_path, capsys):
    words = ["merge", *map(str, zoo.adapters), "--weights", "1", "1", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    (tmp_path / "file").write_text("x")
    for place, sentence in (
        ("out", "out exists already; choose another --output or remove it."),
        ("file", "file exists already; choose another --output or remove it."),
        ("file/below", "file cannot be written: Not a directory; choose another place or free it."),
    ):
        words = ["merge", "nowhere", "--weights", "1", "--output", str(tmp_path / place)]
        assert main(words) == 1
        assert capsys.readouterr().err == f"loragen-infer merge: error: {tmp_path}/{sentence}\n"
