"""analyze and test-tokenizer of a zoo.json: the checkpoints and tasks that it lists, whatever else lies there."""

import json

import pytest
from loragen_train.analysis.analyze import analyze_zoo
from loragen_train.zoo.checkpoints import find_checkpoints

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def zoo(tmp_path, make):
    """Two tasks, one of whose checkpoints is a file of another folder; a third adapter is of no task."""
    folder = tmp_path / "zoo"
    elsewhere = tmp_path / "elsewhere.safetensors"
    adapters = {"adapters": ["adapters/spelling/checkpoint-1", str(elsewhere)]}
    make.manifest(folder, ("sums", "spelling", "capitals"), spelling=adapters, capitals={"adapters": []})
    elsewhere.write_bytes((folder / "adapters" / "spelling" / "checkpoint-2" / WEIGHTS).read_bytes())
    return folder


def test_tasks_and_checkpoints_are_those_that_the_manifest_lists(zoo):
    assert {path.name: task for path, task in find_checkpoints(zoo).items() if task == "spelling"} == {
        "checkpoint-1": "spelling",
        "elsewhere.safetensors": "spelling",
    }
    content = analyze_zoo(zoo, token_dim=16, lora_alpha=4)
    assert [(task["name"], task["num_checkpoints"]) for task in content["tasks"]] == [("sums", 2), ("spelling", 2)]
    assert content["broken"] == {}


def test_a_checkpoint_that_is_gone_is_named_and_stops_nothing(zoo, make, capsys):
    (zoo / "adapters" / "sums" / "checkpoint-1" / WEIGHTS).unlink()
    assert make.cli("analyze", str(zoo), "--lora-alpha", "4") == 0
    out = capsys.readouterr().out
    assert "3 checkpoints, 2 tasks, 1 broken" in out
    assert "sums/checkpoint-1" in out


def test_all_checkpoints_of_a_zoo_go_to_tokens_and_back(zoo, make, capsys):
    words = ["test-tokenizer", str(zoo), "--token-dim", "16", "--lora-alpha", "4"]
    assert make.cli(*words) == 0
    out = capsys.readouterr().out
    assert "zoo: 4 checkpoints\n6 modules, r 2, 672 values, 42 tokens of 16" in out
    assert "All equal to the bit" in out
    assert make.cli(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["num_checkpoints"], found["failures"]) == (True, 4, {})
    assert [size["num_tokens"] for size in found["sizes"]] == [42]


def test_what_fails_is_named_with_what_would_fit(zoo, make, capsys):
    words = ["test-tokenizer", str(zoo), "--token-dim", "16", "--lora-alpha", "4"]
    assert make.cli(*words, "--max-tokens", "41", "--json") == 1
    out, err = capsys.readouterr()
    assert (json.loads(out)["ok"], len(json.loads(out)["failures"])) == (False, 4)
    assert "4 of the 4 checkpoints of " in err
    assert "max_tokens=42" in err
    (zoo / "adapters" / "sums" / "checkpoint-1" / WEIGHTS).write_bytes(b"junk")
    assert make.cli(*words) == 1
    out, err = capsys.readouterr()
    assert "42 tokens of 16" in out
    assert "1 of the 4 checkpoints of " in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["analyze", "test-tokenizer"])
def test_one_of_a_zoo_and_checkpoints_is_given(command, zoo, make, capsys):
    option = {"analyze": "--checkpoint-dir", "test-tokenizer": "--checkpoint"}[command]
    for words in ([], [str(zoo), option, "x"]):
        assert make.cli(command, *words) == 2
        assert f"Give either the folder of a zoo or {option}." in capsys.readouterr().err


def test_a_manifest_without_adapters_is_named(tmp_path, make, capsys):
    make.manifest(tmp_path, ("sums",), sums={"adapters": []})
    assert make.cli("analyze", str(tmp_path)) == 1
    assert "zoo.json lists no adapters" in capsys.readouterr().err
