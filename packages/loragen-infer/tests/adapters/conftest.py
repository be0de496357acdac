"""Tiny models of several architectures with random weights, and random adapters of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from lora_tokenizer import AdapterConfig, LoraAdapter
from loragen_infer import AdapterStack, add_adapter
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # so that the logits depend on the text
}
GROUPED = {**SMALL, "num_key_value_heads": 1}
ARCHITECTURES = {
    "llama": (GROUPED, ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")),
    "qwen2": (GROUPED, ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")),
    "gemma": ({**GROUPED, "head_dim": 8}, ("q_proj", "o_proj", "gate_proj", "down_proj")),
    "gpt_neox": (SMALL, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "phi3": (GROUPED, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    # Its MLP sees the tokens of all samples in one row.
    "opt": (
        {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
        ("q_proj", "v_proj", "fc1", "fc2"),
    ),
    "gpt2": ({**SMALL, "n_embd": 16, "n_head": 2, "n_layer": 2}, ("c_attn",)),
}


def make_model(architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture][0])
    return AutoModelForCausalLM.from_config(config).eval().to(dtype)


def modules_of(model: PreTrainedModel, suffixes: tuple[str, ...] | None = None) -> list[str]:
    """Full names of the layers that end in ``suffixes``, by default attention and MLP of its architecture."""
    wanted = suffixes or ARCHITECTURES[model.config.model_type][1]
    return [name for name, _ in model.named_modules() if name.split(".")[-1] in wanted]


def make_adapter(
    model: PreTrainedModel, suffixes: tuple[str, ...] | None = None, *, seed: int = 0, std: float = 0.3, **options
) -> LoraAdapter:
    """A random adapter; ``options`` are of its config."""
    names = modules_of(model, suffixes)
    config = AdapterConfig(
        **{
            "r": 2,
            "lora_alpha": 6,
            "target_modules": tuple(sorted({name.split(".")[-1] for name in names})),
            "task_type": "CAUSAL_LM",
            **options,
        }
    )
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        layer, rank = model.get_submodule(name), config.rank(name)
        for part, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = std * torch.randn(shape, generator=random)
    return LoraAdapter(config=config, tensors=tensors)


def trainable(adapters: list[LoraAdapter]) -> AdapterStack:
    stack = AdapterStack.of(adapters)
    for factor in (*stack.a_Kri.values(), *stack.b_Kor.values()):
        factor.requires_grad_()
    return stack


def gradients(stack: AdapterStack) -> list[Tensor]:
    return [factor.grad for factor in (*stack.a_Kri.values(), *stack.b_Kor.values())]


def loss_of(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """A loss that every logit has its own part in."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weight = torch.cos(torch.arange(logits[0].numel(), dtype=dtype)).view_as(logits[0])
    return (logits.to(dtype) * weight * (1 if mask is None else mask[..., None])).sum()


def peft_alone(model: PreTrainedModel, adapter: LoraAdapter, mask: Tensor | None = None, **inputs: Tensor):
    """Logits and gradients of A and B by module, with one adapter through PEFT."""
    adapted = add_adapter(copy.deepcopy(model), adapter)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name)
    logits = adapted(**inputs).logits
    loss_of(logits, mask).backward()
    found = {}
    for name in adapter.modules:
        layer = adapted.base_model.model.get_submodule(name)
        found[name] = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
    return logits.detach(), found


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The helpers above, since tests cannot import a conftest."""
    return SimpleNamespace(
        model=make_model,
        modules=modules_of,
        adapter=make_adapter,
        trainable=trainable,
        gradients=gradients,
        loss=loss_of,
        peft_alone=peft_alone,
    )
