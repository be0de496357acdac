"""Pairs of a checkpoint and prompts: of its own task, repeatable by epoch, and fixed for validation."""

from types import SimpleNamespace

import pytest
import torch
from lora_tokenizer import TokenLayout, TokenStats
from loragen_train.config import DataConfig, TaskConfig
from loragen_train.data import CheckpointPromptPairs, ZooDataModule
from loragen_train.zoo import Zoo

NUM_PROMPTS = {"sums": 12, "spelling": 5}


@pytest.fixture(scope="module")
def zoo(make) -> Zoo:
    adapters = [make.adapter(seed) for seed in range(6)]
    layout = TokenLayout.from_adapter(adapters[0], token_dim=16)
    tokens = [layout.encode(adapter) for adapter in adapters]
    stats = TokenStats.from_tokens(tokens)
    tasks = ["sums", "spelling"] * 3
    return Zoo(layout=layout, stats=stats, tokens=stats.normalize(torch.stack(tokens)), tasks=tasks)


@pytest.fixture(scope="module")
def embeddings() -> dict[str, torch.Tensor]:
    """An embedding says which task (first value) and which prompt (second value) it is of."""
    return {
        task: torch.tensor([[float(number), float(index)] for index in range(count)])
        for number, (task, count) in enumerate(NUM_PROMPTS.items())
    }


def module(zoo, embeddings, epoch=0, seed=0) -> ZooDataModule:
    config = DataConfig(tasks=[TaskConfig(name="sums", checkpoint_dir="x")], batch_size=4, prompts_per_condition=4)
    data = ZooDataModule(zoo, train=embeddings, val=embeddings, config=config, seed=seed)
    data.trainer = SimpleNamespace(current_epoch=epoch)
    return data


def epoch_of(loader) -> list[torch.Tensor]:
    return [part for batch in loader for part in batch]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_checkpoint_meets_prompts_of_its_own_task(zoo, embeddings):
    pairs = CheckpointPromptPairs(zoo, embeddings, 4, "seed")
    assert len(pairs) == 6
    for index, task in enumerate(zoo.tasks):
        condition, target = pairs[index]
        assert condition.shape == (4, 2)
        assert condition[:, 0].unique().tolist() == [list(NUM_PROMPTS).index(task)]
        assert len(condition[:, 1].unique()) == 4
        assert torch.equal(target, zoo.tokens[index])


def test_a_task_with_fewer_prompts_repeats_some(zoo, embeddings):
    condition, _ = CheckpointPromptPairs(zoo, embeddings, 9, "seed")[1]
    assert condition.shape == (9, 2)
    assert condition[:, 0].unique().tolist() == [1]


def test_seed_and_index_decide_alone(zoo, embeddings):
    pairs = CheckpointPromptPairs(zoo, embeddings, 4, "0/train/0")
    late, early = pairs[4][0], pairs[0][0]
    assert torch.equal(CheckpointPromptPairs(zoo, embeddings, 4, "0/train/0")[4][0], late)
    assert not torch.equal(CheckpointPromptPairs(zoo, embeddings, 4, "0/train/1")[4][0], late)
    assert not torch.equal(early, late)


def test_an_epoch_can_be_repeated_and_others_differ(zoo, embeddings):
    first = epoch_of(module(zoo, embeddings, epoch=3).train_dataloader())
    assert same(first, epoch_of(module(zoo, embeddings, epoch=3).train_dataloader()))
    assert not same(first, epoch_of(module(zoo, embeddings, epoch=4).train_dataloader()))
    assert not same(first, epoch_of(module(zoo, embeddings, epoch=3, seed=1).train_dataloader()))


def test_every_checkpoint_is_visited_once_an_epoch_in_changing_order(zoo, embeddings):
    orders = []
    for epoch in range(3):
        targets = torch.cat(epoch_of(module(zoo, embeddings, epoch=epoch).train_dataloader())[1::2])
        orders.append([next(i for i, known in enumerate(zoo.tokens) if torch.equal(known, row)) for row in targets])
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_validation_never_changes(zoo, embeddings):
    first = epoch_of(module(zoo, embeddings, epoch=0).val_dataloader())
    assert same(first, epoch_of(module(zoo, embeddings, epoch=7).val_dataloader()))
    assert torch.equal(torch.cat(first[1::2]), zoo.tokens)
