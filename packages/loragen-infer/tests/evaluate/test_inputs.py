"""What a task is evaluated with, from files of its own and from files that tasks share."""

import pytest
from loragen_infer import LoragenInferError
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask
from loragen_infer.evaluation.examples import read_inputs
from loragen_infer.samples import Example


def inputs_of(name, train, test, **options):
    task = EvaluateTask(name=name, prompts=train, shots=train, test=test)
    return read_inputs(task, EvaluateConfig(model="m", tasks=[task], **options))


def test_of_a_file_with_a_task_column_prompts_shots_and_tests_are_the_tasks_own(rows, tmp_path):
    def shared(part):
        lines = [
            {"task": task, "prompt": f"{part} {number} of {task}", "response": f"{task}{number}"}
            for task in ("a", "b")
            for number in range(2)
        ]
        return rows(tmp_path / f"{part}.jsonl", *lines)

    train, test = shared("train"), shared("test")
    for name in ("a", "b"):
        found = inputs_of(name, train, test, num_shots=2)
        assert found.prompts == [f"train {number} of {name}" for number in range(2)]
        shots = [Example(prompt=f"train {number} of {name}", response=f"{name}{number}") for number in range(2)]
        assert found.shots == shots
        assert [(example.prompt, example.response) for example in found.examples] == [
            (f"test {number} of {name}", f"{name}{number}") for number in range(2)
        ]
    with pytest.raises(LoragenInferError, match=r"train\.jsonl has 2 of the 3 examples to show; lower num_shots"):
        inputs_of("a", train, test, num_shots=3)
    plain = rows(tmp_path / "plain.jsonl", {"prompt": "p", "response": "r"})
    with pytest.raises(LoragenInferError, match=r"test\.jsonl has no test examples of the task 'c'; name another file"):
        inputs_of("c", plain, test, num_shots=1)


def test_an_example_that_is_shown_is_not_tested_whatever_its_white_space(rows, tmp_path):
    train = rows(tmp_path / "train.jsonl", {"prompt": "say  ab\n", "response": "ab"})
    test = rows(tmp_path / "test.jsonl", {"prompt": "say ab", "response": "ab"})
    with pytest.raises(LoragenInferError, match=r"train\.jsonl would show 'say  ab.*' with its response"):
        inputs_of("a", train, test, num_shots=1)
