"""The code in the README, and in the pages of the documentation on this package, runs as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from loragen_infer.cli.main import main

README = Path(__file__).parents[1] / "README.md"
PAGES = Path(__file__).parents[3] / "docs"
TEXTS = [README, *sorted(PAGES.rglob("*.md"))]


def test_the_lines_of_the_library_run(zoo, tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"## Library\n.*?```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    place = '"experiments/zoo_20260101_120000"'
    assert place in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace(place, repr(str(zoo.experiment))), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("What is 4 + 4?")
    assert {path.name for path in (tmp_path / "another-adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_the_lines_on_many_adapters_run(zoo, make):
    page = PAGES / "how-to/many-adapters.md"  # docs/how-to/many-adapters.md
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace('"experiments/zoo_20260101_120000"', repr(str(zoo.experiment)))
    names = {}
    exec(compile(code, page.name, "exec"), names)
    plain = names["model"](**names["batch"]).logits
    assert plain.shape == names["logits"].shape
    assert not any(same.all() for same in names["logits"].isclose(plain, atol=1e-3))


@pytest.mark.parametrize(
    "line",
    dict.fromkeys(
        line
        for path in TEXTS
        for line in re.findall(r"^loragen-infer (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ),
)
def test_the_commands_have_options_that_exist(line, capsys):
    command, *words = shlex.split(line)
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in words if word.startswith("--")), text
