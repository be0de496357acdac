"""verify finds every way in which an adapter can be loaded without a word and do nothing, or not fit."""

import dataclasses
import json
import re

import pytest
import torch
from lora_tokenizer import AdapterConfig, LoraAdapter, read_adapter, write_adapter
from loragen_infer import LoragenInferError
from loragen_infer.adapters.verify import format_report, verify_adapter
from loragen_infer.adapters.vllm_rules import check_vllm
from loragen_infer.cli.main import main
from safetensors.torch import load_file, save_file


def results(report):
    return {check.name: check.passed for check in report.checks}


def changed(adapter, folder, change):
    """A copy of ``adapter`` in ``folder`` with ``change(name, tensor)`` for tensors."""
    tensors = {name: change(name, tensor.clone()) for name, tensor in adapter.tensors.items()}
    return write_adapter(dataclasses.replace(adapter, tensors=tensors), folder)


@pytest.fixture
def adapter(zoo):
    return read_adapter(zoo.adapters[0])


def test_a_good_adapter_passes_and_says_what_vllm_needs(zoo, adapter):
    report = verify_adapter(zoo.adapters[0])
    assert results(report) == {"readable": True, "fits": True, "not zero": True, "acts": True}
    assert report.passed
    assert report.base_model == str(zoo.model)
    assert (report.num_modules, report.num_parameters) == (4, adapter.num_parameters)
    assert report.vllm.max_lora_rank == 8
    assert "--max-lora-rank 8" in format_report(report)


