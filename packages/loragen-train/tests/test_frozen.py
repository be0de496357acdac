"""The frozen model of a zoo: what it computes in, and that adapters act on prompts that have nothing in common."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.adapters import AdapterStack
from loragen_infer.samples import Example, TokenizedExample, tokenize_example
from loragen_train.zoo.collect import collect
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.initial import load_frozen
from loragen_train.zoo.process import fabric_of_process
from transformers import MistralConfig, MistralForCausalLM


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


@pytest.mark.parametrize("sliding_window", [None, 64])
def test_no_more_tokens_pass_at_once_than_the_budget_has(sliding_window):
    """Also where the model cannot go on from what it has read once."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=300, num_key_value_heads=2, sliding_window=sliding_window, **size)
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    tokenizer = SimpleNamespace(pad_token_id=2)
    model = MistralForCausalLM(config).eval()
    frozen = FrozenModel.of(model, tokenizer, modules, precision="fp32", tokens_per_pass=1024)
    assert frozen.reads_once == (sliding_window is None)
    samples = [
        [
            TokenizedExample(input_ids=[10 + task] * 200 + [100 + row] * rest, num_prompt_tokens=200 + rest - 1)
            for row, rest in enumerate((5, 20, 30, 20, 5, 9, 90, 20))
        ]
        for task in range(4)
    ]
    computed = list[int]()
    model.register_forward_pre_hook(
        lambda _, __, options: computed.append(options["input_ids"].numel()), with_kwargs=True
    )
    assert frozen.mean_nll(None, samples)[0] is not None
    assert max(computed) <= 1024
    whole = sum(len(item.input_ids) for of_task in samples for item in of_task)
    assert (sum(computed) < 0.6 * whole) == frozen.reads_once
