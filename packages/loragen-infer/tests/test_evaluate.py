"""A whole evaluation on a tiny language model: what is scored, shown and written, and what is refused."""

import dataclasses
import errno
import json
import logging

import pytest
import torch
from lora_tokenizer import read_adapter, write_adapter
from loragen_infer import GeneratorBundle, LoraGenerator, LoragenInferError
from loragen_infer.bundle import TrainingTasks, find_bundle
from loragen_infer.evaluation.chart import draw_chart
from loragen_infer.evaluation.config import ROWS, EvaluateConfig, EvaluateTask, TrainingTask
from loragen_infer.evaluation.report import format_evaluation
from loragen_infer.evaluation.run import evaluate
from loragen_infer.evaluation.task_means import TASK_MEANS_NAME, TaskMeansWriter
from loragen_infer.samples import prompt_hash

COMMON = ["base", "mean", "generated", "wrong prompts", "junk"]


def rows(path, *lines):
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def quick(monkeypatch, encoder):
    """One encoder for all evaluations, and no picture; what is about these asks for :func:`picture`."""

    def from_pretrained(path, *, device):
        return LoraGenerator(GeneratorBundle.load(find_bundle(path)), encoder, device=device)

    monkeypatch.setattr(LoraGenerator, "from_pretrained", from_pretrained)
    monkeypatch.setattr("loragen_infer.evaluation.run.draw_chart", lambda *_: None)


@pytest.fixture
def picture(quick, monkeypatch):
    monkeypatch.setattr("loragen_infer.evaluation.run.draw_chart", draw_chart)


@pytest.fixture
def config(zoo, tmp_path):
    tests = [{"prompt": f"say {word}", "response": word} for word in ("ab", "cd", "ef")]
    prompts = rows(
        tmp_path / "prompts.jsonl", {"task": "one", "prompt": "say gh"}, {"task": "other", "prompt": "not this one"}
    )
    tasks = [
        EvaluateTask(
            name="one", test=rows(tmp_path / "one.jsonl", *tests), prompts=prompts, adapter=str(zoo.adapters[0])
        ),
        EvaluateTask(
            name="two",
            test=rows(tmp_path / "two.jsonl", *tests[:2]),
            prompts=rows(tmp_path / "raw.jsonl", {"text": "count 1 2"}),
        ),
    ]
    return EvaluateConfig(
        model=str(zoo.experiment),
        base_model=str(zoo.model),
        tasks=tasks,
        output_dir=str(tmp_path / "r"),
        num_resamples=200,
    )


def trained(zoo, folder, *, seen=("say it",)):
    """A bundle that knows its two training tasks, and the samples ``seen`` of the first."""
    hashes = {"one": frozenset(map(prompt_hash, seen)), "three": frozenset([prompt_hash("count to ten")])}
    tasks = TrainingTasks(names=("one", "three"), prompt_hashes=hashes)
    folder.mkdir(exist_ok=True)
    return str(dataclasses.replace(zoo.bundle, training_tasks=tasks).save(folder / "generator.safetensors"))


def write_means(zoo, encoder, folder, *, names=("one", "three")):
    """The means of those training tasks, beside the bundle."""
    layout = zoo.bundle.layout
    with TaskMeansWriter(folder / TASK_MEANS_NAME, num_tokens=layout.num_tokens, token_dim=layout.token_dim) as writer:
        for name, prompt, adapter in zip(names, ("say it", "count to ten"), zoo.adapters, strict=True):
            writer.add(name, encoder.encode([prompt, f"{prompt}!"]), layout.encode(read_adapter(adapter)))


@pytest.fixture
def full(config, zoo, tmp_path):
    """Every row there is: shots, training tasks, a joint adapter, choices."""
    shots = rows(
        tmp_path / "shots.jsonl", *[{"prompt": f"say {word}", "response": word} for word in ("gh", "ij", "kl")]
    )
    tasks = [dataclasses.replace(task, shots=shots, choices=["ab", "cd", "ef"]) for task in config.tasks]
    training = [
        TrainingTask(
            name=name, prompts=rows(tmp_path / f"{name}.prompts.jsonl", {"prompt": prompt}), adapter=str(folder)
        )
        for name, prompt, folder in zip(("one", "three"), ("say it", "count to ten"), zoo.adapters, strict=True)
    ]
    return dataclasses.replace(
        config,
        model=trained(zoo, tmp_path / "trained"),
        tasks=tasks,
        training_tasks=training,
        joint_adapter=str(zoo.adapters[1]),
        num_shots=2,
    )


