"""Pairs of a checkpoint and prompts: of its own task, repeatable by epoch, resumable, shared between processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_tokenizer import TokenCache, TokenLayout, TokenStats, write_adapter
from loragen_train.configs.objectives import PhaseConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.data import ObjectiveData, TrainingDataModule
from loragen_train.training.pairs import Batch, Pairs
from loragen_train.training.visits import VisitLoader
from loragen_train.zoo.tokens import Zoo

NUMBERS = {"sums": range(12), "spelling": range(12, 17)}


@pytest.fixture(scope="module")
def zoo(make, tmp_path_factory) -> Zoo:
    root = tmp_path_factory.mktemp("data")
    adapters = [make.adapter(seed) for seed in range(6)]
    layout = TokenLayout.from_adapter(adapters[0], token_dim=16)
    files = [write_adapter(adapter, root / f"checkpoint-{index}") for index, adapter in enumerate(adapters)]
    tokens = TokenCache(root / "cache").get(files, layout)
    return Zoo(layout=layout, stats=TokenStats.from_tokens(tokens), tokens=tokens, tasks=["sums", "spelling"] * 3)


def make_loader(
    zoo: Zoo,
    *,
    seed: str = "0",
    shuffle: bool = True,
    batch_size: int = 4,
    num_prompts: int = 4,
    is_random_count: bool = False,
    **options,
) -> VisitLoader:
    pairs = Pairs(zoo, NUMBERS, num_prompts, seed, is_random_count)
    return VisitLoader(pairs, batch_size, seed, shuffle, **options)


def make_module(zoo: Zoo, train: dict[str, range] = NUMBERS, **settings) -> TrainingDataModule:
    training = TrainingConfig(seed=3, **settings)
    sides = {"train": Pairs(zoo, train, 4, "3/train"), "val": Pairs(zoo, NUMBERS, 4, "3/val")}
    return TrainingDataModule({"reconstruction": ObjectiveData(batch_size=4, **sides)}, training)


def checkpoints(zoo: Zoo, batches: list[Batch]) -> list[int]:
    rows = torch.cat([batch.tokens for batch in batches])
    return [next(index for index, known in enumerate(zoo.tokens) if torch.equal(known, row)) for row in rows]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(left, right) for pair in zip(one, other, strict=True) for left, right in zip(*pair, strict=True)
    )


def test_a_checkpoint_meets_prompts_of_its_own_task(zoo):
    batches = list(make_loader(zoo))
    for batch in batches:
        assert batch.prompts.shape == (4, 4)
        for prompts, checkpoint in zip(batch.prompts.tolist(), checkpoints(zoo, [batch]), strict=True):
            assert set(prompts) <= set(NUMBERS[zoo.tasks[checkpoint]])
            assert len(set(prompts)) == 4


def test_a_task_with_fewer_prompts_repeats_some(zoo):
    for batch in make_loader(zoo, num_prompts=9):
        assert batch.prompts.shape == (4, 9)


def test_an_epoch_visits_every_checkpoint_and_fills_its_last_batch(zoo):
    loader = make_loader(zoo)
    orders = [checkpoints(zoo, list(loader)) for _ in range(3)]
    assert len(loader) == 2
    for order in orders:
        assert sorted(order[:6]) == list(range(6))
        assert order[6:] == order[:2]
    assert torch.cat([batch.counts for batch in loader]).tolist() == [1.0] * 6 + [0.0] * 2
    assert len(set(map(tuple, orders))) > 1


def test_a_checkpoint_seen_twice_in_an_epoch_meets_other_prompts(zoo):
    batches = list(make_loader(zoo, batch_size=60))
    rows = {tuple(row) for row in batches[0].prompts.tolist()}
    assert len(rows) > 30


def test_seed_and_epoch_decide_alone(zoo):
    loader, again = make_loader(zoo), make_loader(zoo)
    epochs = [list(loader) for _ in range(2)]
    assert all(same(epoch, list(again)) for epoch in epochs)
    assert not same(*epochs)
    assert not same(epochs[0], list(make_loader(zoo, seed="1")))


def test_validation_never_changes(zoo):
    loader = make_loader(zoo, shuffle=False)
    first = list(loader)
    assert same(first, list(loader))
    assert checkpoints(zoo, first)[:6] == list(range(6))


@given(position=st.integers(0, 8), workers=st.sampled_from([0, 0, 0, 1]))
def test_a_position_goes_on_with_the_next_batch(zoo, position, workers):
    undisturbed = make_loader(zoo)
    expected = [batch for _ in range(4) for batch in undisturbed]

    before, after = make_loader(zoo), make_loader(zoo, num_workers=workers)
    seen: list[Batch] = []
    while len(seen) < position:
        for batch in before:
            seen.append(batch)
            if len(seen) == position:
                break
    after.position = before.position
    while len(seen) < len(expected):
        seen += list(after)
    assert same(seen[: len(expected)], expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(zoo, world_size):
    one = list(make_loader(zoo))
    size = 4 // world_size
    parts = [list(make_loader(zoo, batch_size=size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [Batch(*map(torch.cat, zip(*step, strict=True))) for step in zip(*parts, strict=True)]
    assert same(together, one)


def test_a_random_number_of_prompts_counts_and_the_others_repeat_the_first(zoo):
    batches = [batch for _ in range(20) for batch in make_loader(zoo, is_random_count=True)]
    counts = [int(mask.sum()) for batch in batches for mask in batch.mask]
    assert set(counts) == {1, 2, 3, 4}
    for batch in batches:
        for prompts, mask in zip(batch.prompts, batch.mask, strict=True):
            assert mask[: mask.sum()].all()
            assert len(set(prompts[mask].tolist())) == mask.sum()
            assert (prompts[~mask] == prompts[0]).all()
    assert all(batch.mask.all() for batch in make_loader(zoo))


def test_the_data_module_gives_training_and_validation(zoo):
    data = make_module(zoo, {name: NUMBERS[name][:4] for name in NUMBERS})
    assert max(batch.prompts.max() for batch in data.train_dataloader()) < 16
    assert same(list(data.val_dataloader()), list(data.val_dataloader()))
    assert not same(list(data.train_dataloader()), list(data.val_dataloader()))


def test_the_data_module_keeps_the_position(zoo):
    data, again = make_module(zoo), make_module(zoo)
    undisturbed = list(data.train_dataloader())
    data = make_module(zoo)
    next(iter(data.train_dataloader()))
    assert data.state_dict() == {"epoch": 0, "num_done": 1}
    again.load_state_dict(data.state_dict())
    assert same(list(again.train_dataloader()), undisturbed[1:])
    loader = data.train_dataloader()
    data.load_state_dict({"epoch": 0, "num_done": 1})
    assert same(list(loader), undisturbed[1:])


@given(num_done=st.integers(0, 8))
def test_an_epoch_is_of_the_phase_that_it_is_in(zoo, num_done):
    phases = [PhaseConfig(objective=name, max_epochs=2, learning_rate=1.0) for name in ("reconstruction", "lm")]

    def module() -> TrainingDataModule:
        sides = [Pairs(zoo, NUMBERS, 4, seed) for seed in ("a", "b")]
        data = {
            name: ObjectiveData(train=side, val=side, batch_size=size)
            for name, side, size in zip(("reconstruction", "lm"), sides, (3, 2), strict=True)
        }
        return TrainingDataModule(data, TrainingConfig(phases=phases, seed=3))

    def batches(data: TrainingDataModule, number: int) -> list[Batch]:
        """As a trainer does, which asks for the batches of every epoch."""
        seen: list[Batch] = []
        while len(seen) < number:
            for batch in data.train_dataloader():
                seen.append(batch)
                if len(seen) == number:
                    break
        return seen

    undisturbed = batches(module(), 10)
    assert [len(batch.prompts) for batch in undisturbed] == [3] * 4 + [2] * 6
    before, after = module(), module()
    seen = batches(before, num_done)
    after.load_state_dict(before.state_dict())
    assert same(seen + batches(after, 10 - num_done), undisturbed)
