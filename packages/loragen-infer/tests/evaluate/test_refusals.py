"""What an evaluation refuses, and that nothing finished is lost by it."""

import dataclasses
import errno

import pytest
import torch
from lora_tokenizer import read_adapter, write_adapter
from loragen_infer import LoragenInferError
from loragen_infer.evaluation.run import evaluate


@pytest.mark.parametrize(
    ("place", "held_out", "message"),
    [
        (0, True, "'one' has held_out: true, but the generator was trained on it"),
        (1, False, "'two' has held_out: false, but the generator was not trained on it"),
    ],
)
def test_what_a_configuration_says_of_held_out_tasks_is_checked_against_the_bundle(place, held_out, message, full):
    def claiming(value):
        tasks = list(full.tasks)
        tasks[place] = dataclasses.replace(tasks[place], held_out=value)
        return dataclasses.replace(full, tasks=tasks, rows=["base"])

    with pytest.raises(LoragenInferError, match=message):
        evaluate(claiming(held_out))
    assert evaluate(claiming(not held_out)).tasks[place].held_out is not held_out


def test_training_tasks_that_the_generator_was_not_trained_on_are_refused(full):
    stranger = dataclasses.replace(full.training_tasks[0], name="two")
    with pytest.raises(LoragenInferError, match="training_tasks name 'two', but the generator was trained on one, thr"):
        evaluate(dataclasses.replace(full, training_tasks=[stranger]))


def test_test_examples_that_the_generator_was_trained_on_are_refused(config, tmp_path, trained):
    path = trained(tmp_path / "final", seen=("say  cd ", "say ab", "something else"))
    with pytest.raises(
        LoragenInferError,
        match=r"one\.jsonl: 2 of the 3 prompts to test the task 'one' on are among the samples of 'one' .*trained on; "
        "take them out, or name another file under test",
    ):
        evaluate(dataclasses.replace(config, model=path))
    assert not (tmp_path / "r").exists()
    # Only what is scored counts.
    with pytest.raises(LoragenInferError, match="1 of the 1 prompts"):
        evaluate(dataclasses.replace(config, model=path, num_examples=1))


def test_a_task_without_prompts_is_named_and_nothing_is_written(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"task": "other", "prompt": "x"}\n', encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"prompts.jsonl has no prompts of the task 'one'"):
        evaluate(config)
    assert not (tmp_path / "r").exists()


def test_the_model_is_named_where_the_adapters_name_none(config, zoo, tmp_path):
    layout = zoo.bundle.layout
    nameless = dataclasses.replace(layout.config, base_model_name_or_path=None)
    bundle = dataclasses.replace(zoo.bundle, layout=dataclasses.replace(layout, config=nameless))
    path = bundle.save(tmp_path / "nameless.safetensors")
    with pytest.raises(LoragenInferError, match="does not know its language model; name it with --base-model"):
        evaluate(dataclasses.replace(config, model=str(path), base_model=None))


