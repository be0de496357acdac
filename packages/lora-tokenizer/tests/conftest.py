"""Small real parts for the tests: tiny transformers models, PEFT adapters on them, adapters of bare tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lora_tokenizer import AdapterConfig, LoraAdapter, TokenLayout, write_adapter
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _tiny_llama(num_layers: int = 3, **kwargs: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        **kwargs,
    )
    return LlamaForCausalLM(config)


def _save_peft(model: torch.nn.Module, folder: Path, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Path:
    """Save a PEFT adapter with random values and return its folder."""
    torch.manual_seed(2)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, LoraConfig(**config), autocast_adapter_dtype=False)
        peft_model.to(dtype).save_pretrained(str(folder))
    return folder


def _make_adapter(
    num_layers: int = 2,
    dims: dict[str, tuple[int, int]] | None = None,
    r: int = 4,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> LoraAdapter:
    """An adapter of bare tensors: `dims` is module name to (in, out)."""
    dims = dims or {"self_attn.q_proj": (16, 16), "self_attn.v_proj": (16, 8)}
    tensors = {}
    for layer in range(num_layers):
        for name, (num_in, num_out) in dims.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{stem}A.weight"] = torch.randn(r, num_in).to(dtype)
            tensors[f"{stem}B.weight"] = torch.randn(num_out, r).to(dtype)
    leaves = tuple(name.rpartition(".")[2] for name in dims)
    return LoraAdapter(
        config=AdapterConfig(r=r, **{"lora_alpha": 8, "target_modules": leaves, **config}), tensors=tensors
    )


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    return _tiny_llama


@pytest.fixture(scope="session")
def save_peft() -> Callable[..., Path]:
    return _save_peft


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., LoraAdapter]:
    return _make_adapter


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    return _save_peft(_tiny_llama(), tmp_path / "adapter")


@pytest.fixture
def zoo(tmp_path: Path, make_adapter: Callable[..., LoraAdapter]) -> tuple[list[Path], list[LoraAdapter], TokenLayout]:
    adapters = [make_adapter() for _ in range(5)]
    paths = [write_adapter(adapter, tmp_path / "zoo" / f"checkpoint-{i}") for i, adapter in enumerate(adapters)]
    return paths, adapters, TokenLayout.from_adapter(adapters[0], token_dim=8)
