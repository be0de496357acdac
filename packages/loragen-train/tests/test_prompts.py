"""The prompts of every task: prepared or joined here, split without overlap, matched with the tasks of the zoo."""

from pathlib import Path

import pytest
from loragen_infer import LoragenInferError
from loragen_infer.samples import prompt_hash
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, TaskConfig
from loragen_train.prompts.table import read_prompts


@pytest.fixture
def prepared(tmp_path, make):
    def run(rows: list[dict], val: list[dict] | None = None) -> str:
        make.rows(tmp_path / "train_prompts.jsonl", rows)
        make.rows(tmp_path / "val_prompts.jsonl", rows if val is None else val)
        return str(tmp_path)

    return run


def config(folder: str, *names: str) -> DataConfig:
    return DataConfig(prompts_dir=folder, tasks=[TaskConfig(name=name, checkpoint_dir="x") for name in names])


ROWS = [{"task": task, "prompt": f"{task}{n}"} for n in range(2) for task in ("a", "b")]


def test_prompts_come_back_by_task(prepared):
    prompts = read_prompts(config(prepared(ROWS), "a", "b"), seed=0)
    assert prompts.train == prompts.val == {"a": ["a0", "a1"], "b": ["b0", "b1"]}
    assert prompts.sha256("a") != prompts.sha256("b")


def test_the_samples_of_the_training_prompts_are_known_by_their_hashes(prepared, tmp_path, make, questions):
    train = [{"task": "a", "prompt": "x\n\ny", "sample_hashes": [prompt_hash("x"), prompt_hash("y")]}]
    older = [{"task": "a", "prompt": "z"}]
    own = TaskConfig(
        name="sums", checkpoint_dir="x", prompts=str(make.samples(tmp_path / "sums.jsonl", questions["sums"]))
    )
    data = DataConfig(prompts_dir=prepared(train + older, older), tasks=[TaskConfig(name="a", checkpoint_dir="x"), own])
    prompts = read_prompts(data, seed=0)
    assert prompts.train_hashes["a"] == {prompt_hash(text) for text in "xyz"}
    shown = {sample for prompt in prompts.train["sums"] for sample in prompt.split("\n\n")}
    assert prompts.train_hashes["sums"] == {prompt_hash(sample) for sample in shown}


def test_what_is_not_used_of_a_tasks_own_samples_is_counted(tmp_path, make, caplog):
    file = make.samples(tmp_path / "sums.jsonl", [*"abcdefghi", "a"])
    data = DataConfig(tasks=[TaskConfig(name="sums", checkpoint_dir="x", prompts=str(file))])
    with caplog.at_level("INFO"):
        read_prompts(data, seed=0)
    assert "sums: 9 samples; not used: 1 duplicate, 1 left-over sample." in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LoragenInferError, match=r"train_prompts\.jsonl is not a file"):
        read_prompts(config(str(tmp_path), "a"), seed=0)


@pytest.mark.parametrize(
    "row", [{"prompt": "x"}, {"task": "a"}, {"task": "a", "prompt": " "}, {"task": 1, "prompt": "x"}]
)
def test_a_line_that_prepare_did_not_write_is_named(prepared, row):
    with pytest.raises(LoragenTrainError, match=r"train_prompts\.jsonl, line 2 needs a 'task' and a 'prompt'"):
        read_prompts(config(prepared([ROWS[0], row]), "a"), seed=0)


@pytest.mark.parametrize("hashes", [["abc"], ["0" * 64], 5, [5], "0" * 16])
def test_hashes_that_prepare_did_not_write_are_named(prepared, hashes):
    row = {"task": "a", "prompt": "x", "sample_hashes": hashes}
    with pytest.raises(LoragenTrainError, match=r"jsonl, line 2: sample_hashes is no list of texts of 16"):
        read_prompts(config(prepared([ROWS[0], row]), "a"), seed=0)


def test_half_a_character_is_named(prepared):
    with pytest.raises(LoragenInferError, match=r"train_prompts\.jsonl, line 2: 'prompt' holds half a character"):
        read_prompts(config(prepared([ROWS[0], {"task": "a", "prompt": "half \ud800"}]), "a"), seed=0)


def test_prompts_to_validate_with_that_are_trained_on_are_refused(prepared):
    rows = [
        {"task": "a", "prompt": f"x\n\n{other}", "sample_hashes": [prompt_hash(text) for text in ("x", other)]}
        for other in "yz"
    ]
    with pytest.raises(LoragenTrainError, match="have samples of 'a' in common; write both anew"):
        read_prompts(config(prepared(rows[:1], rows[1:]), "a"), seed=0)


def test_a_task_in_one_file_only_is_named(prepared):
    with pytest.raises(LoragenTrainError, match="The task 'b' is in only one of the two prompt files in "):
        read_prompts(config(prepared(ROWS, ROWS[:1]), "a", "b"), seed=0)


def test_a_task_without_prompts_is_named(prepared):
    with pytest.raises(LoragenTrainError, match=r"^The prompts in .* are of a, b, and not of 'c'; prepare"):
        read_prompts(config(prepared(ROWS), "a", "b", "c"), seed=0)


def test_prompts_without_a_task_are_named(prepared):
    with pytest.raises(LoragenTrainError, match=r"are of a, b, but data\.tasks does not have 'b'; add it"):
        read_prompts(config(prepared(ROWS), "a"), seed=0)


def test_one_folder_is_the_one_task_of_the_prompts(prepared):
    folder = prepared(ROWS[::2])
    assert list(read_prompts(DataConfig(prompts_dir=folder, checkpoint_dir="x"), seed=0).train) == ["a"]
    with pytest.raises(LoragenTrainError, match=r"are of a, b, but .*checkpoint_dir is one task's; list them"):
        read_prompts(DataConfig(prompts_dir=prepared(ROWS), checkpoint_dir="x"), seed=0)


def test_samples_of_a_task_are_joined_and_split_without_overlap(tmp_path, make, questions):
    file = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    data = DataConfig(
        prompts_dir="nowhere",
        tasks=[TaskConfig(name="sums", checkpoint_dir="x", prompts=str(file))],
        samples_per_prompt=3,
    )
    prompts = read_prompts(data, seed=0)
    parts = {
        stage: {sample for prompt in texts["sums"] for sample in prompt.split("\n\n")}
        for stage, texts in (("train", prompts.train), ("val", prompts.val))
    }
    assert (len(prompts.train["sums"]), len(prompts.val["sums"])) == (14, 2)
    assert len(parts["train"] | parts["val"]) == 48
    assert not parts["train"] & parts["val"]
    assert read_prompts(data, seed=0) == prompts
    assert read_prompts(data, seed=1) != prompts


def test_too_few_samples_are_named(tmp_path, make):
    file = make.samples(tmp_path / "few.jsonl", ["one", "two", "three"])
    data = DataConfig(tasks=[TaskConfig(name="few", checkpoint_dir="x", prompts=str(file))])
    with pytest.raises(LoragenTrainError, match=r"few\.jsonl has 3 different samples, too few .* prompts of 4"):
        read_prompts(data, seed=0)


def test_tasks_of_both_kinds_go_together(prepared, tmp_path, make, questions):
    file = make.samples(tmp_path / "sums.jsonl", questions["sums"])
    own = TaskConfig(name="sums", checkpoint_dir="x", prompts=str(file))
    data = DataConfig(prompts_dir=prepared(ROWS[::2]), tasks=[own, TaskConfig(name="a", checkpoint_dir="x")])
    assert set(read_prompts(data, seed=0).train) == {"sums", "a"}
    assert Path(data.prompts_dir).is_dir()