def test_a_chart_that_cannot_be_drawn_leaves_the_finished_rows_and_nothing_else(config, tmp_path, picture, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(LoragenInferError, match=r"evaluation\.png cannot be written: No space left on device"):
        evaluate(dataclasses.replace(config, rows=["base"]))
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["rows"]


def test_what_cannot_end_well_is_said_before_the_long_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_infer.evaluation.run.load_base_model", None)  # calling it would be a TypeError
    (tmp_path / "r").write_text("a file")
    with pytest.raises(LoragenInferError, match=r"output_dir .* is a file"):
        evaluate(config)
    (tmp_path / "r").unlink()
    monkeypatch.setattr("loragen_infer.evaluation.run.find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(LoragenInferError, match=r"Evaluating needs peft; install it with: pip install"):
        evaluate(config)


def test_a_row_of_prompts_without_a_prompt_is_named(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"task": "one", "words": "x"}\n', encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"prompts\.jsonl, row 1 has the columns task, words"):
        evaluate(config)


@pytest.mark.parametrize("field", ["own", "joint", "initial", "training"])
def test_an_adapter_that_cannot_be_read_is_named(field, full, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    broken = {
        "own": {"tasks": [dataclasses.replace(full.tasks[0], adapter=nowhere), full.tasks[1]]},
        "joint": {"joint_adapter": nowhere},
        "initial": {"initial_adapter": nowhere},
        "training": {"training_tasks": [dataclasses.replace(full.training_tasks[0], adapter=nowhere)]},
    }
    named = {"own": "adapter of the task 'one'", "training": "training task 'one'"}
    named |= {name: f"adapter of {name}_adapter" for name in ("joint", "initial")}
    with pytest.raises(LoragenInferError, match=f"{named[field]} cannot be (read|used).*nowhere"):
        evaluate(dataclasses.replace(full, **broken[field]))
    assert not (tmp_path / "r").exists()


def test_an_own_adapter_of_another_shape_is_named_before_any_row_is_scored(config, make, tmp_path):
    folder = make.adapter(make.llama(), tmp_path / "wide", target_modules=["q_proj", "k_proj"])
    tasks = [dataclasses.replace(config.tasks[0], adapter=str(folder)), config.tasks[1]]
    evaluate(dataclasses.replace(config, tasks=tasks, rows=["own", "base"]))
    other = read_adapter(config.tasks[0].adapter)
    cut = {name: tensor[:, :-1] if "lora_A" in name else tensor for name, tensor in other.tensors.items()}
    write_adapter(dataclasses.replace(other, tensors=cut), tmp_path / "cut")
    tasks = [dataclasses.replace(config.tasks[0], adapter=str(tmp_path / "cut")), config.tasks[1]]
    with pytest.raises(LoragenInferError, match=r"The row 'own' of the task 'one': The adapter does not fit the model"):
        evaluate(dataclasses.replace(config, tasks=tasks, output_dir=str(tmp_path / "r2")))
    assert not (tmp_path / "r2").exists()


def test_an_adapter_that_breaks_the_model_is_named_and_finished_rows_are_kept(config, tmp_path):
    other = read_adapter(config.tasks[0].adapter)
    huge = {name: torch.full_like(tensor, 1e38) for name, tensor in other.tensors.items()}
    write_adapter(dataclasses.replace(other, tensors=huge), tmp_path / "huge")
    tasks = [dataclasses.replace(config.tasks[0], adapter=str(tmp_path / "huge")), config.tasks[1]]
    with pytest.raises(
        LoragenInferError, match=r"The row 'own' of the task 'one': The model gives a likelihood of nan"
    ):
        evaluate(dataclasses.replace(config, tasks=tasks))
    assert len(list((tmp_path / "r/rows").glob("one.generated.*.json"))) == 1


def test_bad_shots_are_named(full, tmp_path, rows):
    def with_shots(*lines):
        path = rows(tmp_path / "bad.jsonl", *lines)
        return dataclasses.replace(full, tasks=[dataclasses.replace(full.tasks[0], shots=path), full.tasks[1]])

    with pytest.raises(LoragenInferError, match=r"bad\.jsonl has 1 of the 2 examples to show; lower num_shots"):
        evaluate(with_shots({"prompt": "a", "response": "b"}))
    with pytest.raises(LoragenInferError, match=r"bad\.jsonl would show 'say ab' with its response"):
        evaluate(with_shots({"prompt": "a", "response": "b"}, {"prompt": "say ab", "response": "ab"}))
    long = [{"prompt": "x" * 200, "response": "b"}, {"prompt": "y", "response": "b"}]
    with pytest.raises(LoragenInferError, match=r"'few-shot' of the task 'one': .* takes 256; lower num_shots"):
        evaluate(with_shots(*long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"rows": []}, "rows is empty"),
        ({"num_shots": 0}, "num_shots is 0"),
        ({"num_resamples": 5}, "num_resamples is 5, but must be at least 100"),
        ({"seed": -1}, "seed is -1"),
        ({"num_wrong_tasks": 0}, "num_wrong_tasks is 0"),
        ({"num_examples": 0}, "num_examples is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message, config):
    with pytest.raises(LoragenInferError, match=message):
        dataclasses.replace(config, **changes)


def test_two_training_tasks_of_one_name_are_refused(full):
    with pytest.raises(LoragenInferError, match="training_tasks has two of one name"):
        dataclasses.replace(full, training_tasks=[full.training_tasks[0]] * 2)
