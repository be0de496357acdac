"""A command line of subcommands: options from configs, in both spellings, before files; one-sentence errors.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Imports nothing heavy, so that ``--help`` is fast, and knows no
package: whoever runs a command line hands over the errors and the loggers that are meant for users.
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import sys
import typing
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from loragen_infer.errors import is_out_of_memory, is_out_of_space, name_refused, reason_of
from loragen_infer.words import nearest

__all__ = ["Command", "UsageError", "run_command_line"]


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


def run_command_line(
    prog: str,
    description: str,
    commands: Sequence[Command],
    argv: Sequence[str] | None,
    *,
    errors: tuple[type[Exception], ...],
    loggers: tuple[str, ...],
    version: str,
) -> int:
    """Parse ``argv`` (default: the process's), run the command that it names and return the exit code.

    Args:
        prog: What the program is called.
        description: What it does.
        commands: Its commands.
        argv: The words after its name.
        errors: Exceptions that are a sentence for the user; one of another kind is a defect and stays raw.
        loggers: Names of the loggers that speak to the user; of all others only errors are shown.
        version: What ``--version`` prints.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    # Without abbreviations a misspelt option is an error with the nearest known one, and never another option.
    root = _Parser(prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False, version=version)
    words = list(sys.argv[1:] if argv is None else argv)
    named = next((command for command in commands if words[:1] == [command.name]), None)
    subcommands = root.add_subcommands(required=True)
    for command in commands:
        # Describing the options of commands that nobody asks for would take longer than all the rest.
        root.parsers[command.name] = parser = _make_parser(command, has_options=command.name in words)
        subcommands.add_subcommand(command.name, parser, help=command.help)
    if named is not None:
        words = [named.name, *_arrange(words[1:], root.parsers[named.name], named.short_names)]
    parsed = root.parse_args(words)
    chosen = next(command for command in commands if command.name == parsed.subcommand)
    options = parsed[chosen.name]
    _quieten(loggers, verbose=options.verbose)
    return _run(f"{prog} {chosen.name}", chosen, root.parsers[chosen.name], options, errors)


def _make_parser(command: Command, *, has_options: bool) -> "_Parser":
    parser = _Parser(
        description=f"{command.description}\n\nexample:\n  {command.example}",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    if not has_options:
        return parser
    if command.config_class is not None:
        parser.config_class = command.config_class
        parser.add_argument("--config", action=_CheckedConfigFile, help="A YAML file with the options below.")
        parser.add_class_arguments(command.config_class)
    if command.add_options is not None:
        command.add_options(parser)
    parser.add_argument("--verbose", action="store_true", help="Show debug messages, and tracebacks of errors.")
    return parser


def _arrange(words: Sequence[str], parser: "_Parser", short_names: Mapping[str, str]) -> list[str]:
    """Spell options as the parser knows them, and put files before sections before options, so that these win.

    The texts of a list may follow its option one by one: ``--rows base generated``.
    """
    known = {name.replace("-", "_"): name for name in parser._option_string_actions}
    known |= {name.replace("-", "_"): name for name in short_names}
    lists = {name for name, action in parser._option_string_actions.items() if _is_list_of_texts(action)}
    sections = {name.rpartition(".")[0] for name in known.values() if not name.endswith(".help")}
    files: list[str] = []
    whole_sections: list[str] = []
    others: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "--":
            others += [word, *rest]
            rest.clear()
        elif not word.startswith("--"):
            others.append(word)
        else:
            head, equals, value = word.partition("=")
            option = _spell(head, known)
            option = short_names.get(option, option)
            chosen = files if option == "--config" else whole_sections if option in sections else others
            if option in lists:
                texts = [value] if equals else []
                while not equals and rest and not rest[0].startswith("--"):
                    texts.append(rest.popleft())
                equals, value = ("=", _as_list(texts)) if texts else ("", "")
            chosen.append(f"{option}{equals}{value}")
            if chosen is not others and not equals and rest:
                chosen.append(rest.popleft())
    return files + whole_sections + others


def _is_list_of_texts(action: argparse.Action) -> bool:
    kind = getattr(action, "_typehint", None)
    return list[str] in (kind, *typing.get_args(kind))


def _as_list(texts: list[str]) -> str:
    """The YAML of a list of texts; one that is written as YAML already stays as it is."""
    is_yaml = len(texts) == 1 and (texts[0] == "null" or texts[0].startswith("["))
    return texts[0] if is_yaml else json.dumps(texts)


def _spell(head: str, known: Mapping[str, str]) -> str:
    """The known spelling of an option, of one that appends (``--list+``), or of a key of one (``--mapping.key``)."""
    for end in (len(head), *(match.start() for match in reversed(list(re.finditer(r"[.+]", head))))):
        option = known.get(head[:end].replace("-", "_"))
        if option is not None:
            return option + head[end:]
    return head


def _dashed(text: str) -> str:
    """Show options with dashes: ``--output-dir``."""
    return re.sub(r"(?<![\w-])--[a-z][\w.-]*", lambda option: option[0].replace("_", "-"), text)


class _Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the example."""


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence on standard error, with the nearest known name."""

    config_class: type | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parsers: dict[str, _Parser] = {}

    def format_help(self, *args: Any) -> str:
        return _dashed(super().format_help(*args))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        sentence = re.sub(r"\s+", " ", message).strip()
        missing = re.fullmatch(r"the following arguments are required: (\w[\w-]*)\.(.*)", sentence)
        if missing and missing[1] in self.parsers:
            parser = self.parsers[missing[1]]
            places = {action.dest: (action.option_strings or [action.dest.upper()])[0] for action in parser._actions}
            names = [places[name.removeprefix(f"{missing[1]}.")] for name in sentence.partition(": ")[2].split(", ")]
            sentence = f"{' and '.join(names)} must be given"
        unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:?) '?-*([\w.-]+)", sentence)
        if unknown:
            options = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
            sentence = sentence.rstrip(".") + nearest(unknown[1].replace("-", "_"), options)
        prog = parser.prog.replace(" [options]", "")
        # A usage dump would bury the sentence; --help has it.
        self.exit(2, f"{prog}: error: {_dashed(_plain(sentence))} (see {prog} --help)\n")


def _plain(sentence: str) -> str:
    """Say what was expected without the parser's words for types."""
    sentence = sentence.replace("Parser key ", "").replace('"subcommand" to be', "a command,")
    union = (
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*Given value: (.*?)(?= - |$)"
    )
    sentence = re.sub(union, lambda found: f"expected {_types(found[1])}, got {found[2]}", sentence)
    return re.sub(
        r"Expected an? (<class '[\w.]+'>|typing\..+?)\. Got value: (.*)",
        lambda found: f"expected {_types(found[1])}, got {found[2]}",
        sentence,
    )


def _types(listed: str) -> str:
    """``<class 'int'>, typing.Literal['auto'], <class 'NoneType'>`` as ``int or 'auto' or null``."""
    listed = re.sub(r"<class '([\w.]+)'>", r"\1", listed).replace("NoneType", "null")
    listed = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", listed)
    listed = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", listed)
    return re.sub(r", (?![^\[]*\])", " or ", listed)


class _CheckedConfigFile(ActionConfigFile):
    """Names an unknown key of a YAML file with the nearest known one before the parser sees the file."""

    def __call__(self, parser: Any, cfg: Any, values: Any, _option_string: str | None = None) -> None:
        path, kind = Path(values), parser.config_class
        if not os.path.isfile(path):  # noqa: PTH113  # which is no error of any name
            parser.error(f"--config {values}: there is no such file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            parser.error(f"{path} is not valid YAML: {error}")
        if not isinstance(content, dict):
            found = {type(None): "is empty", list: "holds a list"}.get(type(content), f"holds {content!r}")
            parser.error(f"{path} {found}, where 'key: value' lines belong")
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


def _run(
    prog: str, command: Command, parser: ArgumentParser, options: Namespace, errors: tuple[type[Exception], ...]
) -> int:
    """Run ``command`` and return the exit code, turning the errors that are meant for users into one sentence each."""
    try:
        arguments: list[Any] = [options]
        if command.config_class is not None:
            arguments = [_build_config(command.config_class, parser, options, errors)]
            arguments += [] if command.add_options is None else [options]
        command.run(*arguments)
    except KeyboardInterrupt:
        _say(f"{prog}: interrupted; what is finished is kept.")
        return 130
    except UsageError as error:
        _say(f"{prog}: error: {error} (see {prog} --help)")
        return 2
    except Exception as error:
        sentence = str(error) if isinstance(error, errors) else _refusal(error)
        if sentence is None:
            raise
        if options.verbose:
            logging.getLogger(prog).exception("The traceback of the error below:")
        _say(f"{prog}: error: {sentence}")
        return 1
    return 0


def _refusal(error: Exception) -> str | None:
    """What the machine has too little of, or does not take as a name; None if that is not what is wrong."""
    if sentence := name_refused(error, "given"):
        return sentence
    if is_out_of_memory(error):
        return "The memory does not hold this; take smaller batches, fewer tokens or a machine with more."
    if is_out_of_space(error):
        what = getattr(error, "filename", None) or "What comes next"
        reason = getattr(error, "strerror", None) or reason_of(error)
        return f"{what} cannot be written: {reason}; free space and run it again, what is finished is kept."
    return None


def _quieten(loggers: Sequence[str], *, verbose: bool) -> None:
    """Let through what these loggers say, and of all others only errors."""
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not root.handlers:
        handler = logging.StreamHandler()
        # On the handler, since libraries set the levels of their own loggers when they are imported.
        if not verbose:
            handler.addFilter(lambda record: record.levelno >= logging.ERROR or record.name.startswith(tuple(loggers)))
        root.addHandler(handler)
    if verbose:
        return
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if not sys.stderr.isatty():
        # The bars of the libraries would fill a log file with carriage returns.
        os.environ.setdefault("TQDM_DISABLE", "1")


def _build_config(
    config_class: type, parser: ArgumentParser, options: Namespace, errors: tuple[type[Exception], ...]
) -> Any:
    known = {field.name for field in dataclasses.fields(config_class)}
    try:
        values = vars(parser.instantiate(options))
        return config_class(**{key: value for key, value in values.items() if key in known})
    except errors as error:
        raise UsageError(str(error)) from error


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
