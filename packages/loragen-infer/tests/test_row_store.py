"""Finished rows under bad luck: a kill, two at once, a folder that refuses; and what a key tells apart."""

import copy
import dataclasses
import json
import subprocess
import sys
import threading
import time

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask
from loragen_infer.evaluation.run import evaluate
from loragen_infer.evaluation.scoring import ExampleScores, Scorer
from loragen_infer.evaluation.store import (
    Cost,
    FinishedRow,
    RowKey,
    RowStore,
    fingerprint,
    fingerprint_of_adapter,
    fingerprint_of_model,
)

ROW = FinishedRow(
    scores=ExampleScores(answer_nll=(0.1, 2.5), num_tokens=(1, 3), exact=(True, False), correct=(True, True)),
    cost=Cost(seconds=1.5),
)


@pytest.fixture
def config(zoo, make, tmp_path):
    tasks = []
    for name, count in (("one", 4), ("two", 3)):
        examples = [{"prompt": f"{name} says {number}", "response": str(number)} for number in range(count)]
        path = str(make.rows(tmp_path / f"{name}.jsonl", examples))
        tasks.append(EvaluateTask(name=name, test=path, prompts=path, adapter=str(zoo.adapters[0])))
    return EvaluateConfig(
        model=str(zoo.experiment),
        base_model=str(zoo.model),
        tasks=tasks,
        output_dir=str(tmp_path / "r"),
        tokens_per_pass=1000,
        num_resamples=200,
    )


def finished_rows(config, tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "r/rows").glob("*.json")}


def refuse(_):
    raise AssertionError("this row is finished")


def finish(store, row, score=refuse, *, wait=False):
    """One row."""
    return store.finish([RowKey(*row)], score, wait=wait)[0]


def test_a_row_comes_back_as_it_was_scored(tmp_path):
    store = RowStore(tmp_path)
    bare = dataclasses.replace(ROW, scores=dataclasses.replace(ROW.scores, correct=None), cost=None)
    for key, row in (("0f", ROW), ("1f", bare)):
        assert finish(store, ("a task/..", "wrong prompts", key), lambda _, row=row: [row]) == row
        assert finish(store, ("a task/..", "wrong prompts", key)) == row
    names = sorted(path.name for path in (tmp_path / "rows").glob("[!.]*"))
    assert names == ["a-task-.wrong-prompts.0f.json", "a-task-.wrong-prompts.1f.json"]


def test_a_row_is_scored_by_one_at_a_time(tmp_path):
    first, second = RowStore(tmp_path), RowStore(tmp_path)
    found = []

    def score(_):
        assert finish(second, ("t", "base", "0f")) is None
        assert finish(second, ("t", "base", "1f"), lambda _: [ROW]) == ROW
        thread.start()
        time.sleep(0.1)
        assert not found
        return [ROW]

    thread = threading.Thread(target=lambda: found.append(finish(second, ("t", "base", "0f"), wait=True)))
    assert finish(first, ("t", "base", "0f"), score) == ROW
    thread.join(timeout=10)
    assert found == [ROW]


def test_of_several_rows_those_that_are_missing_are_scored_together_and_kept_as_they_come(tmp_path):
    store, keys = RowStore(tmp_path), [RowKey("t", "base", f"{place}f") for place in range(4)]
    assert store.finish(keys[1:2], lambda _: [ROW]) == [ROW]
    asked = []

    def score(missing):
        asked.append(missing)
        yield ROW
        # A process beside this one finds the first kept, and the others taken.
        assert RowStore(tmp_path).finish(keys[1:], refuse) == [ROW, None, None]
        if len(asked) == 1:
            raise LoragenInferError("the second is no good")
        yield from [ROW] * (len(missing) - 1)

    with pytest.raises(LoragenInferError, match="the second"):
        store.finish(keys, score)
    assert (tmp_path / "rows/t.base.0f.json").is_file()
    assert store.finish(keys, score) == [ROW] * 4
    assert asked == [[0, 2, 3], [2, 3]]


