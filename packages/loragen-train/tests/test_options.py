"""Every option of every command of both command lines: either spelling, any order, before or after files."""

import json
import re
from importlib.metadata import version
from typing import get_args

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from loragen_infer.cli import command_line
from loragen_infer.cli.main import main as infer
from loragen_train.cli.main import main as train

COMMANDS = [
    *((infer, name) for name in ("generate", "verify", "evaluate", "info", "compare", "merge", "serve", "demo")),
    *((train, name) for name in ("collect", "prepare", "analyze", "test-tokenizer", "fit", "report")),
]


def parse(main, words):
    """The options that the words mean; what the command does is left out."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "_run", lambda prog, command, parser, options, errors: seen.append(options))
        patch.setattr(command_line, "_quieten", lambda *args, **kwargs: None)
        main(words)
    return seen[0]


def parser_of(main, name):
    with pytest.MonkeyPatch.context() as patch:
        parsers = {}
        make = command_line._make_parser
        patch.setattr(command_line, "_make_parser", lambda c, **which: parsers.setdefault(c.name, make(c, **which)))
        patch.setattr(command_line, "_arrange", lambda words, parser, names: ["--help"])
        with pytest.raises(SystemExit):
            main([name])
    return parsers[name]


def words_of(parser):
    """Positional words, and per option a name and a value (None for a flag) that the parser takes."""
    positional, options = [], {}
    names = [action.option_strings[0] for action in parser._actions if action.option_strings]
    for action in parser._actions:
        if not action.option_strings:
            positional.append("x")
            continue
        option = action.option_strings[0]
        is_section = any(name.startswith(f"{option}.") and not name.endswith(".help") for name in names)
        if is_section or option.endswith(".help") or action.dest in ("help", "config", "print_config"):
            continue
        kind = getattr(action, "_typehint", action.type)
        if action.nargs == 0:
            options[option] = None
        elif action.default is None and not action.required and type(None) in get_args(kind):
            options[option] = "null"
        elif action.default is None:
            options[option] = "[]" if "list" in str(kind) else "x" if kind in (str, None) else "1"
        else:
            options[option] = action.default if isinstance(action.default, str) else json.dumps(action.default)
    return positional, options


@pytest.mark.parametrize(("main", "name"), COMMANDS, ids=lambda value: getattr(value, "__module__", value))
def test_every_option_works_in_both_spellings_and_in_any_order(main, name):
    parser = parser_of(main, name)
    positional, options = words_of(parser)
    required = [action.option_strings[0] for action in parser._actions if action.required and action.option_strings]
    assert len(options) > 1

    @settings(max_examples=6, deadline=None, phases=[Phase.generate])
    @given(st.data())
    def check(data):
        chosen = data.draw(st.permutations(sorted(options)))[: data.draw(st.integers(0, len(options)))]
        chosen += [option for option in required if option not in chosen]
        plain, spelt = [], []
        for option in chosen:
            other = data.draw(st.sampled_from(["-", "_"]))
            spelling = "--" + re.sub("[-_]", other, option[2:])
            value = options[option]
            plain += [option] if value is None else [option, value]
            joined = data.draw(st.booleans())
            spelt += [spelling] if value is None else [f"{spelling}={value}"] if joined else [spelling, value]
        assert parse(main, [name, *positional, *plain]) == parse(main, [name, *positional, *spelt])

    check()


def test_options_win_over_files_wherever_they_stand(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        content = {"training": {"seed": seed, "max_epochs": 4}, "data": {"batch_size": 5}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    words = [f"--config={tmp_path / 'a.yaml'}", "--training.seed=7", "--data.batch-size=3"]

    @settings(max_examples=6, deadline=None, phases=[Phase.generate])
    @given(st.permutations([*words, f"--config={tmp_path / 'b.yaml'}"]))
    def check(order):
        options = parse(train, ["fit", *order])
        assert (options.training.seed, options.data.batch_size, options.training.max_epochs) == (7, 3, 4)

    check()


@pytest.mark.parametrize(("main", "name"), COMMANDS, ids=lambda value: getattr(value, "__module__", value))
def test_help_shows_one_spelling_and_no_words_of_the_parser(main, name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert "example:" in shown
    assert re.findall(r"--[a-z][\w.-]*_[\w.-]*", shown) == []
    assert re.findall(r"<(?:function|class)[^>]*>|NoneType", shown) == []


@pytest.mark.parametrize("name", ["loragen-infer", "loragen-train"])
def test_both_say_their_version(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        (infer if name == "loragen-infer" else train)(["--version"])
    assert capsys.readouterr().out.strip() == f"{name} {version(name)}"
