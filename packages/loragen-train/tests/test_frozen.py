"""The frozen model of a zoo: what it computes in, and that adapters act on prompts that have nothing in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loragen_train.zoo.collect import collect
from loragen_train.zoo.frozen import load_frozen
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
