"""A whole evaluation on a tiny language model: what is scored, shown and written."""

import dataclasses
import errno
import json

import pytest
from lora_tokenizer import LoraTokenizerError
from loragen_infer import LoragenInferError
from loragen_infer.evaluate import evaluate
from loragen_infer.evaluate_config import EvaluateConfig, EvaluateTask
from loragen_infer.results import TaskResult, format_table
from loragen_infer.scoring import Score


@pytest.fixture
def config(zoo, tmp_path):
    def rows(name, *lines):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return str(path)

    tests = [{"prompt": f"say {word}", "response": word} for word in ("ab", "cd", "ef")]
    prompts = rows("prompts.jsonl", {"task": "one", "prompt": "say gh"}, {"task": "other", "prompt": "not this one"})
    tasks = [
        EvaluateTask(name="one", test=rows("one.jsonl", *tests), prompts=prompts, adapter=str(zoo.adapters[0])),
        EvaluateTask(name="two", test=rows("two.jsonl", *tests[:2]), prompts=rows("raw.jsonl", {"text": "count 1 2"})),
    ]
    return EvaluateConfig(
        model=str(zoo.experiment), base_model=str(zoo.model), tasks=tasks, output_dir=str(tmp_path / "r")
    )


def test_every_row_is_scored_and_written(config, tmp_path):
    results = evaluate(config)
    common = ["base", "mean", "generated", "wrong prompts"]
    assert [list(result.scores) for result in results] == [[*common, "own"], common]
    assert [result.wrong_task for result in results] == ["two", "one"]
    assert [result.scores["base"].num_examples for result in results] == [3, 2]
    first = results[0].scores
    assert len({first[row].nll for row in ("base", "mean", "generated", "own")}) == 4
    written = json.loads((tmp_path / "r/evaluation.json").read_text(encoding="utf-8"))
    assert written["tasks"][0]["scores"]["own"]["nll"] == first["own"].nll
    assert written["config"]["num_prompts"] == 8
    assert (tmp_path / "r/evaluation.png").read_bytes().startswith(b"\x89PNG\r\n")


def score(nll):
    return Score(nll=nll, exact_match=0.25, num_examples=4)


def test_recovered_is_the_share_of_the_own_adapter_s_gain():
    scores = {"base": score(4.0), "generated": score(1.5), "own": score(1.0)}
    result = TaskResult(task="t", wrong_task="u", scores=scores)
    assert result.recovered == pytest.approx(2.5 / 3)
    assert TaskResult(task="t", wrong_task="u", scores={"base": score(4.0)}).recovered is None
    # An adapter that gains nothing leaves nothing to recover.
    useless = scores | {"own": score(4.0)}
    assert TaskResult(task="t", wrong_task="u", scores=useless).recovered is None


def test_the_table_has_a_line_per_task_and_a_dash_for_what_is_missing():
    scores = {row: score(2.0) for row in ("base", "mean", "generated", "wrong prompts")}
    table = format_table([TaskResult(task="sums", wrong_task="u", scores=scores)])
    (line,) = [line for line in table.splitlines() if line.startswith("sums")]
    assert line.count("2.000 |  25") == 4
    assert line.count("–") == 2


def test_a_task_without_prompts_is_named_and_nothing_is_written(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"task": "other", "prompt": "x"}\n', encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"prompts.jsonl has no prompts of the task 'one'"):
        evaluate(config)
    assert not (tmp_path / "r").exists()


def test_the_adapters_own_base_model_is_the_default(config):
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
    limited = evaluate(dataclasses.replace(config, num_examples=1, batch_size=1))
    assert [result.scores["base"].num_examples for result in limited] == [1, 1]


def test_a_chart_that_cannot_be_drawn_leaves_no_results(config, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(LoragenInferError, match=r"evaluation\.png cannot be written: No space left on device"):
        evaluate(config)
    assert list((tmp_path / "r").iterdir()) == []


def test_what_cannot_end_well_is_said_before_the_long_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr("loragen_infer.evaluate.load_base_model", None)  # calling it would be a TypeError
    (tmp_path / "r").write_text("a file")
    with pytest.raises(LoragenInferError, match=r"output_dir .* is a file"):
        evaluate(config)
    (tmp_path / "r").unlink()
    monkeypatch.setattr("loragen_infer.evaluate.find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(LoragenInferError, match=r"Evaluating needs peft; install it with: pip install"):
        evaluate(config)


def test_a_row_of_prompts_without_a_prompt_is_named(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"task": "one", "words": "x"}\n', encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"prompts\.jsonl, row 1 has the columns task, words"):
        evaluate(config)


def test_an_own_adapter_that_is_not_there_is_named(config, tmp_path):
    tasks = [dataclasses.replace(config.tasks[0], adapter=str(tmp_path / "nowhere")), config.tasks[1]]
    with pytest.raises(LoraTokenizerError, match="nowhere"):
        evaluate(dataclasses.replace(config, tasks=tasks))
    assert not (tmp_path / "r").exists()


def test_one_task_is_too_few_for_a_control(config):
    with pytest.raises(LoragenInferError, match="two are needed"):
        EvaluateConfig(model="m", tasks=config.tasks[:1])