# Ends itself, as kill -9 would, in the middle of the second task's rows, with a file half written beside the others.
KILLED = """
import json, os, signal, sys, torch
from pathlib import Path
from lora_tokenizer.io.atomic import atomic_file
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask
from loragen_infer.evaluation import run
from loragen_infer.evaluation.scoring import Scorer

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
settings = json.loads(sys.argv[1])
score, scored = Scorer._score, []

def dying(self, *args):
    if len(scored) == 3:
        with atomic_file(Path(settings["output_dir"]) / "rows" / "half.json") as part:
            part.write_text("{")
            os.kill(os.getpid(), signal.SIGKILL)
    scored.append(score(self, *args))
    return scored[-1]

Scorer._score = dying
run.evaluate(EvaluateConfig(**{**settings, "tasks": [EvaluateTask(**task) for task in settings["tasks"]]}))
"""


def test_after_kill_9_what_is_finished_is_kept_and_the_rest_is_as_if_nothing_had_happened(config, tmp_path):
    command = [sys.executable, "-c", KILLED, json.dumps(dataclasses.asdict(config))]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -9
    kept = finished_rows(config, tmp_path)
    # Each task has base, and then adapters, which are scored together.
    assert len(kept) == 7
    assert not (tmp_path / "r/evaluation.json").exists()
    assert list((tmp_path / "r/rows").glob(".half.json.*"))
    resumed = evaluate(config)
    after = finished_rows(config, tmp_path)
    assert kept.items() <= after.items()
    assert len(after) == 12
    assert not list((tmp_path / "r/rows").glob(".half.json.*"))
    whole = evaluate(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    for found, expected in zip(resumed.tasks, whole.tasks, strict=True):
        assert list(found.scores) == list(expected.scores)
        for row, score in expected.scores.items():
            assert found.scores[row].nll == pytest.approx(score.nll, rel=1e-4)


def test_two_at_once_share_the_rows_and_find_the_same(config, monkeypatch):
    scored, score = [], Scorer._score

    def spy(self, model, num_adapters, applied):
        scored.extend([threading.get_ident()] * num_adapters)
        return score(self, model, num_adapters, applied)

    monkeypatch.setattr(Scorer, "_score", spy)
    found = {}
    threads = [threading.Thread(target=lambda index=index: found.update({index: evaluate(config)})) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(scored) == 12, "no row is scored twice, and none is missing"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "rows").write_text("a file")
    with pytest.raises(LoragenInferError, match=r"output_dir .* cannot be written to: File exists"):
        RowStore(tmp_path)


def test_keys_tell_apart_what_matters_and_nothing_else(zoo, make, tmp_path):
    adapter = read_adapter(zoo.adapters[0])
    same = read_adapter(zoo.adapters[0])
    assert fingerprint_of_adapter(adapter) == fingerprint_of_adapter(same)
    assert fingerprint_of_adapter(None) is None
    moved = dataclasses.replace(
        adapter, config=dataclasses.replace(adapter.config, base_model_name_or_path="elsewhere")
    )
    assert fingerprint_of_adapter(moved) == fingerprint_of_adapter(adapter)
    louder = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, lora_alpha=9))
    name = next(iter(adapter.tensors))
    nudged = {**adapter.tensors, name: adapter.tensors[name] + 1e-3}
    others = [louder, dataclasses.replace(adapter, tensors=nudged), adapter.to(torch.bfloat16)]
    assert len({fingerprint_of_adapter(other) for other in [adapter, *others]}) == 4

    model = make.llama()
    changed = copy.deepcopy(model)
    assert fingerprint_of_model(changed) == fingerprint_of_model(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert fingerprint_of_model(changed) != fingerprint_of_model(model)
    assert fingerprint("a", [1, 2]) != fingerprint("a", [12])
