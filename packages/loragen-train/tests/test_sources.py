"""Samples from files and from reasoning-gym: each prompt once, in a fixed order, as many as asked for."""

import sys

import pytest
from loragen_infer import LoragenInferError
from loragen_train import LoragenTrainError
from loragen_train.sources import Source, load_samples


def test_a_file_is_read_from_its_start_without_copies(tmp_path, make):
    path = make.samples(tmp_path / "task.jsonl", ["a", "b", "a", "c", "d"])
    assert [sample.prompt for sample in load_samples(Source(location=str(path)), num_samples=3, seed=0)] == [
        "a",
        "b",
        "c",
    ]
    assert [sample.prompt for sample in load_samples(Source(location=str(path)), num_samples=None, seed=9)] == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert load_samples(Source(location=str(path)), num_samples=2, seed=0)[1].response == "answer 1"


def test_a_file_with_too_few_samples_says_which_keys_to_lower(tmp_path, make):
    path = make.samples(tmp_path / "task.jsonl", ["a", "b", "a"])
    with pytest.raises(LoragenTrainError, match=r"task\.jsonl has 2 different prompts, fewer than the 3 .*num_train"):
        load_samples(Source(location=str(path)), num_samples=3, seed=0)


def test_a_file_without_responses_cannot_be_trained_on(tmp_path, make):
    path = make.rows(tmp_path / "task.jsonl", [{"prompt": "a"}])
    with pytest.raises(LoragenTrainError, match=r"task\.jsonl, row 1 has the columns prompt, but none of response"):
        load_samples(Source(location=str(path)), num_samples=1, seed=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LoragenInferError, match=r"missing\.jsonl is not a file"):
        load_samples(Source(location=str(tmp_path / "missing.jsonl")), num_samples=1, seed=0)


def test_a_generator_gives_different_prompts_with_answers_and_follows_its_seed():
    drawn = load_samples(Source(location="reasoning-gym:gcd"), num_samples=40, seed=1)
    assert len({sample.prompt for sample in drawn}) == len(drawn) == 40
    assert all(sample.response.isdigit() for sample in drawn)
    assert load_samples(Source(location="reasoning-gym:gcd"), num_samples=40, seed=1) == drawn
    assert load_samples(Source(location="reasoning-gym:gcd"), num_samples=40, seed=2) != drawn


def test_a_generator_of_a_small_space_says_how_many_it_gave(monkeypatch):
    import reasoning_gym

    def repetitive(name, size, seed):
        return [{"question": f"{index % 3}?", "answer": "x"} for index in range(size)]

    monkeypatch.setattr(reasoning_gym, "create_dataset", repetitive)
    assert len(load_samples(Source(location="reasoning-gym:gcd"), num_samples=3, seed=0)) == 3
    with pytest.raises(
        LoragenTrainError, match=r"gcd gave 3 different prompts in 20 draws, fewer than the 5 .*num_train"
    ):
        load_samples(Source(location="reasoning-gym:gcd"), num_samples=5, seed=0)


def test_an_unknown_generator_is_an_error_with_the_nearest():
    with pytest.raises(LoragenTrainError, match=r"^reasoning-gym has no task 'gdc'; did you mean 'gcd'\?\.$"):
        load_samples(Source(location="reasoning-gym:gdc"), num_samples=1, seed=0)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(LoragenTrainError, match=r"needs reasoning-gym; install it with: pip install 'loragen-train\["):
        load_samples(Source(location="reasoning-gym:gcd"), num_samples=1, seed=0)


def test_a_generator_without_a_number_is_refused():
    with pytest.raises(LoragenTrainError, match=r"^reasoning-gym:gcd generates samples without end"):
        load_samples(Source(location="reasoning-gym:gcd"), num_samples=None, seed=0)
