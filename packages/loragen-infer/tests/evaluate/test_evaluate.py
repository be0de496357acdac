"""A whole evaluation on a tiny language model: what is scored, shown and written."""

import dataclasses
import json
import logging
import shutil

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError
from loragen_infer.adapters import TuneSettings, tune_many
from loragen_infer.evaluation.config import ROWS, TUNED_FROM
from loragen_infer.evaluation.report import format_evaluation
from loragen_infer.evaluation.run import evaluate

COMMON = ["base", "mean", "generated", "wrong prompts", "junk"]


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
    assert first.scores["nearest"].nll == pytest.approx(first.scores["own"].nll, rel=1e-6)  # scored in one batch
    assert second.notes == {
        "few-shot": "2 examples",
        "nearest": second.notes["nearest"],
        "tuned": "2 examples",
        "tuned from mean": "2 examples",
        "tuned from scratch": "2 examples",
        "wrong prompts": "prompts of one",
    }
    assert first.scores["ridge"].nll_above_ridge == 0
    # Tuning changes something even on a model this small, and differs by where it starts.
    for row, source in (("tuned", "generated"), ("tuned from mean", "mean")):
        assert first.scores[row].nll != first.scores[source].nll
        assert first.costs[row].seconds > first.costs[source].seconds
    assert len({first.scores[row].nll for row in TUNED_FROM}) == len(TUNED_FROM)
    # B is zero at the initialisation, so without steps the row would be the base model.
    assert first.scores["tuned from scratch"].nll != first.scores["base"].nll
    for row in ("nearest", "ridge", "generated", *TUNED_FROM, "wrong prompts", "junk"):
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


def test_the_means_of_training_tasks_come_from_the_file_beside_the_bundle(config, tmp_path, trained, write_means):
    path = trained(tmp_path / "final")
    write_means(tmp_path / "final")
    config = dataclasses.replace(config, model=path, rows=["base", "nearest", "ridge", "generated"])
    found = evaluate(config)
    assert [task.held_out for task in found.tasks] == [False, True]
    assert found.tasks[0].notes == {"nearest": "adapter of one"}
    write_means(tmp_path / "final", names=("one", "four"))
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


def test_near_duplicates_of_a_training_task_are_named(config, tmp_path, trained, write_means, rows):
    path = trained(tmp_path / "final")
    write_means(tmp_path / "final")
    close = rows(tmp_path / "close.jsonl", {"prompt": "Count to ten"}, {"prompt": "name a bird"})
    tasks = [config.tasks[0], dataclasses.replace(config.tasks[1], prompts=close)]
    found = evaluate(dataclasses.replace(config, model=path, tasks=tasks, rows=["base"]))
    named = [remark for remark in found.remarks if "close to" in remark]
    assert len(named) == 1
    assert "'two' is close to the training task 'three': 1 of its 2 prompts is a near-duplicate" in named[0]


def test_wrong_prompts_are_the_mean_over_the_prompts_of_other_tasks(config, tmp_path, rows):
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
    full = dataclasses.replace(full, rows=["base", "few-shot", "ridge", "generated", "tuned", "own", "wrong prompts"])
    found = evaluate(full)
    written = (tmp_path / "r/evaluation.json").read_text(encoding="utf-8")
    monkeypatch.setattr("loragen_infer.evaluation.row_scorer.tune_many", None)
    monkeypatch.setattr("loragen_infer.evaluation.scoring.Scorer._score", None)  # calling it would be a TypeError
    # Another batch size changes no more than round-off.
    assert evaluate(dataclasses.replace(full, tokens_per_pass=30)) == found
    assert evaluate(full) == found
    assert (tmp_path / "r/evaluation.json").read_text(encoding="utf-8") == written


def test_tuned_rows_take_the_steps_that_examples_left_out_choose(full, monkeypatch):
    seen = []

    def watched(*inputs):
        seen.append(inputs[-1])
        return tune_many(*inputs)

    monkeypatch.setattr("loragen_infer.evaluation.row_scorer.tune_many", watched)
    full = dataclasses.replace(full, tasks=full.tasks[:1], rows=["tuned"])
    chosen = evaluate(dataclasses.replace(full, tune_folds=2, tune_steps=3, tune_learning_rate=0.01, seed=5))
    fixed = evaluate(full)
    assert seen == [
        TuneSettings(num_steps=3, num_folds=2, learning_rate=0.01, seed=5),
        TuneSettings(num_folds=0),
    ]
    assert 0 <= chosen.tasks[0].costs["tuned"].num_steps <= 3
    assert fixed.tasks[0].costs["tuned"].num_steps == TuneSettings().num_steps
    header, _, row = format_evaluation(fixed).splitlines()[1:4]
    assert header.split()[-1] == "steps"
    assert str(TuneSettings().num_steps) in row.split()


