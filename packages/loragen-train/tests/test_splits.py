"""The samples of a task: equal shares of its sources, no prompt twice, the split that the seed decides."""

import logging
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragen_infer.samples import prompt_hash
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectTask
from loragen_train.prompts.sources import Source, read_samples
from loragen_train.prompts.splits import read_all_samples, read_task_samples


def task_of(*sources, num_train: int, num_test: int, **settings: object) -> CollectTask:
    names = [str(source) for source in sources]
    source = names[0] if len(names) == 1 else names
    return CollectTask(name="task", source=source, num_train=num_train, num_test=num_test, **settings)


def test_one_source_is_shuffled_by_the_seed_and_split(tmp_path, make):
    path = make.samples(tmp_path / "task.jsonl", [f"{number}?" for number in range(9)])
    source = Source(location=str(path))
    rows = list(read_samples(source, num_samples=7, seed=3, purpose="collect").by_place.values())
    random.Random(3).shuffle(rows)
    for given_as in (str(path), [str(path)]):
        task = CollectTask(name="task", source=given_as, num_train=5, num_test=2)
        assert read_task_samples(task, seed=3) == (rows[:5], rows[5:])


@given(
    own=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    num_shared=st.integers(0, 6),
    num_train=st.integers(1, 40),
    num_test=st.integers(1, 10),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_sources_give_equal_shares_and_no_prompt_is_in_two_places(
    tmp_path_factory, make, own, num_shared, num_train, num_test, seed
):
    folder = tmp_path_factory.mktemp("sources")
    wanted, count = num_train + num_test, len(own)
    shares = [wanted // count + (position < wanted % count) for position in range(count)]
    shared = [f"shared {number}?" for number in range(num_shared)]
    paths = [
        make.samples(folder / f"{place}.jsonl", shared + [f"{place}: {number}?" for number in range(number_own)])
        for place, number_own in enumerate(own)
    ]
    # The first source takes of the shared ones what it has room for, the next one what is left of them, and so on.
    left, fits = num_shared, wanted >= count
    for share, number_own in zip(shares, own, strict=True):
        from_shared = min(left, share)
        left -= from_shared
        fits = fits and share - from_shared <= number_own
    task = task_of(*paths, num_train=num_train, num_test=num_test)
    if not fits:
        with pytest.raises(LoragenTrainError, match=r"fewer than the .*; (lower num_train|raise num_train)"):
            read_task_samples(task, seed=seed)
        return
    train, test = read_task_samples(task, seed=seed)
    assert (len(train), len(test)) == (num_train, num_test)
    hashes = Counter(prompt_hash(row.prompt) for row in train + test)
    assert max(hashes.values()) == 1
    if num_shared == 0:
        given_by = Counter(row.prompt.partition(":")[0] for row in train + test)
        assert [given_by[str(place)] for place in range(count)] == shares
    assert read_task_samples(task, seed=seed) == (train, test)


def test_duplicates_across_sources_are_made_up_for_and_counted(tmp_path, make, caplog):
    one = make.samples(tmp_path / "one.jsonl", ["a", "b", "a", "c"])
    two = make.samples(tmp_path / "two.jsonl", ["b", " a ", "d", "e"])
    with caplog.at_level(logging.INFO):
        train, test = read_task_samples(task_of(one, two, num_train=3, num_test=1), seed=0)
    assert sorted(row.prompt for row in train + test) == ["a", "b", "d", "e"]
    assert caplog.messages == ["task: 4 samples; not used: 2 duplicates."]


def test_a_generator_given_twice_goes_on_where_the_first_one_ended(caplog):
    with caplog.at_level(logging.INFO, logger="loragen_train"):
        train, test = read_task_samples(
            task_of("reasoning-gym:gcd", "reasoning-gym:gcd", num_train=10, num_test=2), seed=1
        )
    once = read_task_samples(task_of("reasoning-gym:gcd", num_train=10, num_test=2), seed=1)
    assert {row.prompt for row in train + test} == {row.prompt for row in [*once[0], *once[1]]}
    assert "task: 12 samples." in caplog.messages


def test_too_few_samples_name_the_source_and_the_numbers(tmp_path, make):
    one = make.samples(tmp_path / "one.jsonl", ["a", "b", "c", "d"])
    two = make.samples(tmp_path / "two.jsonl", ["a", "b", "e"])
    with pytest.raises(LoragenTrainError, match=r"one\.jsonl has 4 different prompts, fewer than the 5 asked for; low"):
        read_task_samples(task_of(one, num_train=4, num_test=1), seed=0)
    message = r"two\.jsonl has 1 different prompts besides 2 that other sources of the task have, fewer than the 2 ask"
    with pytest.raises(LoragenTrainError, match=message):
        read_task_samples(task_of(one, two, num_train=3, num_test=1), seed=0)
    with pytest.raises(LoragenTrainError, match=r"^tasks \(task\): 2 samples are fewer than the 3 sources; raise"):
        read_task_samples(task_of(one, two, one, num_train=1, num_test=1), seed=0)


def test_all_tasks_are_read_and_each_that_fails_is_named(tmp_path, make):
    good = make.samples(tmp_path / "good.jsonl", ["a", "b"])
    sources = {
        "good": str(good),
        "absent": str(tmp_path / "absent.jsonl"),
        "unknown": "reasoning-gym:gdc",
        "again": str(good),
    }
    tasks = [CollectTask(name=name, source=source, num_train=1, num_test=1) for name, source in sources.items()]
    read = {task.name: outcome for task, outcome in read_all_samples(tasks, seed=0)}
    assert list(read) == list(sources)
    assert read["good"] == read["again"] == read_task_samples(tasks[0], seed=0)
    assert "absent.jsonl is not a file" in read["absent"]
    assert read["unknown"] == "reasoning-gym has no task 'gdc'; did you mean 'gcd'?."