def test_a_generated_adapter_passes_by_the_command_line(zoo, generator, tmp_path, capsys):
    generator.generate(["What is 17 + 25?"]).save_pretrained(tmp_path / "made")
    assert main(["verify", str(tmp_path / "made"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["vllm"] == {"max_lora_rank": 8, "refused": [], "warnings": []}


def test_broken_values_are_named(adapter, tmp_path, capsys):
    changed(adapter, tmp_path / "nan", lambda name, tensor: tensor)
    file = tmp_path / "nan" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[2]
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    report = verify_adapter(tmp_path / "nan")
    assert results(report) == {"readable": False, "fits": None, "not zero": None, "acts": None}
    assert name in report.checks[0].detail
    assert "NaN" in report.checks[0].detail
    assert main(["verify", str(tmp_path / "nan")]) == 1
    captured = capsys.readouterr()
    assert "FAIL readable" in captured.out
    assert captured.err.strip().endswith("fails 1 of the checks: readable.")


def test_an_update_of_zero_is_found_even_in_one_module(adapter, tmp_path):
    module = adapter.modules[1]
    one = changed(adapter, tmp_path / "one", lambda name, t: t * 0 if f"{module}.lora_B" in name else t)
    report = verify_adapter(one)
    assert results(report) == {"readable": True, "fits": True, "not zero": False, "acts": True}
    assert f"zero in 1 modules, such as {module}" in report.checks[2].detail
    everywhere = changed(adapter, tmp_path / "all", lambda name, t: t * 0 if "lora_B" in name else t)
    report = verify_adapter(everywhere)
    assert results(report) == {"readable": True, "fits": True, "not zero": False, "acts": False}
    assert "do not change at all" in report.checks[3].detail


def test_a_zero_product_of_factors_that_are_not_zero_is_found(adapter, tmp_path):
    def first_row_or_second_column(name, tensor):
        half = torch.zeros_like(tensor)
        if "lora_A" in name:
            half[0] = tensor[0]
        else:
            half[:, 1] = tensor[:, 1]
        return half

    report = verify_adapter(changed(adapter, tmp_path / "orthogonal", first_row_or_second_column))
    assert results(report)["not zero"] is False


def test_another_base_model_is_refused_with_what_does_not_fit(zoo, adapter, make, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, options, message in (
        ("wide", {"hidden_size": 64}, r"q_proj.lora_A.weight is \(2, 32\), but the model takes \(2, 64\)"),
        ("shallow", {"num_hidden_layers": 1}, "layers.1.self_attn.q_proj.lora_A.weight .* no such tensor"),
        ("deep", {"num_hidden_layers": 3}, "layers.2.self_attn.q_proj.*missing"),
    ):
        config = LlamaConfig.from_dict({**make.llama().config.to_dict(), "head_dim": None, **options})
        LlamaForCausalLM(config).save_pretrained(tmp_path / name)
        make.tokenizer().save_pretrained(tmp_path / name)
        report = verify_adapter(zoo.adapters[0], base_model=str(tmp_path / name))
        assert results(report)["fits"] is False
        assert results(report)["acts"] is None
        assert not report.passed
        assert re.search(message, report.checks[1].detail), report.checks[1].detail


def test_what_is_not_there_is_named(zoo, adapter, tmp_path):
    with pytest.raises(LoragenInferError, match="nowhere does not exist; give a PEFT adapter folder"):
        verify_adapter(tmp_path / "nowhere")
    with pytest.raises(LoragenInferError, match="some-lab/none"):
        verify_adapter(zoo.adapters[0], base_model="some-lab/none")
    config = dataclasses.replace(adapter.config, base_model_name_or_path=None)
    nameless = write_adapter(dataclasses.replace(adapter, config=config), tmp_path / "nameless")
    with pytest.raises(LoragenInferError, match="names no base model; give --base-model"):
        verify_adapter(nameless)


def make_adapter(**options):
    config = AdapterConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ("q_proj", "v_proj"), **options})
    tensors = {}
    for module in ("layers.0.q_proj", "layers.0.v_proj"):
        rank = config.rank(module)
        name = f"base_model.model.{module}.lora_"
        tensors |= {f"{name}A.weight": torch.ones(rank, 3), f"{name}B.weight": torch.ones(5, rank)}
        if config.use_dora:
            tensors[f"{name}magnitude_vector"] = torch.ones(5)
        if config.lora_bias:
            tensors[f"{name}B.bias"] = torch.ones(5)
    return LoraAdapter(config=config, tensors=tensors)


@pytest.mark.parametrize(
    ("options", "rank", "refused", "warnings"),
    [
        ({}, 8, "", ""),
        ({"r": 8}, 8, "", ""),
        ({"r": 9}, 16, "", ""),
        ({"r": 257}, 320, "", ""),
        ({"r": 513}, None, "rank 513 is above 512", ""),
        ({"use_rslora": True}, 8, "", ""),
        ({"use_dora": True}, 8, "DoRA", ""),
        ({"lora_bias": True}, 8, "lora_B.bias", ""),
        ({"rank_pattern": {"q_proj": 40}, "alpha_pattern": {"q_proj": 80}}, 64, "", ""),
        ({"rank_pattern": {"q_proj": 40}}, 64, "", "rank_pattern and alpha_pattern"),
        ({"alpha_pattern": {"q_proj": 1}}, 8, "", "rank_pattern and alpha_pattern"),
        ({"fan_in_fan_out": True}, 8, "", "fan_in_fan_out"),
    ],
)
def test_what_vllm_needs_and_refuses(options, rank, refused, warnings):
    report = check_vllm(make_adapter(**options))
    assert report.max_lora_rank == rank
    assert refused in " ".join(report.refused)
    assert bool(report.refused) == bool(refused)
    assert warnings in " ".join(report.warnings)
    assert bool(report.warnings) == bool(warnings)


def test_vllm_and_embeddings():
    config = AdapterConfig(r=2, lora_alpha=4, target_modules=("embed_tokens",))
    name = "base_model.model.embed_tokens.lora_embedding_"
    adapter = LoraAdapter(config=config, tensors={f"{name}A": torch.ones(2, 9), f"{name}B": torch.ones(5, 2)})
    assert "embed_tokens" in check_vllm(adapter).refused[0]
