"""Patterns of ranks and alphas: matched as PEFT does, and refused where Python's engine would run for years."""

from __future__ import annotations

import pytest
import torch
from lora_tokenizer import AdapterConfig, LoraAdapter, LoraTokenizerError
from peft.utils.other import get_pattern_key

SLOW = [
    ".?" * 100 + "x",
    "(?:.|.)" * 100 + "x",
    "(.|.)(.|.)" * 20 + "x",
    ".*" * 20 + "x",
    ".*.*.*x",
    "[ab]*" * 9 + "x",
    "a{1,99}" * 9 + "x",
    "[]a]?" * 60 + "x",
    r"\.?\w?" * 30 + "x",
    "(a+)+b",
    "((a|b)*)*c",
    "(a?){60}a{60}",
    r"(a)\1*" * 9,
]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_would_run_for_years_is_refused(pattern: str) -> None:
    module = "a." * 230 + "a"
    tensors = {f"base_model.model.{module}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    for name in ("rank_pattern", "alpha_pattern"):
        settings = {"r": 2, "lora_alpha": 4, "target_modules": ("a",), name: {pattern: 2}}
        with pytest.raises(LoraTokenizerError, match="repeats too much"):
            LoraAdapter(config=AdapterConfig(**settings), tensors=tensors)
        with pytest.raises(LoraTokenizerError, match="repeats too much"):
            AdapterConfig(**settings).scaling(module)


def test_many_patterns_and_many_modules_are_bounded_together() -> None:
    modules = ["a." * 60 + f"l{index}.q" for index in range(500)]
    tensors = {f"base_model.model.{m}.lora_{part}.weight": torch.ones(2, 2) for m in modules for part in "AB"}
    slow = {f".*.*x{index}": 2 for index in range(4000)}
    config = AdapterConfig(r=2, lora_alpha=4, target_modules=("q",), rank_pattern=slow)
    with pytest.raises(LoraTokenizerError, match="repeats too much"):
        LoraAdapter(config=config, tensors=tensors)
    named = dict.fromkeys(modules, 2)
    LoraAdapter(config=AdapterConfig(r=4, lora_alpha=4, target_modules=("q",), rank_pattern=named), tensors=tensors)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.layers\.(0|1|2|3|4|5|6|7|8|9|10|11|12|13|14|15)\..*",
        r"^model\.layers\.(?:1\d|2[0-9])\..*(q|k|v|o)_proj",
        r"layers\.[0-9]+\.self_attn\.(q_proj|v_proj)",
        r"model\.layers\.\d{1,2}\.mlp\.(gate|up|down)_proj",
        "q_proj",
    ],
)
def test_patterns_that_people_write_are_matched_as_peft_does(pattern: str) -> None:
    patterns = {pattern: 3, "mlp.*": 5}
    modules = [f"model.layers.{n}.{leaf}_proj" for n in range(32) for leaf in ("self_attn.q", "self_attn.k", "mlp.up")]
    config = AdapterConfig(r=2, lora_alpha=4, target_modules=("q_proj",), rank_pattern=patterns)
    for module in modules:
        key = get_pattern_key(patterns.keys(), module)
        assert config.rank(module) == patterns.get(key, 2)
