"""The commands around ``fit``: a --help that waits for nothing heavy, and JSON where a script would read it."""

import json
import subprocess
import sys

import pytest
from loragen_train.cli.analyze import ANALYZE, TEST_TOKENIZER
from loragen_train.cli.collect import COLLECT
from loragen_train.cli.prepare import PREPARE
from loragen_train.cli.report import REPORT

COMMANDS = [ANALYZE, COLLECT, PREPARE, REPORT, TEST_TOKENIZER]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_has_an_example_and_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from loragen_train.cli.main import main\n"
        "try:\n"
        f"    main([{command.name!r}, '--help'])\n"
        "except SystemExit as stop:\n"
        "    slow = {'torch', 'lightning', 'transformers', 'peft', 'matplotlib', 'numpy', 'datasets'}\n"
        "    heavy = slow & set(sys.modules)\n"
        "    sys.exit(f'{stop.code} {heavy}' if stop.code or heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"example:\n  loragen-train {command.name} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_options_of_the_example_exist(command, make, capsys, tmp_path, monkeypatch):
    """What they name does not, so each ends with one sentence; a wrong option would be a usage error (2)."""
    monkeypatch.chdir(tmp_path)
    words = command.example.split()[1:]
    assert make.cli(*words) == (2 if command is COLLECT else 1)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"loragen-train {command.name}: error: ")
    assert "option" not in line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_an_unknown_option_is_a_usage_error(command, make, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "collect.yaml").write_text("base_model: x\ntasks: [{name: a, source: b}]\n")
    assert make.cli(*command.example.split()[1:], "--jsn") == 2
    assert "jsn" in capsys.readouterr().err


def test_collect_prints_what_a_script_would_read(make, collect_yaml, tmp_path, capsys):
    words = ["collect", "--config", collect_yaml, "--json"]
    assert make.cli(*words) == 0
    (task,) = json.loads(capsys.readouterr().out)
    assert (task["task"], task["folder"]) == ("sums", f"{tmp_path}/zoo/adapters/sums")
    assert task["tokens_per_second"] > 0
    assert [row["step"] for row in task["loss"]] == [1, 2]
    assert make.cli(*words) == 0
    assert json.loads(capsys.readouterr().out) == [task]
