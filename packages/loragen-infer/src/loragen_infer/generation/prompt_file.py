"""What is asked of the generator: one request per adapter, read from options and prompt files one at a time.

A request's id becomes a file name, so ids are plain names; a file is read twice, first to find every mistake in it
before any work is done, then to do the work, and is never held whole.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from loragen_infer.errors import LoragenInferError
from loragen_infer.samples import PROMPT_COLUMNS, iter_jsonl, iter_lines

__all__ = ["PromptFile", "Request", "opened_prompt_file", "request_of", "settings_of"]

# After a byte order mark, if there is one: of JSON lines, or of a list of objects.
_JSON_BEGINS = re.compile(rb"(\xef\xbb\xbf)?\s*(\[\s*)?\{")
_SAFE_ID = re.compile(r"(?!manifest\.jsonl$)[A-Za-z0-9_]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One adapter to generate."""

    id: str
    """Its name: a file name without folders."""
    prompts: tuple[str, ...]
    """Descriptions of one task, at least one."""

    def fingerprint(self, generator: str, settings: Sequence[str]) -> str:
        """Return sixteen hexadecimal digits over the prompts, in order, the ``generator`` and the ``settings``."""
        content = json.dumps([list(self.prompts), generator, list(settings)])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def settings_of(*, kind: str, scale: float, base_model: str | None, omit_prompts: bool) -> list[str]:
    """Return what a request's fingerprint covers besides prompts and generator, for a file or folder of form ``kind``.

    Whoever makes an adapter with the same settings finds it under the same fingerprint.
    """
    return [kind, repr(float(scale)), base_model or "", str(omit_prompts)]


class PromptFile:
    """The requests in a text, JSON or JSON-lines file.

    In a text file every line with text is a prompt. In a JSON-lines file a line is an object with ``prompts`` (a list)
    or ``prompt`` (or ``question``, ``instruction``, ``text``), and maybe an ``id``; without one the id is the number of
    the line, six digits long. A JSON file is a list of such objects.
    """

    def __init__(self, stream: BinaryIO, *, name: str, is_json: bool) -> None:
        self._stream, self._name, self._is_json = stream, name, is_json

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests in order; what is wrong with a line is said with its number."""
        seen: set[str] = set()
        for number, row in self._rows():
            where = f"{self._name}, line {number}"
            request = request_of(row, number, where)
            key = request.id.casefold()  # case does not tell files apart everywhere
            if key in seen:
                raise LoragenInferError(f"{where}: the id {request.id!r} is there twice; give every line its own.")
            seen.add(key)
            yield request
        if not seen:
            raise LoragenInferError(f"{self._name} is empty; it needs one prompt per line.")

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self._stream.seek(0)
        if self._is_json:
            return iter_jsonl(self._stream, self._name)
        return ((number, {"prompt": line}) for number, line in iter_lines(self._stream, self._name))


@contextmanager
def opened_prompt_file(path: str) -> Iterator[PromptFile]:
    """Yield the prompt file at ``path``; ``-`` is standard input.

    That and a pipe, whose name says nothing, are JSON if they begin as a JSON object or a list of such does.
    """
    is_stdin = path == "-"
    with ExitStack() as stack:
        try:
            stream: BinaryIO = sys.stdin.buffer if is_stdin else stack.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise LoragenInferError(
                f"The prompt file {path} cannot be read: {error.strerror}; give a .txt, .jsonl or .json file."
            ) from error
        suffix = Path(path).suffix.lower()
        is_json = suffix in (".json", ".jsonl")
        if is_stdin or not stream.seekable():  # it is kept on disk meanwhile, so that it can be read twice
            spool = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, spool)
            stream = spool
            if not suffix:
                stream.seek(0)
                is_json = _JSON_BEGINS.match(stream.read(4096)) is not None
        yield PromptFile(stream, name="standard input" if is_stdin else path, is_json=is_json)


def request_of(row: dict[str, Any], number: int, where: str) -> Request:
    """Return the request in a row, whose id is ``number`` where it has none; errors call the row ``where``."""
    return Request(id=_id(row, number, where), prompts=_prompts(row, where))


def _id(row: dict[str, Any], number: int, where: str) -> str:
    value = row.get("id")
    if value is None:
        return f"{number:06d}"
    if type(value) not in (str, int) or not _SAFE_ID.fullmatch(str(value)):
        raise LoragenInferError(
            f"{where}: the id {_shorten(value)} cannot be a file name; use up to 100 letters, digits, '-', '_' and "
            "'.', beginning with a letter, digit or '_'."
        )
    return str(value)


def _prompts(row: dict[str, Any], where: str) -> tuple[str, ...]:
    column = next((name for name in ("prompts", *PROMPT_COLUMNS) if name in row), None)
    if column is None:
        raise LoragenInferError(
            f"{where} has the fields {_shorten(list(row))}, but none of prompts, {', '.join(PROMPT_COLUMNS)}."
        )
    prompts = row[column] if column == "prompts" else [row[column]]
    if not isinstance(prompts, list) or not prompts:
        raise LoragenInferError(f"{where}: 'prompts' is {_shorten(prompts)}, but must be a list of at least one text.")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise LoragenInferError(f"{where}: {column!r} holds {_shorten(prompt)}, but must be text.")
        if "\0" in prompt or any("\ud800" <= character <= "\udfff" for character in prompt):
            raise LoragenInferError(f"{where}: {column!r} holds a zero byte or half a character; mend it.")
    return tuple(prompts)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
