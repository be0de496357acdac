"""What both command lines share: one-sentence errors, exit codes, checked YAML keys, logging.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Imports nothing heavy, so that ``--help`` is fast.
"""

import dataclasses
import difflib
import logging
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

__all__ = ["CommandParser", "build_config", "nearest", "run_command"]

ConfigT = TypeVar("ConfigT")


class UsageError(Exception):
    """The command line or a configuration file is wrong; exit code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name most like ``name``, or nothing.

    Example:
        >>> nearest("bacth_size", ["batch_size", "seed"])
        "; did you mean 'batch_size'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class CommandParser(ArgumentParser):
    """An argument parser whose errors are one sentence on standard error.

    Args:
        config_class: A dataclass whose fields become ``--key`` and ``--section.key`` options and the keys of the YAML
            files given with ``--config`` (repeatable; the later file wins, and options win over files).
    """

    def __init__(self, *args: Any, config_class: type | None = None, **kwargs: Any) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(*args, **kwargs)
        self.config_class = config_class
        if config_class is not None:
            self.add_argument("--config", action=_CheckedConfigFile, help="A YAML file with the options below.")
            self.add_class_arguments(config_class)
        self.add_argument("--verbose", action="store_true", help="Show debug messages, and tracebacks of errors.")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print ``message`` as one sentence and exit with code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        sentence = re.sub(r"\s+", " ", message).strip().replace("Parser key ", "")
        sentence = re.sub(r"<class '(\w+)'>", r"\1", sentence)
        unknown = re.search(r"(?:does not accept option|[Uu]nrecognized arguments:?) '?-*([\w.-]+)", sentence)
        if unknown:
            options = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
            sentence = sentence.rstrip(".") + nearest(unknown[1], options)
        # A usage dump would bury the sentence; --help has it.
        self.exit(2, f"{prog}: error: {sentence} (see {prog} --help)\n")


class _CheckedConfigFile(ActionConfigFile):
    """Names an unknown key of a YAML file with the nearest known one before the parser sees the file."""

    def __call__(
        self, parser: CommandParser, cfg: Namespace, values: str, option_string: str | None = None
    ) -> None:
        path = Path(values)
        if not path.is_file():
            parser.error(f"--config {values}: there is no such file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            parser.error(f"{path} is not valid YAML: {error}")
        if not isinstance(content, dict):
            parser.error(f"{path} must hold 'key: value' lines, but holds {type(content).__name__}")
        try:
            _check_keys(content, parser.config_class, path, "")
        except UsageError as error:
            parser.error(str(error))
        super().__call__(parser, cfg, values, option_string)


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


def build_config(parser: CommandParser, config_class: type[ConfigT], arguments: Namespace) -> ConfigT:
    """Return the config that the parsed ``arguments`` of ``parser`` describe.

    Raises:
        UsageError: A value that the config refuses.
    """
    known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]  # a dataclass type
    try:
        values = parser.instantiate(arguments)
        return config_class(**{key: value for key, value in values.items(branches=True) if key in known})
    except tuple(_user_errors()) as error:
        raise UsageError(str(error)) from error


def run_command(prog: str, command: Callable[[], None], *, verbose: bool) -> int:
    """Run ``command`` and return the exit code, turning the packages' own errors into one sentence each.

    With ``verbose`` the errors are raised instead, so that a traceback shows where they come from.
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "filelock", "urllib3", "matplotlib", "sentence_transformers", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        command()
    except KeyboardInterrupt:
        _say(f"{prog}: interrupted; run the same command again to go on.")
        return 130
    except UsageError as error:
        _say(f"{prog}: error: {error}")
        return 2
    except tuple(_user_errors()) as error:
        if verbose:
            logging.getLogger(prog).exception("The traceback of the error below:")
        _say(f"{prog}: error: {error}")
        return 1
    return 0


def _user_errors() -> Sequence[type[Exception]]:
    """The exception bases of the packages that are loaded; an error of another kind is a defect and stays raw."""
    bases = {
        "hyperconv": "HyperConvError",
        "lora_tokenizer": "LoraTokenizerError",
        "loragen_infer.errors": "LoragenInferError",
        "loragen_train.errors": "LoragenTrainError",
    }
    return [getattr(sys.modules[module], name) for module, name in bases.items() if module in sys.modules]


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
