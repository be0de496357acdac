"""What both command lines share: subcommands from configs, checked YAML keys, one-sentence errors, exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Imports nothing heavy, so that ``--help`` is fast.
"""

import argparse
import dataclasses
import difflib
import logging
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

__all__ = ["Command", "UsageError", "nearest", "run_command_line"]


class UsageError(Exception):
    """The command line or a configuration file is wrong; exit code 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand."""

    name: str
    """What is typed."""
    help: str
    """What it does, in a few words."""
    description: str
    """What it does, in a sentence or two."""
    example: str
    """A command line that works."""
    run: Callable[..., None]
    """Does it: takes an instance of ``config_class`` and, if there are any, the options of ``add_options``."""
    config_class: type | None = None
    """A dataclass whose fields become ``--key`` and ``--section.key`` options and the keys of the YAML files given with
    ``--config`` (repeatable: the later file wins, and options win over files)."""
    add_options: Callable[[ArgumentParser], None] | None = None
    """Adds options that are no fields of ``config_class``."""
    short_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other names of options: ``{"--checkpoint-dir": "--data.checkpoint_dir"}``."""


def run_command_line(prog: str, description: str, commands: Sequence[Command], argv: Sequence[str] | None) -> int:
    """Parse ``argv`` (default: the process's), run the command that it names and return the exit code."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Without abbreviations a misspelt option is an error with the nearest known one, and never another option.
    root = _Parser(prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False)
    subcommands = root.add_subcommands(required=True)
    parsers = {}
    for command in commands:
        parser = parsers[command.name] = _Parser(
            description=f"{command.description}\n\nexample:\n  {command.example}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        if command.config_class is not None:
            parser.config_class = command.config_class
            parser.add_argument("--config", action=_CheckedConfigFile, help="A YAML file with the options below.")
            parser.add_class_arguments(command.config_class)
        if command.add_options is not None:
            command.add_options(parser)
        parser.add_argument("--verbose", action="store_true", help="Show debug messages, and tracebacks of errors.")
        subcommands.add_subcommand(command.name, parser, help=command.help)

    words = list(sys.argv[1:] if argv is None else argv)
    named = next((command for command in commands if words[:1] == [command.name]), None)
    if named is not None and named.config_class is not None:
        words = _take_dashes(words, named)
    parsed = root.parse_args(words)
    chosen = next(command for command in commands if command.name == parsed.subcommand)
    return _run(prog, chosen, parsers[chosen.name], parsed[chosen.name])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name most like ``name``, or nothing.

    Example:
        >>> nearest("bacth_size", ["batch_size", "seed"])
        "; did you mean 'batch_size'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the example."""


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence on standard error, with the nearest known name."""

    config_class: type | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        sentence = re.sub(r"\s+", " ", message).strip().replace("Parser key ", "")
        sentence = re.sub(r"Expected an? <class '(\w+)'>\. Got value: (.*)", r"expected \1, got \2", sentence)
        unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:?) '?-*([\w.-]+)", sentence)
        if unknown:
            options = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
            sentence = sentence.rstrip(".") + nearest(unknown[1], options)
        # A usage dump would bury the sentence; --help has it.
        self.exit(2, f"{prog}: error: {sentence} (see {prog} --help)\n")


class _CheckedConfigFile(ActionConfigFile):
    """Names an unknown key of a YAML file with the nearest known one before the parser sees the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, _option_string: str | None = None) -> None:
        path, kind = Path(values), parser.config_class
        if not path.is_file():
            parser.error(f"--config {values}: there is no such file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            parser.error(f"{path} is not valid YAML: {error}")
        if not isinstance(content, dict):
            parser.error(f"{path} must hold 'key: value' lines, but holds {type(content).__name__}")
        try:
            # --print_config prints the options that are no fields too, and its output is a valid file.
            others = {action.dest for action in parser._actions} - set(typing.get_type_hints(kind))
            _check_keys({key: value for key, value in content.items() if key not in others}, kind, path, "")
        except UsageError as error:
            parser.error(str(error))
        self.apply_config(parser, cfg, self.dest, values)


def _check_keys(content: Any, kind: Any, path: Path, prefix: str) -> None:
    """Raise UsageError for a key of ``content`` that the dataclass ``kind`` does not have, at any depth."""
    for option in typing.get_args(kind):  # list[Task], Section | None
        if typing.get_origin(kind) is list and isinstance(content, list):
            for index, item in enumerate(content):
                _check_keys(item, option, path, f"{prefix.rstrip('.')}[{index}].")
        else:
            _check_keys(content, option, path, prefix)
    if not (dataclasses.is_dataclass(kind) and isinstance(content, dict)):
        return
    hints = typing.get_type_hints(kind)
    for key, value in content.items():
        if key not in hints:
            raise UsageError(f"{path}: unknown key {prefix + str(key)!r}{nearest(str(key), hints)}")
        _check_keys(value, hints[key], path, f"{prefix}{key}.")


def _take_dashes(words: list[str], command: Command) -> list[str]:
    """Spell ``--output-dir`` as the field is called, ``--output_dir``, and short names as what they stand for."""
    names = [field.name for field in dataclasses.fields(command.config_class or Command)]
    known = {f"--{name.replace('_', '-')}": f"--{name}" for name in [*names, "print_config"]} | dict(
        command.short_names
    )
    parts = [word.partition("=") for word in words]
    return [known.get(head, head) + equals + tail for head, equals, tail in parts]


def _run(prog: str, command: Command, parser: ArgumentParser, options: Namespace) -> int:
    """Run ``command`` and return the exit code, turning the packages' own errors into one sentence each."""
    _quieten(verbose=options.verbose)
    prog = f"{prog} {command.name}"
    try:
        arguments = [] if command.config_class is None else [_build_config(command.config_class, parser, options)]
        if command.config_class is None or command.add_options is not None:
            arguments.append(options)
        command.run(*arguments)
    except KeyboardInterrupt:
        _say(f"{prog}: interrupted; what is finished is kept.")
        return 130
    except UsageError as error:
        _say(f"{prog}: error: {error} (see {prog} --help)")
        return 2
    except _user_errors() as error:
        if options.verbose:
            logging.getLogger(prog).exception("The traceback of the error below:")
        _say(f"{prog}: error: {error}")
        return 1
    return 0


def _quieten(*, verbose: bool) -> None:
    """Let through what the packages say, and of the libraries below them only what went wrong."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s")
    if verbose:
        return
    # Lightning sets the level of its root logger when it is imported, but not that of this talkative child.
    lightning = "lightning.pytorch.utilities.rank_zero"
    talkative = ("filelock", "fsspec", "httpcore", "httpx", "matplotlib", "sentence_transformers")
    for name in (*talkative, lightning):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its warnings are of retries, which whoever retries reports.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    if not sys.stderr.isatty():
        # The bars of the libraries would fill a log file with carriage returns.
        os.environ.setdefault("TQDM_DISABLE", "1")


def _build_config(config_class: type, parser: ArgumentParser, options: Namespace) -> Any:
    known = {field.name for field in dataclasses.fields(config_class)}
    try:
        values = vars(parser.instantiate(options))
        return config_class(**{key: value for key, value in values.items() if key in known})
    except _user_errors() as error:
        raise UsageError(str(error)) from error


def _user_errors() -> tuple[type[Exception], ...]:
    """The exception bases of the packages that are loaded; an error of another kind is a defect and stays raw."""
    bases = {
        "hyperconv": "HyperConvError",
        "lora_tokenizer": "LoraTokenizerError",
        "loragen_infer.errors": "LoragenInferError",
        "loragen_train.errors": "LoragenTrainError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in bases.items() if module in sys.modules)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
