"""A whole evaluation on a tiny language model: what is scored, shown and written."""

import json

import pytest
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


def test_one_task_is_too_few_for_a_control(config):
    with pytest.raises(LoragenInferError, match="two are needed"):
        EvaluateConfig(model="m", tasks=config.tasks[:1])
