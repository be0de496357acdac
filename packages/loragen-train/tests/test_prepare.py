"""Prompts and their split: nothing is in two places, every task is on both sides, and all of it can be repeated."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.samples import Example, prompt_hash
from loragen_infer.zoo import SampleFile, ZooManifest, ZooTask
from loragen_train import LoragenTrainError
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.prompts import combine as combining
from loragen_train.prompts.combine import combine
from loragen_train.prompts.sources import Samples, Source

# At least two prompts of seven different samples, and many copies among them.
SAMPLES = [f"sample {number}?" for number in range(30)]
PROMPTS = st.lists(st.sampled_from(SAMPLES), max_size=46).flatmap(lambda more: st.permutations(SAMPLES[:14] + more))
NAMES = ("sums", "spelling", "capitals")


def samples_of(task: str, prompts: list[str]) -> Samples:
    first = {
        place: Example(prompt=text, response="") for place, text in enumerate(prompts) if prompts.index(text) == place
    }
    source = Source(location="x.jsonl", task=task)
    return Samples(source=source, by_place=first, num_duplicates=len(prompts) - len(first), num_left_out=0)


def prepare(sources, folder: Path, *, overwrite: bool = False, **settings: object) -> dict:
    return combining.prepare(sources, PrepareConfig(output_dir=str(folder), **settings), overwrite=overwrite)


@given(prompts=PROMPTS, size=st.integers(1, 7), share=st.floats(0.01, 0.99), seed=st.integers())
def test_a_sample_is_in_one_combination_only_and_its_ids_point_at_it(prompts, size, share, seed):
    samples = samples_of("task", prompts)
    train, val = combine(samples, size, val_share=share, seed=seed)
    assert train
    assert val
    used = [prompts[index] for row in train + val for index in row.sample_ids]
    assert max(Counter(used).values()) == 1
    assert len(train) + len(val) == len(set(prompts)) // size
    for row in train + val:
        assert len(row.sample_ids) == size
        assert row.prompt == "\n\n".join(prompts[index] for index in row.sample_ids)
        assert row.sample_ids == [prompts.index(prompts[index]) for index in row.sample_ids]


@given(
    tasks=st.dictionaries(
        st.sampled_from(NAMES), st.lists(st.integers(0, 99), min_size=14, max_size=50, unique=True), min_size=1
    ),
    size=st.integers(1, 7),
    ratio=st.floats(min_value=0.001, max_value=0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_two_files_share_no_sample_and_both_have_every_task(tmp_path_factory, make, tasks, size, ratio, seed):
    folder = tmp_path_factory.mktemp("prepare")
    samples = {name: [f"{name} {number}?" for number in numbers] for name, numbers in tasks.items()}
    sources = [make.samples(folder / f"{name}.jsonl", prompts) for name, prompts in samples.items()]
    manifest = prepare(sources, folder / "data", samples_per_prompt=size, test_ratio=ratio, seed=seed)
    train, val = (make.read(folder / "data" / f"{part}_prompts.jsonl") for part in ("train", "val"))

    assert {row["task"] for row in train} == {row["task"] for row in val} == set(tasks)
    used = [(row["task"], index) for row in train + val for index in row["sample_ids"]]
    assert max(Counter(used).values()) == 1
    for row in train + val:
        assert row["prompt"].split("\n\n") == [samples[row["task"]][index] for index in row["sample_ids"]]

    assert json.loads((folder / "data" / "manifest.json").read_text()) == manifest
    assert (manifest["samples_per_prompt"], manifest["test_ratio"], manifest["seed"]) == (size, ratio, seed)
    for name, path in zip(tasks, sources, strict=True):
        task = manifest["tasks"][name]
        assert task["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert task["source"] == str(path)
        assert task["num_samples"] == len(samples[name])
        assert task["num_train_prompts"] == sum(row["task"] == name for row in train)
        assert task["num_val_prompts"] == sum(row["task"] == name for row in val)


@pytest.mark.parametrize(("ratio", "num_val"), [(0.01, 1), (0.1, 1), (0.25, 3), (0.5, 6), (0.99, 11)])
def test_the_ratio_is_of_each_tasks_prompts(tmp_path, make, questions, ratio, num_val):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    task = prepare([source], tmp_path, test_ratio=ratio)["tasks"]["sums"]
    assert (task["num_train_prompts"], task["num_val_prompts"]) == (12 - num_val, num_val)


def test_the_seed_decides_and_nothing_else(tmp_path, make, questions):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    for name, seed in {"one": 5, "same": 5, "other": 6}.items():
        prepare([source], tmp_path / name, seed=seed)
    for part in ("train_prompts.jsonl", "val_prompts.jsonl", "manifest.json"):
        one, same, other = ((tmp_path / name / part).read_bytes() for name in ("one", "same", "other"))
        assert one == same
        assert one != other


def test_a_task_does_not_depend_on_the_others(tmp_path, make, questions):
    sources = [make.samples(tmp_path / f"{name}.jsonl", questions[name]) for name in NAMES]
    prepare(sources, tmp_path / "all")
    prepare([sources[1]], tmp_path / "alone")
    prepare(sources[::-1], tmp_path / "reversed")
    for part in ("train_prompts.jsonl", "val_prompts.jsonl"):
        alone = make.read(tmp_path / "alone" / part)
        for folder in ("all", "reversed"):
            assert [row for row in make.read(tmp_path / folder / part) if row["task"] == "spelling"] == alone


def test_two_tasks_of_equal_samples_are_combined_differently(make, questions):
    one, other = (combine(samples_of(name, questions["sums"]), 4, val_share=0.1, seed=0)[0] for name in ("a", "b"))
    assert [row.sample_ids for row in one] != [row.sample_ids for row in other]


def test_copies_count_once(tmp_path, make):
    source = make.samples(tmp_path / "sums.jsonl", ["a", "b", "a", "c", "b", "d", "a"])
    manifest = prepare([source], tmp_path, samples_per_prompt=1, test_ratio=0.5)
    assert manifest["tasks"]["sums"]["num_samples"] == 4
    rows = make.read(tmp_path / "train_prompts.jsonl") + make.read(tmp_path / "val_prompts.jsonl")
    assert sorted((row["prompt"], row["sample_ids"]) for row in rows) == [
        ("a", [0]),
        ("b", [1]),
        ("c", [3]),
        ("d", [5]),
    ]


def test_responses_never_reach_the_prompts(tmp_path, make, questions):
    prepare([make.samples(tmp_path / "sums.jsonl", questions["sums"])], tmp_path / "data")
    for part in ("train", "val"):
        assert "answer" not in (tmp_path / "data" / f"{part}_prompts.jsonl").read_text()


def test_a_source_without_responses_will_do(tmp_path, make):
    source = make.rows(tmp_path / "task.jsonl", [{"question": f"{number}?"} for number in range(8)])
    assert prepare([source], tmp_path)["tasks"]["task"]["num_samples"] == 8


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_ratio_that_leaves_a_side_empty_is_refused(tmp_path, make, questions, ratio):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    with pytest.raises(LoragenTrainError, match=r"^test_ratio is .*, but must be above 0 and below 1\.$"):
        prepare([source], tmp_path / "data", test_ratio=ratio)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("size", [0, -3])
def test_a_prompt_of_no_samples_is_refused(tmp_path, make, questions, size):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    with pytest.raises(LoragenTrainError, match=f"^samples_per_prompt is {size}, but must be positive"):
        prepare([source], tmp_path / "data", samples_per_prompt=size)


@pytest.mark.parametrize("copies", [1, 3])
def test_too_few_samples_are_counted_without_their_copies(tmp_path, make, copies):
    source = make.samples(tmp_path / "sums.jsonl", [f"{number}?" for number in range(7)] * copies)
    with pytest.raises(LoragenTrainError, match=r"sums\.jsonl has 7 different samples, too few for two prompts of 4"):
        prepare([source], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_task_can_be_given_its_name(tmp_path, make, questions):
    for folder in ("one", "two"):
        make.samples(tmp_path / folder / "train.jsonl", questions["sums"])
    sources = [f"{folder}={tmp_path / folder / 'train.jsonl'}" for folder in ("one", "two")]
    manifest = prepare(sources, tmp_path / "data")
    assert {name: task["source"] for name, task in manifest["tasks"].items()} == {
        folder: str(tmp_path / folder / "train.jsonl") for folder in ("one", "two")
    }


def test_a_file_whose_name_has_an_equals_sign_is_found(tmp_path, make, questions):
    path = make.samples(tmp_path / "a=b" / "sums.jsonl", questions["sums"])
    assert list(prepare([path], tmp_path / "data")["tasks"]) == ["sums"]
    assert list(prepare([f"mine={path}"], tmp_path / "named")["tasks"]) == ["mine"]


def test_two_files_of_one_name_are_refused(tmp_path, make, questions):
    sources = [make.samples(tmp_path / folder / "train.jsonl", questions["sums"]) for folder in ("one", "two")]
    with pytest.raises(LoragenTrainError, match="The task name 'train' is used twice"):
        prepare(sources, tmp_path / "data")


@pytest.mark.parametrize("name", ["..", "a/b", "a b", "", ".hidden", "-x", "ü", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, make, questions, name):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    with pytest.raises(LoragenTrainError, match="becomes a file name; use letters"):
        prepare([f"{name}={source}"], tmp_path / "data")


def test_a_source_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(LoragenInferError, match=r"missing\.jsonl is not a file"):
        prepare([tmp_path / "missing.jsonl"], tmp_path / "data")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(LoragenInferError, match=r"empty\.jsonl is empty"):
        prepare([tmp_path / "empty.jsonl"], tmp_path / "data")


def test_a_bad_second_source_leaves_nothing_behind(tmp_path, make, questions):
    good = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    bad = make.samples(tmp_path / "few.jsonl", ["one"])
    with pytest.raises(LoragenTrainError, match=r"few\.jsonl has 1 different"):
        prepare([good, bad], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_generator_is_a_source_and_is_noted_with_its_version(tmp_path, make):
    manifest = prepare(["reasoning-gym:gcd", "x=reasoning-gym:lcm"], tmp_path / "one", num_samples=24, seed=3)
    again = prepare(["reasoning-gym:gcd", "x=reasoning-gym:lcm"], tmp_path / "two", num_samples=24, seed=3)
    assert manifest == again
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    assert list(manifest["tasks"]) == ["gcd", "x"]
    task = manifest["tasks"]["gcd"]
    assert task["made_by"].startswith("reasoning-gym 0.")
    assert (task["num_samples"], task["num_responses"], task["num_train_prompts"]) == (24, 24, 5)
    other = prepare(["reasoning-gym:gcd"], tmp_path / "three", num_samples=24, seed=4)
    assert other["tasks"]["gcd"]["sha256"] != task["sha256"]
    # The places are those among what the generator makes, of a stream of its own.
    drawn = reasoning_gym.create_dataset("gcd", size=96, seed=2**31 + 3)
    for row in make.read(tmp_path / "one" / "train_prompts.jsonl"):
        if row["task"] == "gcd":
            assert row["prompt"] == "\n\n".join(drawn[place]["question"] for place in row["sample_ids"])


def test_a_generator_needs_a_number_and_a_file_may_have_fewer(tmp_path, make, questions):
    with pytest.raises(LoragenTrainError, match=r"^reasoning-gym:gcd generates samples without end; .*\(--num"):
        prepare(["reasoning-gym:gcd"], tmp_path / "data")
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    manifest = prepare([source, "reasoning-gym:gcd"], tmp_path / "data", num_samples=100)
    assert [task["num_samples"] for task in manifest["tasks"].values()] == [48, 100]
    assert prepare([source], tmp_path / "less", num_samples=20)["tasks"]["sums"]["num_samples"] == 20
    with pytest.raises(LoragenTrainError, match=r"^num_samples is 0, but must be positive"):
        prepare([source], tmp_path / "data", num_samples=0)


def test_the_manifest_has_the_hashes_of_what_was_written(tmp_path, make, questions):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    manifest = prepare([source], tmp_path / "data")
    for name, file in manifest["files"].items():
        content = (tmp_path / "data" / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["num_prompts"] == len(content.splitlines())
    assert sorted(manifest["files"]) == ["train_prompts.jsonl", "val_prompts.jsonl"]


def test_columns_can_be_named_and_responses_are_counted_but_not_written(tmp_path, make, capsys):
    rows = [{"ask": f"{number}?", "reply": "secret"} for number in range(16)]
    source = str(make.rows(tmp_path / "task.jsonl", rows))
    words = ["prepare", "--source", source, "--output-dir", str(tmp_path / "data"), "--prompt-column", "ask", "--json"]
    assert make.cli(*words) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["task"]["num_responses"] == 0
    assert make.cli(*words, "--response-column", "reply", "--overwrite") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["tasks"]["task"]["num_responses"] == 16
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "data").iterdir())
    assert make.cli(*words, "--response-column", "replies") == 1
    assert "has the columns ask, reply, but none of replies;" in capsys.readouterr().err


def test_other_prompts_are_only_replaced_when_told_to(tmp_path, make, questions):
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    prepare([source], tmp_path / "data")
    before = {file: file.read_bytes() for file in (tmp_path / "data").iterdir()}
    prepare([source], tmp_path / "data")
    with pytest.raises(LoragenTrainError, match=r"data has other prompts \(train_prompts.* replace them with --over"):
        prepare([source], tmp_path / "data", seed=1)
    assert {file: file.read_bytes() for file in (tmp_path / "data").iterdir()} == before
    prepare([source], tmp_path / "data", seed=1, overwrite=True)
    assert {file: file.read_bytes() for file in (tmp_path / "data").iterdir()} != before
    # What a kill left half done is finished.
    (tmp_path / "data" / "manifest.json").unlink()
    assert prepare([source], tmp_path / "data", seed=1)["seed"] == 1


def test_a_row_has_the_hashes_of_its_samples(tmp_path, make, questions):
    prepare([make.samples(tmp_path / "sums.jsonl", questions["sums"])], tmp_path / "data")
    for row in make.read(tmp_path / "data" / "train_prompts.jsonl"):
        assert row["sample_hashes"] == [prompt_hash(questions["sums"][place]) for place in row["sample_ids"]]


@pytest.mark.parametrize("named", [True, False])
def test_test_examples_of_the_zoo_are_left_out(tmp_path, make, questions, monkeypatch, named):
    sums = questions["sums"]
    make.samples(tmp_path / "zoo" / "test" / "sums.jsonl", [f" {prompt}\n" for prompt in sums[:7]])
    make.samples(tmp_path / "zoo" / "test" / "other.jsonl", sums[7:9])
    # Known from the source's place, from ./zoo, and by name.
    inside = make.samples(tmp_path / "zoo" / "train" / "sums.jsonl", sums)
    outside = make.samples(tmp_path / "elsewhere" / "sums.jsonl", sums)
    sources = [(outside, {"zoo": str(tmp_path / "zoo")})] if named else [(inside, {}), (outside, {})]
    if not named:
        monkeypatch.chdir(tmp_path)
    for number, (source, settings) in enumerate(sources):
        task = prepare([source], tmp_path / f"data-{number}", samples_per_prompt=1, **settings)["tasks"]["sums"]
        assert (task["num_samples"], task["num_test_examples"]) == (39, 9)
        rows = [row for part in ("train", "val") for row in make.read(tmp_path / f"data-{number}/{part}_prompts.jsonl")]
        assert {row["prompt"] for row in rows} == set(sums[9:])
    with pytest.raises(LoragenTrainError, match=r"elsewhere has neither zoo\.json nor a folder test, so collect"):
        prepare([outside], tmp_path / "none", zoo=str(tmp_path / "elsewhere"))


def test_test_examples_are_those_that_a_manifest_names(tmp_path, make, questions):
    elsewhere = make.samples(tmp_path / "elsewhere" / "tests.jsonl", questions["sums"][:9])
    (tmp_path / "zoo").mkdir()
    held_out = ZooTask(name="other", held_out=True, test=SampleFile.of(elsewhere, tmp_path / "zoo"))
    ZooManifest(base_model="tiny", tasks=[held_out], folder=tmp_path / "zoo").write()
    source = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    manifest = prepare([source], tmp_path / "data", samples_per_prompt=1, zoo=str(tmp_path / "zoo"))
    assert manifest["tasks"]["sums"]["num_test_examples"] == 9


@pytest.mark.parametrize("seed", [0, 5])
def test_prompts_of_a_generator_are_never_test_examples_of_a_zoo_of_the_same_seed(tmp_path, make, seed):
    # As collect draws them.
    drawn = reasoning_gym.create_dataset("gcd", size=60, seed=seed)
    tests = {prompt_hash(row["question"]) for row in drawn}
    prepare(["reasoning-gym:gcd"], tmp_path / "data", num_samples=40, seed=seed)
    rows = [row for part in ("train", "val") for row in make.read(tmp_path / "data" / f"{part}_prompts.jsonl")]
    assert not tests & {digest for row in rows for digest in row["sample_hashes"]}


def test_what_is_not_used_is_counted_in_words(tmp_path, make, capsys):
    make.samples(tmp_path / "zoo" / "test" / "task.jsonl", ["0?"])
    source = make.samples(tmp_path / "zoo" / "train" / "task.jsonl", [f"{n}?" for n in range(10)] + ["5?", "5?"])
    words = ["prepare", "--source", str(source), "--output-dir", str(tmp_path / "data"), "--samples-per-prompt", "4"]
    assert make.cli(*words) == 0
    assert capsys.readouterr().out == (
        "task: 9 samples, 1 train prompt and 1 validation prompt; not used: 2 duplicates, 1 test example, "
        "1 left-over sample\n"
    )


def test_a_json_list_is_a_source(tmp_path, questions):
    source = tmp_path / "sums.json"
    source.write_text(json.dumps([{"instruction": prompt} for prompt in questions["sums"]]))
    assert prepare([source], tmp_path / "data")["tasks"]["sums"]["num_samples"] == 48


def test_real_tasks_are_prepared(tmp_path):
    folder = os.environ.get("LORAGEN_TEST_DATA")
    if folder is None:
        pytest.skip("LORAGEN_TEST_DATA names no folder of real tasks")
    sources = sorted(Path(folder).rglob("*_formatted.jsonl"))
    assert sources
    manifest = prepare(sources, tmp_path / "data")
    for task in manifest["tasks"].values():
        assert task["num_samples"] >= 4 * (task["num_train_prompts"] + task["num_val_prompts"]) > 400
