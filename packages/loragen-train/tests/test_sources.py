"""Samples from files and from reasoning-gym: each prompt once, in a fixed order, as many as asked for."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.samples import Example, prompt_hash, read_examples
from loragen_train import LoragenTrainError
from loragen_train.prompts.sources import Source, read_samples


def load_samples(source: Source, *, num_samples: int | None, seed: int) -> list[Example]:
    return list(read_samples(source, num_samples=num_samples, seed=seed, purpose="collect").by_place.values())


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


def test_a_file_without_responses_cannot_be_trained_on(tmp_path, make):
    path = make.rows(tmp_path / "task.jsonl", [{"prompt": "a"}])
    with pytest.raises(LoragenInferError, match=r"task\.jsonl, row 1 has the columns prompt, but none of response"):
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
    def repetitive(generator, settings, *, size, seed):
        return ((f"{index % 3}?", "x") for index in range(size))

    monkeypatch.setattr("loragen_train.prompts.generators.rows_of", repetitive)
    assert len(load_samples(Source(location="reasoning-gym:gcd"), num_samples=3, seed=0)) == 3
    with pytest.raises(
        LoragenTrainError, match=r"gcd gave 3 different samples in 20 draws, fewer than the 5 .*num_train"
    ):
        load_samples(Source(location="reasoning-gym:gcd"), num_samples=5, seed=0)


def test_an_empty_answer_of_a_generator_costs_one_draw_and_not_the_task():
    of_task = {"source": Source(location="reasoning-gym:ab?length=4"), "num_samples": 60, "seed": 0}
    samples = read_samples(**of_task, purpose="collect").by_place
    assert len(samples) == 60
    assert all(sample.response for sample in samples.values())
    unanswered = read_samples(**of_task, purpose="prepare").by_place
    assert len(unanswered) == 60
    assert sorted(samples) != list(range(60))  # the one that is passed over keeps its place


def test_an_unknown_generator_is_an_error_with_the_nearest():
    with pytest.raises(LoragenTrainError, match=r"^reasoning-gym has no task 'gdc'; did you mean 'gcd'\?\.$"):
        load_samples(Source(location="reasoning-gym:gdc"), num_samples=1, seed=0)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(LoragenTrainError, match=r"needs reasoning-gym \(.*\); install it with: pip"):
        load_samples(Source(location="reasoning-gym:gcd"), num_samples=1, seed=0)


def test_a_generator_without_a_number_is_refused():
    with pytest.raises(LoragenTrainError, match=r"^reasoning-gym:gcd generates samples without end"):
        load_samples(Source(location="reasoning-gym:gcd"), num_samples=None, seed=0)


def test_columns_of_ones_own_naming(tmp_path, make):
    path = make.rows(tmp_path / "task.jsonl", [{"ask": "a", "prompt": "b", "reply": "c", "answer": "d"}])
    (sample,) = load_samples(Source(location=str(path)), num_samples=1, seed=0)
    assert (sample.prompt, sample.response) == ("b", "d")
    own = Source(location=str(path), prompt_column="ask", response_column="reply")
    (sample,) = load_samples(own, num_samples=1, seed=0)
    assert (sample.prompt, sample.response) == ("a", "c")
    wrong = Source(location=str(path), prompt_column="aks")
    with pytest.raises(LoragenInferError, match=r"row 1 has the columns ask, .*, but none of aks; rename"):
        load_samples(wrong, num_samples=1, seed=0)


def test_places_are_those_in_the_source_and_responses_may_be_missing(tmp_path, make):
    rows = [{"text": "a"}, {"text": "a", "answer": "x"}, {"text": "b", "answer": 3}, {"text": "c", "answer": "y"}]
    source = Source(location=str(make.rows(tmp_path / "task.jsonl", rows)))
    read = partial(read_samples, seed=0, purpose="prepare")
    samples = read(source, num_samples=None)
    assert {place: (sample.prompt, sample.response) for place, sample in samples.by_place.items()} == {
        0: ("a", ""),
        2: ("b", ""),
        3: ("c", "y"),
    }
    assert (samples.num_duplicates, samples.num_left_out) == (1, 0)
    assert list(read(source, num_samples=2).by_place) == [0, 2]
    without = read(source, num_samples=2, leave_out={prompt_hash(" a ")})
    assert (list(without.by_place), without.num_duplicates, without.num_left_out) == ([2, 3], 0, 2)
    with pytest.raises(LoragenInferError, match="row 1 has the columns text, but none of answer"):
        read(replace(source, response_column="answer"), num_samples=4)


def test_prompts_that_differ_in_white_space_only_are_one_sample(tmp_path, make):
    source = Source(location=str(make.samples(tmp_path / "task.jsonl", ["a b", "a  b\n", "c"])))
    assert [sample.prompt for sample in load_samples(source, num_samples=None, seed=0)] == ["a b", "c"]


@given(seed=st.integers(0, 2**32 - 1), near=st.integers(-40, 40), name=st.sampled_from(["gcd", "pool_matrix"]))
@settings(max_examples=20)
def test_prepare_and_collect_never_draw_one_sample_of_a_generator(seed, near, name):
    other = min(max(seed + near, 0), 2**32 - 1)
    drawn = []

    def rows_of(generator, settings, *, size, seed):
        drawn.append(range(seed, seed + size))
        return ((f"{index}?", "x") for index in range(size))

    with patch("loragen_train.prompts.generators.rows_of", rows_of):
        for purpose, chosen in (("collect", seed), ("prepare", other)):
            read_samples(Source(location=f"reasoning-gym:{name}"), num_samples=10, seed=chosen, purpose=purpose)
    assert max(drawn[0].start, drawn[1].start) >= min(drawn[0].stop, drawn[1].stop)
    assert all(0 <= part.start < 2**32 for part in drawn)


@pytest.mark.parametrize("value", [None, 7, "", " \n", ["a"], "half \ud800"])
def test_a_prompt_that_is_no_text_is_named(tmp_path, value):
    path = tmp_path / "task.json"
    path.write_text(json.dumps([{"prompt": "fine", "response": "x"}, {"prompt": value, "response": "x"}]))
    with pytest.raises(LoragenInferError, match=r"task\.json, row 2: 'prompt' (is .*, but must be text|holds half a)"):
        load_samples(Source(location=str(path)), num_samples=2, seed=0)


def test_a_response_of_half_a_character_is_named_where_responses_are_not_needed_too(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps([{"prompt": "fine", "response": "half \ud800"}]))
    with pytest.raises(LoragenInferError, match=r"task\.json, row 1: 'response' holds half a character"):
        read_examples(path, need_response=False)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The ``datasets`` library with a cache of its own."""
    datasets = pytest.importorskip("datasets", reason="the extra loragen-train[hf] is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


@pytest.fixture
def local_dataset(tmp_path, make, hub_cache):
    """A folder as on the hub: two configurations, one with two splits, in parquet and JSON lines."""
    folder = tmp_path / "quiz"
    rows = [{"question": f"{number}?", "answer": f"{number}!"} for number in range(6)]
    make.rows(folder / "easy" / "train.jsonl", rows[:4])
    make.rows(folder / "easy" / "test.jsonl", rows[4:])
    (folder / "hard").mkdir()
    hub_cache.Dataset.from_list(rows[2:5]).to_parquet(folder / "hard" / "train.parquet")
    configs = [{"config_name": name, "data_files": files} for name, files in
               {"easy": [{"split": "train", "path": "easy/train.jsonl"}, {"split": "test", "path": "easy/test.jsonl"}],
                "hard": [{"split": "train", "path": "hard/train.parquet"}]}.items()]  # fmt: skip
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


def test_a_data_set_is_read_by_configuration_and_split(local_dataset):
    def prompts(config: str, split: str) -> list[str]:
        source = Source(location=f"hf:{local_dataset}/{config}", split=split)
        return [sample.prompt for sample in load_samples(source, num_samples=None, seed=0)]

    assert prompts("easy", "train") == ["0?", "1?", "2?", "3?"]
    assert prompts("easy", "test") == ["4?", "5?"]
    assert prompts("hard", "train") == ["2?", "3?", "4?"]
    assert prompts("hard", "train[:2]") == ["2?", "3?"]


def test_a_folder_of_files_is_a_data_set(tmp_path, make, hub_cache):
    make.rows(tmp_path / "plain" / "train.jsonl", [{"text": "a", "output": "b"}])
    (sample,) = load_samples(Source(location=f"hf:{tmp_path / 'plain'}"), num_samples=1, seed=0)
    assert (sample.prompt, sample.response) == ("a", "b")


def test_a_data_set_that_is_a_script_is_one_sentence(tmp_path, hub_cache):
    (tmp_path / "quiz").mkdir()
    (tmp_path / "quiz" / "quiz.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(LoragenTrainError, match=r"quiz \(split 'train'\) cannot be read: Dataset scripts are no"):
        load_samples(Source(location=f"hf:{tmp_path / 'quiz'}"), num_samples=1, seed=0)


def test_an_unknown_configuration_split_or_folder_is_one_sentence(local_dataset):
    for location, split, message in [
        (f"{local_dataset}/medium", "train", "cannot be read: BuilderConfig 'medium' not found"),
        (f"{local_dataset}/easy", "dev", r"\(split 'dev'\) cannot be read: Unknown split \"dev\""),
        (f"{local_dataset}-x", "train", "does not exist; give a folder or the name of one on the hub"),
    ]:
        with pytest.raises(LoragenTrainError, match=message) as caught:
            load_samples(Source(location=f"hf:{location}", split=split), num_samples=1, seed=0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing/config", "nothing"])
def test_without_the_hub_a_data_set_that_is_not_here_is_one_sentence(hub_cache, name, capfd):
    with pytest.raises(LoragenTrainError, match=r"^The data set hf:.* is neither a folder nor in the .*forbids it"):
        load_samples(Source(location=f"hf:{name}"), num_samples=1, seed=0)
    assert capfd.readouterr() == ("", "")


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LoragenTrainError, match=r"^The source hf:a/b needs datasets \(.*\); install it with: pip"):
        load_samples(Source(location="hf:a/b"), num_samples=1, seed=0)


def test_the_library_is_only_imported_when_it_is_needed():
    code = (
        "import sys, loragen_train.prompts.combine\n"
        "sys.exit(str(sorted({'datasets', 'reasoning_gym', 'torch'} & set(sys.modules))).replace('[]', '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
