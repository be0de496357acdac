"""Adapters that the installed PEFT writes: read, encoded, decoded, written, and loaded by PEFT again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, read_adapter, write_adapter
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(1)
    return T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_ff=24, num_layers=2, num_heads=2, d_kv=8))


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "rslora": ("llama", {"use_rslora": True}),
    "rank and alpha patterns": (
        "llama",
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 3}, "alpha_pattern": {r"^model\.layers\.0\..*": 5}},
    ),
    "patterns with rslora": ("llama", {"rank_pattern": {"q_proj": 2}, "use_rslora": True}),
    "some layers": ("llama", {"layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "regular expression": ("llama", {"target_modules": r".*\.layers\.[02]\..*(q|up)_proj"}),
    "excluded modules": ("llama", {"exclude_modules": r".*layers\.1.*"}),
    "dora": ("llama", {"use_dora": True}),
    "embedding and head": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "dora of embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "lora_bias": ("biased llama", {"lora_bias": True}),
    "encoder-decoder": ("t5", {"target_modules": ["q", "v", "wi"]}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}


@pytest.fixture(scope="session")
def models(tiny_llama: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    return {
        "llama": tiny_llama,
        "biased llama": lambda: tiny_llama(attention_bias=True),
        "t5": tiny_t5,
        "gpt2": tiny_gpt2,
    }


def assert_same(left: LoraAdapter, right: LoraAdapter) -> None:
    assert list(left.tensors) == list(right.tensors)
    for name, tensor in left.tensors.items():
        assert tensor.dtype == right.tensors[name].dtype, name
        assert torch.equal(tensor, right.tensors[name]), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_peft_writes_comes_back_to_the_bit_and_loads_in_peft(
    case: str, dtype: torch.dtype, tmp_path: Path, models: Any, save_peft: Any
) -> None:
    model_name, settings = CASES[case]
    make_model = models[model_name]
    folder = save_peft(make_model(), tmp_path / "in", dtype, **settings)
    adapter = read_adapter(folder)
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {dtype}
    layout = TokenLayout.from_adapter(adapter, token_dim=12, max_tokens="auto")
    decoded = TokenLayout.from_json(layout.to_json()).decode(layout.encode(adapter))
    assert_same(adapter, decoded)

    written = decoded.save_pretrained(tmp_path / "out")
    assert_same(adapter, read_adapter(written))
    model = PeftModel.from_pretrained(make_model().to(dtype), str(written), autocast_adapter_dtype=False)
    result = model.load_adapter(str(written), "again", autocast_adapter_dtype=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    for module in adapter.modules:
        layer = model.base_model.model.get_submodule(module)
        assert layer.scaling["default"] == pytest.approx(adapter.scaling(module))
        if dtype == torch.float32:
            ours = adapter.delta_weight(module)
            theirs = layer.get_delta_weight("default")
            is_turned = case == "conv1d" or "embed" in module
            torch.testing.assert_close(ours.T if is_turned else ours, theirs)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_written_adapter_acts_like_the_original(tmp_path: Path, tiny_llama: Any, save_peft: Any) -> None:
    folder = save_peft(tiny_llama(), tmp_path / "in", rank_pattern={"v_proj": 2}, use_rslora=True)
    written = write_adapter(read_adapter(folder), tmp_path / "out")
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        first = PeftModel.from_pretrained(tiny_llama(), str(folder))(ids).logits
        second = PeftModel.from_pretrained(tiny_llama(), str(written))(ids).logits
        base = tiny_llama()(ids).logits
    assert torch.equal(first, second)
    assert not torch.allclose(first, base)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    settings: dict[str, Any], named: str, tmp_path: Path, tiny_llama: Any, save_peft: Any
) -> None:
    folder = save_peft(tiny_llama(attention_bias=True), tmp_path / "in", **settings)
    with pytest.raises(LoraTokenizerError, match=named):
        read_adapter(folder)


def test_saved_embeddings_are_refused_and_frozen_copies_are_not(
    tmp_path: Path, tiny_llama: Any, save_peft: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = save_peft(tiny_llama(), tmp_path / "in", target_modules=["embed_tokens"])
    assert read_adapter(folder).modules == ("model.embed_tokens",)