def test_the_rows_that_need_nothing_are_scored_and_written(config, tmp_path, picture):
    found = evaluate(config)
    with_own = [row for row in ROWS if row in [*COMMON, "own"]]
    assert [list(task.scores) for task in found.tasks] == [with_own, COMMON]
    assert [task.wrong_tasks for task in found.tasks] == [["two"], ["one"]]
    assert [task.scores["base"].num_examples for task in found.tasks] == [3, 2]
    first = found.tasks[0].scores
    assert len({first[row].nll for row in with_own}) == len(with_own)
    written = json.loads((tmp_path / "r/evaluation.json").read_text(encoding="utf-8"))
    assert written["tasks"][0]["scores"]["own"]["nll"] == first["own"].nll
    assert written["config"]["num_prompts"] == 8
    assert (tmp_path / "r/evaluation.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_every_row_is_there_with_what_it_needs(full):
    found = evaluate(full)
    assert [list(task.scores) for task in found.tasks] == [list(ROWS), [row for row in ROWS if row != "own"]]
    assert [task.held_out for task in found.tasks] == [False, True]
    assert [group.name for group in found.groups] == ["held-out tasks", "training tasks"]
    for task in found.tasks:
        for score in task.scores.values():
            assert score.nll_interval[0] <= score.nll <= score.nll_interval[1]
            assert 0 <= score.accuracy <= 1
    first, second = found.tasks
    # The training tasks of the configuration are single adapters, one of them the task's own.
    assert first.notes["nearest"] == "adapter of one"
    assert first.scores["nearest"].nll == first.scores["own"].nll
    assert second.notes == {
        "few-shot": "2 examples",
        "nearest": second.notes["nearest"],
        "wrong prompts": "prompts of one",
    }
    assert first.scores["ridge"].nll_above_ridge == 0
    for row in ("nearest", "ridge", "generated", "wrong prompts", "junk"):
        assert first.costs[row].seconds > 0
        assert first.costs[row].cpu_seconds >= 0
    assert "base" not in first.costs


def test_a_task_said_to_be_held_out_is_kept_from_nearest_and_ridge_even_where_it_is_named(full, zoo):
    tasks = [dataclasses.replace(full.tasks[0], held_out=True), full.tasks[1]]
    config = dataclasses.replace(full, model=str(zoo.experiment), tasks=tasks, rows=["nearest", "ridge", "own"])
    found = evaluate(config)
    first = found.tasks[0]
    # The bundle does not know, and a configuration's word is no knowledge.
    assert first.held_out is None
    assert any(
        remark == "The bundle does not say what the generator was trained on; that one is held out is the "
        "configuration's word only."
        for remark in found.remarks
    )
    assert first.notes["nearest"] == "adapter of three"
    # Of one training task that is left both are its adapter.
    assert first.scores["ridge"].nll == pytest.approx(first.scores["nearest"].nll, rel=1e-6)
    assert first.scores["own"].nll != pytest.approx(first.scores["nearest"].nll, rel=1e-3)
    alone = dataclasses.replace(config, training_tasks=full.training_tasks[:1])
    with pytest.raises(LoragenInferError, match="no training task but 'one', which is held out"):
        evaluate(alone)


def test_the_means_of_training_tasks_come_from_the_file_beside_the_bundle(config, zoo, tmp_path, encoder):
    path = trained(zoo, tmp_path / "final")
    write_means(zoo, encoder, tmp_path / "final")
    config = dataclasses.replace(config, model=path, rows=["base", "nearest", "ridge", "generated"])
    found = evaluate(config)
    assert [task.held_out for task in found.tasks] == [False, True]
    assert found.tasks[0].notes == {"nearest": "adapter of one"}
    write_means(zoo, encoder, tmp_path / "final", names=("one", "four"))
    with pytest.raises(LoragenInferError, match=r"task means beside .* name 'four', but .* trained on one, three"):
        evaluate(config)


def test_the_means_of_training_tasks_come_from_an_older_bundle(config, zoo, make, tmp_path, encoder):
    layout = zoo.bundle.layout
    means = {
        "condition_means": encoder.encode(["say it", "count to ten"]),
        "token_means": torch.stack([layout.encode(read_adapter(folder)) for folder in zoo.adapters]).float(),
    }
    path = make.old_bundle(tmp_path / "with-tasks.safetensors", zoo.bundle, names=("one", "three"), means=means)
    found = evaluate(dataclasses.replace(config, model=str(path), rows=["base", "nearest", "ridge", "generated"]))
    assert [task.held_out for task in found.tasks] == [False, True]
    assert found.tasks[0].notes == {"nearest": "adapter of one"}
    assert any("not say which samples were trained on" in remark for remark in found.remarks)


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


def test_test_examples_that_the_generator_was_trained_on_are_refused(config, zoo, tmp_path):
    path = trained(zoo, tmp_path / "final", seen=("say  cd ", "say ab", "something else"))
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


def test_near_duplicates_of_a_training_task_are_named(config, zoo, tmp_path, encoder):
    path = trained(zoo, tmp_path / "final")
    write_means(zoo, encoder, tmp_path / "final")
    close = rows(tmp_path / "close.jsonl", {"prompt": "Count to ten"}, {"prompt": "name a bird"})
    tasks = [config.tasks[0], dataclasses.replace(config.tasks[1], prompts=close)]
    found = evaluate(dataclasses.replace(config, model=path, tasks=tasks, rows=["base"]))
    named = [remark for remark in found.remarks if "close to" in remark]
    assert len(named) == 1
    assert "'two' is close to the training task 'three': 1 of its 2 prompts is a near-duplicate" in named[0]


def test_wrong_prompts_are_the_mean_over_the_prompts_of_other_tasks(config, tmp_path):
    words = ["red", "seven", "a bird", "the sea", "x + y"]
    tasks = [
        dataclasses.replace(
            config.tasks[0], name=f"t{place}", prompts=rows(tmp_path / f"{place}.jsonl", {"prompt": text})
        )
        for place, text in enumerate(words)
    ]
    config = dataclasses.replace(config, tasks=tasks, rows=["wrong prompts"])
    found = evaluate(config)
    assert found.tasks[1].wrong_tasks == ["t2", "t3", "t4", "t0"]
    assert found.tasks[1].notes == {"wrong prompts": "mean over the prompts of 4 tasks"}
    # All tasks have the same test, so a task as the one wrong task of another shows what its prompts are worth.
    single = evaluate(dataclasses.replace(config, num_wrong_tasks=1))
    worth = {task.wrong_tasks[0]: task.scores["wrong prompts"].nll for task in single.tasks}
    assert worth.keys() == {task.name for task in tasks}
    for task in found.tasks:
        expected = sum(worth[name] for name in task.wrong_tasks) / 4
        assert task.scores["wrong prompts"].nll == pytest.approx(expected, rel=1e-6)
    two = evaluate(dataclasses.replace(config, num_wrong_tasks=2))
    assert [task.wrong_tasks for task in two.tasks][:2] == [["t1", "t3"], ["t2", "t4"]]


def test_without_training_tasks_one_warning_names_each_row_that_is_left_out(config, caplog):
    with caplog.at_level(logging.WARNING):
        found = evaluate(config)
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert [message.split("'")[1] for message in left_out] == ["nearest", "ridge"]
    assert all("or name training_tasks" in message for message in left_out)
    assert any("not known: there is no row ridge" in remark for remark in found.remarks)
    assert any("No task is known to be held out" in remark for remark in found.remarks)


def test_rows_are_chosen_by_name(config, caplog):
    chosen = dataclasses.replace(config, rows=["own", "base", "few-shot"], tasks=config.tasks[:1])
    assert list(evaluate(chosen).tasks[0].scores) == ["base", "own"]
    assert "The row 'few-shot' is left out: no task has shots" in caplog.text
    with pytest.raises(LoragenInferError, match="'two' has none of the rows asked for"):
        evaluate(dataclasses.replace(config, rows=["own"]))
    with pytest.raises(LoragenInferError, match=r"rows has 'generate'.*did you mean 'generated'"):
        dataclasses.replace(config, rows=["generate"])


def test_a_finished_row_is_not_scored_again(full, monkeypatch, tmp_path):
    full = dataclasses.replace(full, rows=["base", "few-shot", "ridge", "generated", "own", "wrong prompts"])
    found = evaluate(full)
    written = (tmp_path / "r/evaluation.json").read_text(encoding="utf-8")
    monkeypatch.setattr("loragen_infer.evaluation.run.Scorer.score", None)  # calling it would be a TypeError
    # Another batch size changes no more than round-off.
    assert evaluate(dataclasses.replace(full, batch_size=3)) == found
    assert evaluate(full) == found
    assert (tmp_path / "r/evaluation.json").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("what", ["examples", "adapter", "shots", "choices", "prompts"])
def test_what_decides_a_score_is_part_of_its_name(what, full, zoo, tmp_path):
    config = dataclasses.replace(full, tasks=full.tasks[:1], rows=["few-shot", "generated", "own"])
    evaluate(config)
    folder = tmp_path / "r/rows"
    before = {path.name for path in folder.glob("*.json")}
    (task,) = config.tasks
    changed = {
        "examples": lambda: {"test": rows(tmp_path / "new.jsonl", {"prompt": "say ab", "response": "ab"})},
        "adapter": lambda: {"adapter": str(zoo.adapters[1])},
        "shots": lambda: {"shots": rows(tmp_path / "s.jsonl", *[{"prompt": p, "response": "x"} for p in "ab"])},
        "choices": lambda: {"choices": ["ab", "cd", "ef", "gh"]},
        "prompts": lambda: {"prompts": rows(tmp_path / "p.jsonl", {"prompt": "something else"})},
    }[what]()
    evaluate(dataclasses.replace(config, tasks=[dataclasses.replace(task, **changed)]))
    new = {path.name.split(".")[1] for path in folder.glob("*.json") if path.name not in before}
    expected = {
        "examples": {"few-shot", "generated", "own"},
        "adapter": {"own"},
        "shots": {"few-shot"},
        "choices": {"few-shot", "generated", "own"},
        "prompts": {"generated"},
    }
    assert new == expected[what]


def test_a_damaged_row_is_scored_again_and_named(config, tmp_path, caplog):
    config = dataclasses.replace(config, rows=["base"])
    found = evaluate(config)
    path = next((tmp_path / "r/rows").glob("one.base.*.json"))
    for damage in ("{", '{"format": 1, "scores": {"exact": [true]}, "cost": null}', '{"format": 9}', "[]"):
        path.write_text(damage)
        assert evaluate(config) == found
        assert f"{path.name} is damaged" in caplog.text
        caplog.clear()


def test_one_task_alone_has_all_rows_but_wrong_prompts(full):
    alone = dataclasses.replace(full, tasks=full.tasks[:1], rows=["base", "generated"])
    assert list(evaluate(alone).tasks[0].scores) == alone.rows
    with pytest.raises(LoragenInferError, match="two are needed"):
        dataclasses.replace(full, tasks=full.tasks[:1])


def test_the_report_says_what_the_generator_is_worth(full):
    found = evaluate(full)
    text = format_evaluation(found)
    assert "two (held out, 2 examples)" in text
    assert "one (trained on, 3 examples)" in text
    (line,) = [sentence for sentence in text.splitlines() if "generated − ridge" in sentence and "held-out" in sentence]
    verdict = next(v for v in found.verdicts if v.group == "held-out tasks" and v.against == "ridge")
    scores = found.tasks[1].scores
    assert verdict.difference == pytest.approx(scores["generated"].nll - scores["ridge"].nll)
    assert scores["generated"].nll_above_ridge == pytest.approx(verdict.difference)
    assert f"{verdict.difference:+.3f}" in line
    for row in ROWS:
        assert sum(part.startswith(f"{row} ") for part in text.splitlines()) >= 1


def test_a_task_without_prompts_is_named_and_nothing_is_written(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"task": "other", "prompt": "x"}\n', encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"prompts.jsonl has no prompts of the task 'one'"):
        evaluate(config)
    assert not (tmp_path / "r").exists()


def test_the_adapters_own_base_model_is_the_default(config):
    config = dataclasses.replace(config, rows=["base", "generated"])
    named = evaluate(config)
    assert evaluate(dataclasses.replace(config, base_model=None)) == named


def test_the_model_is_named_where_the_adapters_name_none(config, zoo, tmp_path):
    layout = zoo.bundle.layout
    nameless = dataclasses.replace(layout.config, base_model_name_or_path=None)
    bundle = dataclasses.replace(zoo.bundle, layout=dataclasses.replace(layout, config=nameless))
    path = bundle.save(tmp_path / "nameless.safetensors")
    with pytest.raises(LoragenInferError, match="does not know its language model; name it with --base-model"):
        evaluate(dataclasses.replace(config, model=str(path), base_model=None))


def test_limits_on_prompts_and_examples_hold(config):
    limited = evaluate(dataclasses.replace(config, rows=["base"], num_examples=1, batch_size=1))
    assert [task.scores["base"].num_examples for task in limited.tasks] == [1, 1]


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


@pytest.mark.parametrize("field", ["own", "joint", "training"])
def test_an_adapter_that_cannot_be_read_is_named(field, full, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    broken = {
        "own": {"tasks": [dataclasses.replace(full.tasks[0], adapter=nowhere), full.tasks[1]]},
        "joint": {"joint_adapter": nowhere},
        "training": {"training_tasks": [dataclasses.replace(full.training_tasks[0], adapter=nowhere)]},
    }
    named = {"own": "adapter of the task 'one'", "joint": "adapter of joint_adapter", "training": "training task 'one'"}
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


def test_bad_shots_are_named(full, tmp_path):
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
