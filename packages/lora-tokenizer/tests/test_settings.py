"""Where settings come from without a whole PEFT folder: the file itself, what lies beside it, or the shapes."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import raw_state
from lora_tokenizer import AdapterConfig, LoraTokenizerError, find_adapters, read_adapter, same_bits, write_adapter
from safetensors.torch import save_file


class CustomSettings:
    """A class of the training code, which a reader elsewhere does not have."""

    def __init__(self) -> None:
        self.lora_alpha, self.r, self.bias = 8, 4, True


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"model": {"lora": {"lora_r": 4, "lora_alpha": 8}}, "bias": True, "folder": pathlib.PurePosixPath("/x")},
        {"lora": argparse.Namespace(lora_rank=4, lora_alpha=8, target_modules={"q_proj", "v_proj"})},
        collections.OrderedDict(lora=CustomSettings()),
    ],
    ids=["flat", "nested", "namespace", "class"],
)
def test_settings_come_from_the_hyper_parameters(settings: Any, tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    state = raw_state(adapter, "model.") | {"model.base_model.model.embed.weight": torch.randn(8, 4)}
    optimizer = [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}]
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "optimizer_states": optimizer}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    read = read_adapter(tmp_path / "x.ckpt")
    assert same_bits(read, adapter)
    assert read.scaling(read.modules[0]) == 2.0


@pytest.mark.parametrize(
    "beside",
    [
        {"lora_config": {"r": 4, "lora_alpha": 8}},
        {"lora_alpha": 8, "lora_r": 4},
        {"lora_alpha": 8, "lora_config": argparse.Namespace(r=4), "lora_names": ["q"], "lora_dropout": None},
    ],
)
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_settings_beside_the_tensors_are_none(beside: Any, key: str | None, tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    state = raw_state(adapter)
    torch.save({**({key: state} if key else state), **beside}, tmp_path / "x.pt")
    read = read_adapter(tmp_path / "x.pt")
    assert same_bits(read, adapter)
    assert read.config.lora_alpha == 8


def test_a_tensor_of_no_module_is_refused(tmp_path: Path, make_adapter: Any) -> None:
    torch.save({**raw_state(make_adapter()), "lora_gate": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(LoraTokenizerError, match="'lora_gate' is a LoRA tensor that linear"):
        read_adapter(tmp_path / "x.pt", lora_alpha=8)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"r": 4, "lora_alpha": 12, "use_rslora": true}', None),
        ("{", "adapter_config in its metadata is not JSON"),
        ("[" * 9999, "adapter_config in its metadata is not JSON"),
        ("[]", "adapter_config in its metadata is not a JSON object"),
        ('{"lora_alpha": 8, "bias": "all"}', "bias is 'all'"),
    ],
)
def test_settings_in_the_metadata_of_a_file(config: str, said: str | None, tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    save_file(dict(adapter.tensors), tmp_path / "x.safetensors", metadata={"adapter_config": config})
    if said is not None:
        with pytest.raises(LoraTokenizerError, match=said):
            read_adapter(tmp_path / "x.safetensors")
        return
    assert read_adapter(tmp_path / "x.safetensors").scaling(adapter.modules[0]) == 6.0
    assert read_adapter(tmp_path / "x.safetensors", lora_alpha=8).scaling(adapter.modules[0]) == 4.0
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "use_rslora": false}')
    assert read_adapter(tmp_path / "x.safetensors").scaling(adapter.modules[0]) == 2.0


def test_a_peft_config_object_in_the_hyper_parameters(tmp_path: Path, make_adapter: Any) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], use_rslora=True, task_type="CAUSAL_LM")
    torch.save({"state_dict": raw_state(make_adapter()), "hyper_parameters": {"peft": config}}, tmp_path / "x.ckpt")
    read = read_adapter(tmp_path / "x.ckpt")
    assert read.config == AdapterConfig(
        r=4, lora_alpha=12, target_modules=("q_proj", "v_proj"), use_rslora=True, task_type="CAUSAL_LM"
    )


def test_a_missing_alpha_names_the_option(tmp_path: Path, make_adapter: Any) -> None:
    torch.save(raw_state(make_adapter()), tmp_path / "x.pt")
    with pytest.raises(LoraTokenizerError, match=r"x\.pt: lora_alpha is missing .* pass lora_alpha="):
        read_adapter(tmp_path / "x.pt")


def test_ranks_are_seen_in_the_shapes(tmp_path: Path, make_adapter: Any) -> None:
    big, small = make_adapter(num_layers=3), make_adapter(num_layers=1, r=2)
    tensors = dict(big.tensors) | dict(small.tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    read = read_adapter(tmp_path / "x.safetensors", lora_alpha=8)
    assert [read.config.rank(module) for module in read.modules] == [2, 2, 4, 4, 4, 4]
    assert same_bits(read, read_adapter(write_adapter(read, tmp_path / "out")))


@pytest.mark.parametrize("rank", [0, 3, 4])
def test_the_rank_of_a_process_is_not_that_of_the_adapter(rank: int, tmp_path: Path, make_adapter: Any) -> None:
    hyper = {"rank": rank, "local_rank": rank, "lora_alpha": 8}
    torch.save({"state_dict": dict(make_adapter().tensors), "hyper_parameters": hyper}, tmp_path / "x.ckpt")
    assert read_adapter(tmp_path / "x.ckpt").config.r == 4


@pytest.mark.parametrize("key", ["base_model_name_or_path", "model_name_or_path", "model_name", "base_model"])
@pytest.mark.parametrize("is_nested", [True, False])
def test_the_name_of_the_base_model_in_hyper_parameters_reaches_the_adapter(
    key: str, is_nested: bool, tmp_path: Path, make_adapter: Any
) -> None:
    hyper = {key: "a/b", "lora": {"lora_alpha": 8}} if is_nested else {key: "a/b", "lora_alpha": 8, "model": "x"}
    torch.save({"state_dict": dict(make_adapter().tensors), "hyper_parameters": hyper}, tmp_path / "x.ckpt")
    assert read_adapter(tmp_path / "x.ckpt").config.base_model_name_or_path == "a/b"
    config = {"lora_alpha": 4, "base_model_name_or_path": "c/d"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_adapter(tmp_path / "x.ckpt").config.base_model_name_or_path == "c/d"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert read_adapter(tmp_path / "x.ckpt").config.base_model_name_or_path == "a/b"


def test_a_config_beside_checkpoints_counts_for_each_of_them(tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    for number in (9, 10):
        torch.save({"state_dict": raw_state(adapter, "model.")}, tmp_path / f"step={number}.ckpt")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 12}))
    found = find_adapters(tmp_path)
    assert [path.name for path in found] == ["step=9.ckpt", "step=10.ckpt"]
    for path in found:
        assert read_adapter(path).config.lora_alpha == 12
        assert read_adapter(path, lora_alpha=2).config.lora_alpha == 2
    save_file(dict(adapter.tensors), tmp_path / "adapter_model.safetensors")
    assert find_adapters(tmp_path) == [tmp_path], "the checkpoints are an adapter's own files"
