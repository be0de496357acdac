"""The frozen model of a zoo: what it computes in, and that adapters act on prompts that have nothing in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.adapters import AdapterStack
from loragen_infer.samples import Example, tokenize_example
from loragen_train.zoo.collect import collect
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.initial import load_frozen
from loragen_train.zoo.process import fabric_of_process


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_in_the_compute_dtype_and_rotary_frequencies_stay_exact(collect_config, tmp_path, precision):
    config = replace(collect_config, training=replace(collect_config.training, precision=precision))
    model = load_frozen(config, tmp_path, fabric_of_process()).model
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {value.dtype for name, value in model.named_buffers() if "inv_freq" in name} == {torch.float32}


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}])
def test_prompts_with_no_common_beginning_are_trained_on(collect_config, make, tmp_path, changes):
    source = str(make.samples(tmp_path / "samples.jsonl", [f"{letter} begins this" for letter in "abcdefghijkl"]))
    task = replace(collect_config.tasks[0], source=source, num_train=8, num_test=4)
    training = replace(collect_config.training, max_steps=2, **changes)
    lora = replace(collect_config.lora, lora_dropout=0.0)
    config = replace(collect_config, output_dir=str(tmp_path / "zoo"), tasks=[task], training=training, lora=lora)
    assert [folder.name for folder in collect(config)] == ["sums"]


def test_a_model_is_frozen_by_its_name_alone(tiny_lm, make):
    adapter = make.adapter(0, num_layers=2)
    frozen = FrozenModel.load(str(tiny_lm), adapter.modules, device="cpu", precision="fp32", tokens_per_pass=64)
    assert frozen.tokens_per_pass == 64
    assert not any(value.requires_grad for value in frozen.model.parameters())
    samples = [[tokenize_example(frozen.tokenizer, Example(prompt="1 + 1", response="2"))]]
    with frozen.response_nll(AdapterStack.of([adapter]), samples) as with_adapter_B:
        assert with_adapter_B.isfinite().all()
    with frozen.response_nll(None, samples) as alone_B:
        assert not torch.equal(with_adapter_B, alone_B)
    with pytest.raises(LoragenInferError, match=r"no module 'model\.layers\.2\.self_attn\.q_proj'"):
        FrozenModel.load(str(tiny_lm), make.adapter(0).modules, device="cpu", precision="fp32")