def test_rows_are_not_tuned_from_what_has_more_than_plain_factors(full, zoo, make, tmp_path, caplog):
    model = make.llama(seed=1)
    dora = make.adapter(model, tmp_path / "dora", use_dora=True)
    bundle = make.bundle([dora, make.adapter(model, tmp_path / "other", seed=3, use_dora=True)])
    path = str(bundle.save(tmp_path / "dora.safetensors"))
    task = dataclasses.replace(full.tasks[0], adapter=None)
    config = dataclasses.replace(full, model=path, tasks=[task], training_tasks=None, joint_adapter=None)
    expected = ["base", "few-shot", "mean", "generated", "tuned from scratch", "junk"]
    assert list(evaluate(config).tasks[0].scores) == expected
    reason = "is left out: it starts from an adapter with use_dora, and only plain LoRA factors can be tuned."
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    left_out = [message for message in warned if "tuned" in message]
    assert left_out == [f"The row 'tuned' {reason}", f"The row 'tuned from mean' {reason}"]
    initial = make.adapter(model, tmp_path / "initial", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(LoragenInferError, match="has none of the rows asked for"):
        evaluate(dataclasses.replace(config, initial_adapter=str(initial), rows=["tuned", "tuned from scratch"]))


def test_the_own_adapter_is_what_training_ended_with_and_no_checkpoint_of_it(config, zoo, tmp_path):
    def own(adapter):
        task = dataclasses.replace(config.tasks[0], adapter=str(adapter))
        return evaluate(dataclasses.replace(config, tasks=[task], rows=["own"])).tasks[0].scores["own"].nll

    out = shutil.copytree(zoo.adapters[0], tmp_path / "out")
    shutil.copytree(zoo.adapters[1], out / "checkpoint-10")
    assert own(out) == own(zoo.adapters[0]) != own(zoo.adapters[1])


def test_tuning_that_fails_says_of_which_rows_and_task(full):
    config = dataclasses.replace(full, rows=["tuned", "tuned from mean"], tune_learning_rate=1e30)
    message = "^The rows 'tuned', 'tuned from mean' of the task 'one': .*lower the learning rate"
    with pytest.raises(LoragenInferError, match=message):
        evaluate(config)


@pytest.mark.parametrize("what", ["examples", "adapter", "shots", "choices", "prompts"])
def test_what_decides_a_score_is_part_of_its_name(what, full, zoo, tmp_path, rows):
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


@pytest.mark.parametrize(
    ("version", "scored"), [("TUNING_VERSION", {"tuned"}), ("SCORING_VERSION", {"base", "generated", "tuned"})]
)
def test_rows_of_an_older_way_to_tune_or_to_score_are_not_taken(version, scored, full, monkeypatch, tmp_path):
    config = dataclasses.replace(full, tasks=full.tasks[:1], rows=["base", "generated", "tuned"], tune_steps=1)
    evaluate(config)
    before = set((tmp_path / "r/rows").glob("*.json"))
    assert len(before) == 3
    monkeypatch.setattr(f"loragen_infer.evaluation.row_scorer.{version}", 99)
    evaluate(config)
    assert {path.name.split(".")[1] for path in set((tmp_path / "r/rows").glob("*.json")) - before} == scored


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
    alone = dataclasses.replace(full, tasks=full.tasks[:1])
    assert list(evaluate(alone).tasks[0].scores) == [row for row in ROWS if row != "wrong prompts"]
    chosen = dataclasses.replace(full, tasks=full.tasks[:1], rows=["base", "generated"])
    assert list(evaluate(chosen).tasks[0].scores) == chosen.rows
    with pytest.raises(LoragenInferError, match="two are needed"):
        dataclasses.replace(alone, rows=["base", "wrong prompts"])


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


def test_the_adapters_own_base_model_is_the_default(config):
    config = dataclasses.replace(config, rows=["base", "generated"])
    named = evaluate(config)
    assert evaluate(dataclasses.replace(config, base_model=None)) == named


def test_limits_on_prompts_and_examples_hold(config):
    limited = evaluate(dataclasses.replace(config, rows=["base"], num_examples=1, tokens_per_pass=10))
    assert [task.scores["base"].num_examples for task in limited.tasks] == [1, 1]


def test_the_language_model_is_of_the_dtype_that_is_asked_for(config):
    config = dataclasses.replace(config, rows=["base"])
    full, half = (evaluate(dataclasses.replace(config, dtype=dtype)) for dtype in (None, "bfloat16"))
    full_nll, half_nll = (found.tasks[0].scores["base"].nll for found in (full, half))
    assert half_nll != full_nll
    assert half_nll == pytest.approx(full_nll, rel=0.02)
