"""An evaluation that reads zoo.json: which tasks, which prompts, and what the zoo says besides."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from loragen_infer import LoragenInferError
from loragen_infer.bundle import TrainingTasks
from loragen_infer.cli.main import main
from loragen_infer.evaluation.config import ROWS, EvaluateConfig, EvaluateTask
from loragen_infer.evaluation.examples import read_inputs, read_test_examples
from loragen_infer.evaluation.run import evaluate
from loragen_infer.evaluation.zoo_tasks import with_tasks_of_zoo
from loragen_infer.samples import prompt_hash
from loragen_infer.zoo import SampleFile, ZooManifest

# Of five prompts of each training task, training has shown all but the last two.
TRAINED = TrainingTasks(
    names=("one", "two"),
    prompt_hashes={
        name: frozenset(prompt_hash(f"prompts {number} of {name}") for number in range(3)) for name in ("one", "two")
    },
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "listed"


@pytest.fixture
def listed(make, zoo, folder):
    def write(**changes):
        return make.manifest(folder, adapters=zoo.adapters, model=zoo.model, **changes)

    return write


@pytest.fixture
def model(zoo, tmp_path):
    path = tmp_path / "final" / "generator.safetensors"
    path.parent.mkdir()
    return str(dataclasses.replace(zoo.bundle, training_tasks=TRAINED).save(path))


def names(config: EvaluateConfig, trained: TrainingTasks | None = TRAINED) -> list[str]:
    return [task.name for task in with_tasks_of_zoo(config, config.zoo, trained).tasks]


def test_evaluate_needs_nothing_but_the_zoo_and_a_model(listed, folder, model, tmp_path, zoo, capsys, caplog):
    manifest = listed()
    dataclasses.replace(manifest, joint=str(zoo.adapters[1])).write()
    words = ["--zoo", str(folder), "--model", model, "--output-dir", str(tmp_path / "r"), "--num-resamples", "100"]
    assert main(["evaluate", *words]) == 0
    written = json.loads((tmp_path / "r" / "evaluation.json").read_text(encoding="utf-8"))
    assert [(task["task"], task["held_out"]) for task in written["tasks"]] == [
        ("one", False),
        ("two", False),
        ("new", True),
    ]
    # No means lie beside the bundle, and no initialisation beside the zoo.
    rows = [row for row in ROWS if row not in ("nearest", "ridge", "tuned from scratch")]
    assert [list(task["scores"]) for task in written["tasks"]] == [
        rows,
        rows,
        [row for row in rows if row != "own"],
    ]
    assert written["tasks"][0]["notes"]["few-shot"] == "4 examples"
    assert (written["config"]["zoo"], written["config"]["tasks"]) == (str(folder), [])
    capsys.readouterr()
    # Options and files go with it; what is finished is not scored again.
    (tmp_path / "e.yaml").write_text("rows: [own]\nnum_examples: 1\n", encoding="utf-8")
    chosen = ["--rows", "base", "generated", "--zoo-tasks=held-out", "--json"]
    assert main(["evaluate", *words, "--config", str(tmp_path / "e.yaml"), *chosen]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (task["task"], list(task["scores"])) == ("new", ["base", "generated"])
    assert task["scores"]["base"]["num_examples"] == 1


def test_adapters_are_generated_from_prompts_that_training_has_not_shown(listed, folder):
    listed()
    config = with_tasks_of_zoo(EvaluateConfig(model="m", zoo=str(folder), num_prompts=4), str(folder), TRAINED)
    shown = frozenset().union(*TRAINED.prompt_hashes.values())
    found = {task.name: read_inputs(task, config, shown=shown).prompts for task in config.tasks}
    assert found == {
        "one": [f"prompts {number} of one" for number in (3, 4)],
        "two": [f"prompts {number} of two" for number in (3, 4)],
        "new": [f"prompts {number} of new" for number in range(4)],
    }
    shown |= {prompt_hash(f"prompts {number} of one") for number in (3, 4)}
    with pytest.raises(LoragenInferError, match=r"one\.prompts\.jsonl: the generator was trained on every prompt"):
        read_inputs(config.tasks[0], config, shown=shown)


def test_what_an_adapter_was_trained_on_for_another_task_is_not_tested(listed, folder, zoo, tmp_path, caplog):
    listed()
    # Of the first task one test example was learned, and both of the second, without being shown as a prompt.
    learned = {
        "one": frozenset([prompt_hash("test 0 of two"), prompt_hash("test 1 of one")]),
        "two": frozenset([prompt_hash("test 1 of two"), prompt_hash("prompts 4 of one")]),
    }
    tasks = dataclasses.replace(TRAINED, sample_hashes=learned)
    model = dataclasses.replace(zoo.bundle, training_tasks=tasks).save(tmp_path / "learned.safetensors")
    config = EvaluateConfig(
        model=str(model), zoo=str(folder), rows=["base"], num_resamples=100, output_dir=str(tmp_path / "r")
    )
    evaluation = evaluate(config)
    assert {task.task: len(task.rows["base"].answer_nll) for task in evaluation.tasks} == {"one": 1, "new": 2}
    why = "that the generator or an adapter was trained on, for this task or another."
    assert [remark for remark in evaluation.remarks if why in remark] == [
        f"The task 'one' is tested without 1 test example {why}",
        f"The task 'two' is left out: it has no test example but 2 test examples {why}",
    ]
    # What is generated from need only not have been shown.
    listed = with_tasks_of_zoo(config, str(folder), tasks).tasks
    shown = frozenset().union(*tasks.prompt_hashes.values())
    assert read_inputs(listed[0], config, shown=shown).prompts == [f"prompts {number} of one" for number in (3, 4)]
    (only,) = (task for task in ZooManifest.read(folder).tasks if task.name == "two")
    learned["two"] |= {prompt_hash("test 0 of two")}
    dataclasses.replace(ZooManifest.read(folder), tasks=[only]).write()
    with pytest.raises(LoragenInferError, match=r"every test example of every task; name other files under test"):
        evaluate(config)


def test_an_example_that_an_adapter_was_trained_on_is_refused_where_a_configuration_names_it(config, zoo, tmp_path):
    (first, *_) = config.tasks
    prompt = read_test_examples(first)[0].prompt
    tasks = TrainingTasks(names=("three",), sample_hashes={"three": frozenset([prompt_hash(prompt)])})
    model = dataclasses.replace(zoo.bundle, training_tasks=tasks).save(tmp_path / "learned.safetensors")
    with pytest.raises(
        LoragenInferError, match=r"1 of the \d prompts to test the task 'one' on are among the samples of"
    ):
        evaluate(dataclasses.replace(config, model=str(model)))


@pytest.mark.parametrize(
    ("which", "expected"), [("all", ["one", "two", "new"]), ("held-out", ["new"]), ("training", ["one", "two"])]
)
def test_a_part_of_the_tasks_can_be_asked_for(listed, folder, which, expected):
    listed()
    config = EvaluateConfig(model="m", zoo=str(folder), zoo_tasks=which, rows=["base"])
    assert names(config) == names(config, None) == expected


def test_one_held_out_task_alone_is_evaluated_without_the_prompts_of_others(listed, folder, model, zoo, tmp_path):
    listed()
    config = EvaluateConfig(
        model=model, zoo=str(folder), zoo_tasks="held-out", output_dir=str(tmp_path / "r"), num_resamples=100
    )
    (task,) = evaluate(config).tasks
    assert task.task == "new"
    assert {"base", "generated"} <= task.scores.keys()
    assert "wrong prompts" not in task.scores


def test_what_is_neither_trained_on_nor_held_out_or_has_no_files_is_left_out_by_name(listed, folder, caplog):
    listed(one={"test": None}, new={"prompts": None})
    config = EvaluateConfig(model="m", zoo=str(folder), rows=["base"])
    assert names(config) == ["two"]
    assert caplog.messages == ["Left out 2 tasks of the zoo: one (it has no test examples), new (it has no prompts)."]
    caplog.clear()
    with pytest.raises(LoragenInferError, match=r"zoo\.json has no task to evaluate on, of 3 tasks \(zoo_tasks=all\)"):
        names(config, TrainingTasks(names=("other",)))
    assert "two (neither held out nor trained on)" in caplog.text


def test_what_the_zoo_says_of_all_tasks_counts_where_nothing_else_is_said(listed, folder, zoo, tmp_path):
    manifest = listed()
    dataclasses.replace(manifest, joint="joint").write()
    config = EvaluateConfig(model="m", zoo=str(folder))
    found = with_tasks_of_zoo(config, str(folder), TRAINED)
    assert (found.joint_adapter, found.base_model) == (str(folder / "joint"), str(zoo.model))
    assert found.initial_adapter is None
    (folder / "initial_adapter").mkdir()
    assert with_tasks_of_zoo(config, str(folder), TRAINED).initial_adapter == str(folder / "initial_adapter")
    assert [task.held_out for task in found.tasks] == [None, None, True]
    own = dataclasses.replace(config, joint_adapter="mine", initial_adapter="my-start", base_model="my-model")
    found = with_tasks_of_zoo(own, str(folder), TRAINED)
    assert (found.joint_adapter, found.initial_adapter, found.base_model) == ("mine", "my-start", "my-model")
    dataclasses.replace(manifest, base_model_path="gone").write()
    found = with_tasks_of_zoo(config, str(folder), TRAINED)
    assert (found.joint_adapter, found.base_model) == (None, str(zoo.model))  # the adapters may name another


def test_no_example_counts_that_the_joint_adapter_was_trained_on(listed, folder, model, make, zoo, tmp_path):
    """A generator that does not start from it knows nothing of the tasks that only the joint adapter has seen."""
    manifest = listed()
    one, _, new = manifest.tasks
    test = manifest.path(new.test.path)
    file = make.rows(folder / "lent.jsonl", [json.loads(test.read_text(encoding="utf-8").splitlines()[0])])
    lent = dataclasses.replace(one, name="lent", adapters=[], test=None, prompts=SampleFile.of(file, folder))
    joint = Path(shutil.copytree(zoo.adapters[1], folder / "joint" / "checkpoint-4"))
    dataclasses.replace(manifest, joint="joint/checkpoint-4", tasks=[*manifest.tasks, lent]).write()

    def number_of_examples(rows, **options):
        config = EvaluateConfig(
            model=model,
            zoo=str(folder),
            zoo_tasks="held-out",
            rows=rows,
            output_dir=str(tmp_path / "r"),
            num_resamples=100,
            **options,
        )
        (task,) = evaluate(config).tasks
        return task.scores["base"].num_examples

    whole = number_of_examples(["base"])
    assert number_of_examples(["base", "joint"]) == whole - 1
    for own in (joint, joint.parent):
        assert number_of_examples(["base", "joint"], joint_adapter=str(own)) == whole - 1
    assert number_of_examples(["base", "joint"], joint_adapter=str(zoo.adapters[0])) == whole


def test_the_last_adapter_is_the_tasks_own(listed, folder, zoo):
    listed(one={"adapters": [str(path) for path in zoo.adapters]})
    found = with_tasks_of_zoo(EvaluateConfig(model="m", zoo=str(folder)), str(folder), TRAINED)
    assert [task.adapter for task in found.tasks] == [str(zoo.adapters[1]), str(zoo.adapters[1]), None]


def test_examples_are_shown_where_there_are_enough_with_responses(listed, folder, make):
    manifest = listed()
    file = manifest.path(manifest.tasks[1].prompts.path)
    make.rows(file, [{"prompt": f"prompts {number} of two"} for number in range(5)])
    changed = dataclasses.replace(manifest.tasks[1], prompts=type(manifest.tasks[1].prompts).of(file, folder))
    dataclasses.replace(manifest, tasks=[manifest.tasks[0], changed, manifest.tasks[2]]).write()

    def shots(**options):
        config = EvaluateConfig(model="m", zoo=str(folder), **options)
        return [task.shots is not None for task in with_tasks_of_zoo(config, str(folder), TRAINED).tasks]

    assert shots() == [True, False, True]
    assert shots(num_shots=6) == [False, False, False]
    assert shots(rows=["base"]) == [False, False, False]


def test_a_held_out_task_that_was_trained_on_is_refused(listed, folder, model, tmp_path):
    listed(one={"held_out": True})
    config = EvaluateConfig(model=model, zoo=str(folder), rows=["base"], output_dir=str(tmp_path / "r"))
    with pytest.raises(LoragenInferError, match="'one' has held_out: true, but the generator was trained on it"):
        evaluate(config)


def test_a_changed_file_is_refused(listed, folder):
    manifest = listed()
    file = manifest.path(manifest.tasks[0].test.path)
    file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"one\.test\.jsonl has been changed since"):
        with_tasks_of_zoo(EvaluateConfig(model="m", zoo=str(folder)), str(folder), TRAINED)


def test_a_zoo_and_tasks_exclude_each_other_and_one_is_needed(folder):
    tasks = [EvaluateTask(name="a", test="t", prompts="p")]
    with pytest.raises(LoragenInferError, match=r"^zoo names all tasks; leave tasks out, or it\.$"):
        EvaluateConfig(model="m", zoo=str(folder), tasks=tasks)
    with pytest.raises(LoragenInferError, match=r"^tasks is empty; name at least one task to evaluate on, or a zoo\.$"):
        EvaluateConfig(model="m")
