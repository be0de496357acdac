"""Tasks of lm-evaluation-harness as sources: prompt and target of every document, from the split that is meant."""

import sys
from pathlib import Path

import pytest
import yaml
from loragen_train import LoragenTrainError
from loragen_train.configs.collect import CollectTask
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.prompts import harness
from loragen_train.prompts.combine import prepare
from loragen_train.prompts.sources import Source, read_samples
from loragen_train.prompts.splits import read_all_samples, read_task_samples

pytest.importorskip("lm_eval", reason="the extra loragen-train[lm-eval] is not installed")

ROWS = {
    "train": [{"ask": f"{number} + 1 = ", "say": f" {number + 1}"} for number in range(6)],
    "dev": [{"ask": "8 + 1 = ", "say": " 9"}],
    "test": [{"ask": "9 + 1 = ", "say": " 10"}, {"ask": "7 + 1 = ", "say": ""}],
}
SUMS = {
    "task": "sums",
    "output_type": "generate_until",
    "training_split": "train",
    "validation_split": "dev",
    "test_split": "test",
    "doc_to_text": "Add: {{ask}}",
    "doc_to_target": "{{say}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
QUIZ = {
    **SUMS,
    "task": "quiz",
    "output_type": "multiple_choice",
    "doc_to_text": "ask",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def task_file(tmp_path, make):
    """Write the YAML file of a task over JSON lines; None for a value leaves the key out."""

    def write(config: dict, rows: dict[str, list[dict]] = ROWS, **changes: object) -> Path:
        files = {split: str(make.rows(tmp_path / f"{split}.jsonl", part)) for split, part in rows.items()}
        whole = {**config, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, **changes}
        path = tmp_path / f"{config['task']}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in whole.items() if value is not None}))
        return path

    return write


def pairs_of(path: object, *, split: str = "train", purpose: str = "collect") -> list[tuple[str, str]]:
    source = Source(location=f"lm-eval:{path}", split=split)
    samples = read_samples(source, num_samples=None, seed=0, purpose=purpose)
    return [(sample.prompt, sample.response) for sample in samples.by_place.values()]


def test_documents_are_those_to_train_with_or_else_to_validate_or_test_with(task_file):
    path = task_file(SUMS)
    train = pairs_of(path)
    assert train == [(f"Add: {number} + 1 =", str(number + 1)) for number in range(6)]
    assert pairs_of(path, split="dev") == [("Add: 8 + 1 =", "9")]
    assert pairs_of(task_file(SUMS, training_split=None)) == [("Add: 8 + 1 =", "9")]
    alone = task_file(SUMS, training_split=None, validation_split=None, test_split="train")
    assert pairs_of(alone) == pairs_of(alone, split="train") == train


def test_a_choice_is_answered_with_its_text(task_file):
    rows = [
        {"ask": "Warm?\n", "choices": [" yes", " no"], "label": 1},
        {"ask": "Cold?", "choices": ["so", "thus"], "label": 0},
    ]
    expected = [("Warm?", "no"), ("Cold?", "so")]
    parts = dict.fromkeys(ROWS, rows)
    assert pairs_of(task_file(QUIZ, parts)) == expected
    numbered = {**QUIZ, "doc_to_target": "{{label}}"}
    assert pairs_of(task_file(numbered, parts)) == expected
    worded = {**QUIZ, "doc_to_target": "{{choices[label]}}"}
    assert pairs_of(task_file(worded, parts)) == expected


def test_a_blank_is_filled_in_with_what_the_prompt_chooses(task_file):
    rows = [{"ask": 1, "choices": ["The cat is", "The dog is"], "label": "big."}]
    assert pairs_of(task_file(QUIZ, dict.fromkeys(ROWS, rows))) == [("The dog is", "big.")]


def test_of_several_right_answers_the_first_is_taken(task_file):
    rows = [{"ask": "Capital?", "answers": ["Oslo", "Kristiania"]}]
    path = task_file({**SUMS, "doc_to_target": "answers"}, dict.fromkeys(ROWS, rows))
    assert pairs_of(path) == [("Add: Capital?", "Oslo")]


def test_functions_beside_the_file_and_included_files_are_used(tmp_path, task_file):
    path = task_file(SUMS)
    path.rename(tmp_path / "_base")
    (tmp_path / "twice.py").write_text("def said(doc):\n    return doc['say'] * 2\n")
    path = tmp_path / "twice.yml"
    path.write_text("include: _base\ntask: twice\ndoc_to_target: !function twice.said\n")
    assert pairs_of(path, split="dev") == [("Add: 8 + 1 =", "9 9")]


def test_a_document_without_a_target_cannot_be_trained_on(task_file):
    path = task_file(SUMS)
    with pytest.raises(LoragenTrainError, match=r"sums\.yaml has no target for its document 2, so there is"):
        pairs_of(path, split="test")
    assert pairs_of(path, split="test", purpose="prepare") == [("Add: 9 + 1 =", "10"), ("Add: 7 + 1 =", "")]
    rows = [{"ask": "Warm?", "choices": ["yes", "no"], "label": -1}]
    hidden = task_file(QUIZ, dict.fromkeys(ROWS, rows))
    with pytest.raises(LoragenTrainError, match="has no target for its document 1"):
        pairs_of(hidden)


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({}, "validation", r"has no split 'validation'; it has train, dev, test\.$"),
        ({"doc_to_text": "{{question}}"}, "train", r"cannot be loaded: 'question' is undefined\.$"),
        ({"training_split": "learn"}, "train", r"cannot be loaded: KeyError\('learn'\)\.$"),
        ({"output_type": "riddle"}, "train", "cannot be loaded: Got invalid output_type 'riddle'"),
        ({"doc_to_image": "ask"}, "train", "is of whole texts, images or sound, not of prompts with responses; choose"),
        ({"dataset_path": "nobody/nothing", "dataset_kwargs": {}}, "train",
         r"^The data set of lm-eval:.*sums\.yaml is not in the cache .*, and the hub cannot be reached, or HF_HUB_OFF"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_used_is_one_sentence(task_file, changes, split, message):
    path = task_file(SUMS, **changes)
    with pytest.raises(LoragenTrainError, match=message) as caught:
        pairs_of(path, split=split)
    assert "\n" not in str(caught.value)


def test_a_document_that_the_task_cannot_read_is_named(task_file):
    choices = [{"ask": "Warm?", "choices": ["yes", "no"], "label": 1}, {"ask": "Cold?", "choices": None, "label": 1}]
    path = task_file({**QUIZ, "doc_to_choice": "{{choices[:2]}}"}, dict.fromkeys(ROWS, choices))
    with pytest.raises(LoragenTrainError, match=r"quiz\.yaml fails at its document 2: "):
        pairs_of(path)


def test_a_file_of_a_group_or_of_nothing_is_one_sentence(tmp_path):
    for name, content, message in [
        ("group", {"group": "both", "task": ["sums", "more"]}, r"group\.yaml is a group of tasks, but a source is one"),
        ("other", {"colour": "red"}, r"other\.yaml cannot be loaded: Unknown config shape"),
        ("damaged", "[", r"damaged\.yaml cannot be loaded: while parsing"),
    ]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        with pytest.raises(LoragenTrainError, match=message):
            pairs_of(path)
    with pytest.raises(LoragenTrainError, match=r"^The file of lm-eval:.*absent\.yaml does not exist; give the YAML"):
        pairs_of(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hellaswga", r"^lm-eval has no task 'hellaswga'; did you mean 'hellaswag'\?\.$"),
        ("mmlu", r"^lm-eval:mmlu is a group of tasks, but a source is one; name one of its tasks, such as 'mmlu_"),
        ("ai2_arc", r"^lm-eval:ai2_arc is a group of tasks, but a source is one; name one of its tasks\.$"),
        ("hellaswag", r"^The data set of lm-eval:hellaswag is not in the cache of downloaded data sets, and the hub"),
    ],
)
def test_names_are_those_of_the_library(name, message):
    with pytest.raises(LoragenTrainError, match=message):
        pairs_of(name)


def test_without_the_library_the_error_says_how_to_install_it(task_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    harness._task_manager.cache_clear()
    with pytest.raises(
        LoragenTrainError, match=r"needs lm-eval \(.*\); install it with: pip install 'loragen-train\[lm-"
    ):
        pairs_of(task_file(SUMS))


def test_collect_and_prepare_read_it(tmp_path, task_file, make):
    path = task_file(SUMS)
    more = make.samples(tmp_path / "more.jsonl", ["a", "b", "c"])
    task = CollectTask(name="sums", source=[f"lm-eval:{path}", str(more)], num_train=4, num_test=2)
    train, test = read_task_samples(task, seed=0)
    assert sorted(row.prompt[:3] for row in train + test) == ["Add", "Add", "Add", "a", "b", "c"]
    late = CollectTask(name="late", source=f"lm-eval:{path}", num_train=1, num_test=1, split="test")
    outcomes = [outcome for _, outcome in read_all_samples([late, task], seed=0)]
    assert "has no target for its document 2" in outcomes[0]
    assert outcomes[1] == (train, test)
    config = PrepareConfig(output_dir=str(tmp_path / "data"), samples_per_prompt=2)
    manifest = prepare([f"lm-eval:{path}"], config)
    assert manifest["tasks"]["sums"]["num_samples"] == 6
    assert manifest["tasks"]["sums"]["made_by"].startswith("lm-eval 0.")
