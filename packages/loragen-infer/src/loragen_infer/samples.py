"""Prompt/response examples on disk, and how a causal language model sees them.

Collecting (training on the responses) and evaluating (scoring them) share this module, so a score is of the very
sequence that was trained.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TUNE_FOLDS",
    "TUNE_LEARNING_RATE",
    "TUNE_STEPS",
    "Example",
    "TokenizedExample",
    "example_of",
    "iter_jsonl",
    "iter_lines",
    "json_object",
    "num_common_tokens",
    "prompt_hash",
    "read_examples",
    "read_jsonl",
    "shared_beginnings",
    "tokenize_example",
]

PROMPT_COLUMNS = ("prompt", "question", "instruction", "text")
TUNE_STEPS = 16
"""Most gradient steps on a few samples, by default."""
TUNE_FOLDS = 4
"""Parts of the samples that are left out one after another to decide how many steps are taken, by default."""
TUNE_LEARNING_RATE = 1e-3
"""Learning rate of the first of them, by default."""
# Sequences that branch more often than this on their way are read as if they branched here for the last time.
_MAX_LEVELS = 100
_HALF = re.compile("[\ud800-\udfff]")
RESPONSE_COLUMNS = ("response", "answer", "output", "completion")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample of a task."""

    prompt: str
    """What the language model is asked."""
    response: str
    """What it should answer; empty where a file has prompts only."""


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """An example as token ids; the first ``num_prompt_tokens`` of ``input_ids`` are the prompt."""

    input_ids: list[int]
    num_prompt_tokens: int

    @property
    def response_ids(self) -> list[int]:
        """The tokens of the response, with what ends it."""
        return self.input_ids[self.num_prompt_tokens :]


def iter_lines(stream: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of every line that has text, one at a time, without white space around it."""
    # Bytes are split at newlines only; text would also split at characters that JSON holds as they are, such as U+2028.
    for number, line in enumerate(stream, start=1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            place = f"byte {error.start + 1}: 0x{line[error.start]:02x}"
            raise LoragenInferError(f"{where} is not UTF-8 text ({place}); give a text file.") from error
        if "\0" in text:
            raise LoragenInferError(f"{where} holds a zero byte, so it is no text; give a text file.")
        if text:
            yield number, text


def iter_jsonl(stream: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file, one at a time, each with its line's number; or those of one JSON list."""
    lines = iter_lines(stream, name)
    number, line = next(lines, (0, ""))
    if line.startswith("["):
        rows = _parse_json("\n".join([line, *(text for _, text in lines)]), name)
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise LoragenInferError(f"{name} must be a list of at least one JSON object with fields.")
        yield from enumerate(rows, start=1)
        return
    while line:
        yield number, json_object(line, f"{name}, line {number}")
        number, line = next(lines, (0, ""))


def json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object that ``text`` is; errors call it ``where``."""
    row = _parse_json(text, where)
    if not isinstance(row, dict):
        raise LoragenInferError(f"{where} is {type(row).__name__}, not a JSON object with fields.")
    return row


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoragenInferError(f"{where} is not JSON: {error}.") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file (or of one JSON list), in order; there must be one at least."""
    try:
        with Path(path).open("rb") as stream:
            rows = [row for _, row in iter_jsonl(stream, str(path))]
    except (FileNotFoundError, IsADirectoryError) as error:
        raise LoragenInferError(f"{path} is not a file; give a .jsonl file.") from error
    except OSError as error:
        raise LoragenInferError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not rows:
        raise LoragenInferError(f"{path} is empty; it needs one JSON object a line.")
    return rows


def read_examples(path: Path, *, need_response: bool = True) -> list[Example]:
    """Return the samples of a JSON or JSONL file that has one of the usual column names."""
    return [
        example_of(row, f"{path}, row {number}", need_response=need_response)
        for number, row in enumerate(read_jsonl(path), start=1)
    ]


def example_of(
    row: Mapping[str, Any],
    where: str,
    *,
    prompt_column: str | None = None,
    response_column: str | None = None,
    need_response: bool = True,
) -> Example:
    """Return the sample in ``row``, from the named columns or the first of the usual ones that it has.

    Of a list of accepted responses the first counts. Without ``need_response`` the response may be missing or no text,
    and is then empty, unless its column is named. Errors call the row ``where``.
    """
    prompt = _text(row, PROMPT_COLUMNS if prompt_column is None else (prompt_column,), where)
    columns = RESPONSE_COLUMNS if response_column is None else (response_column,)
    row = {**row, **{name: row[name][0] for name in columns if isinstance(row.get(name), list) and row[name]}}
    if need_response or response_column is not None:
        return Example(prompt=prompt, response=_text(row, columns, where))
    column = next((name for name in columns if name in row), None)
    response = row[column] if column is not None and isinstance(row[column], str) else ""
    _refuse_half(response, column, where)
    return Example(prompt=prompt, response=response)


def _text(row: Mapping[str, Any], columns: Sequence[str], where: str) -> str:
    column = next((name for name in columns if name in row), None)
    if column is None:
        raise LoragenInferError(
            f"{where} has the columns {', '.join(map(str, row)) or '(none)'}, but none of {', '.join(columns)}; rename "
            "one, or name it where that can be chosen (prompt_column, response_column)."
        )
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise LoragenInferError(f"{where}: {column!r} is {value!r}, but must be text.")
    _refuse_half(value, column, where)
    return value


def _refuse_half(text: str, column: str | None, where: str) -> None:
    """Refuse what cannot be written as UTF-8."""
    if _HALF.search(text):
        raise LoragenInferError(f"{where}: {column!r} holds half a character (a lone surrogate); mend it.")


def tokenize_example(
    tokenizer: "PreTrainedTokenizerBase",
    example: Example,
    *,
    max_length: int | None = None,
    shots: Sequence[Example] = (),
) -> TokenizedExample:
    """Return the token ids of prompt and response, the response closed by what ends an answer.

    The prompt goes through the tokenizer's chat template as one user turn, and an answer ends as the template ends the
    assistant's turn. A tokenizer without a template gets the prompt, a newline and the response as one text, closed by
    the end-of-sequence token. Solved examples given as ``shots`` come before the prompt and belong to it: as turns of
    user and assistant, or each with its response and a blank line. More than ``max_length`` tokens are an error.
    """
    if tokenizer.chat_template is not None:
        turns = [(role, text) for shot in shots for role, text in (("user", shot.prompt), ("assistant", shot.response))]
        turns.append(("user", example.prompt))
        messages = [{"role": role, "content": text} for role, text in turns]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        response_ids = tokenizer(example.response, add_special_tokens=False)["input_ids"]
        input_ids = [*prompt_ids, *response_ids, *_turn_end(tokenizer, str(tokenizer.chat_template))]
        num_prompt_tokens = len(prompt_ids)
    else:
        prompt = "".join(f"{shot.prompt}\n{shot.response}\n\n" for shot in shots) + example.prompt + "\n"
        prompt_ids = tokenizer(prompt)["input_ids"]
        input_ids = list(tokenizer(prompt + example.response)["input_ids"])
        if tokenizer.eos_token_id is not None and input_ids[-1] != tokenizer.eos_token_id:
            input_ids.append(tokenizer.eos_token_id)
        # A token with the end of the prompt and the start of the response in it is the response's.
        num_prompt_tokens = num_common_tokens([prompt_ids, input_ids])
    if max_length is not None and len(input_ids) > max_length:
        raise LoragenInferError(
            f"A sample has {len(input_ids)} tokens, over max_length={max_length}: {example.prompt[:60]!r}…; raise "
            "max_length or drop the sample."
        )
    return TokenizedExample(input_ids=input_ids, num_prompt_tokens=num_prompt_tokens)


@functools.lru_cache(maxsize=4)
def _turn_end(tokenizer: "PreTrainedTokenizerBase", _template: str) -> tuple[int, ...]:
    """What the chat template writes after an answer, up to its first special token; else the end-of-sequence token.

    What follows that token (a newline, or the end of the whole conversation) is nothing a model has to say.
    """
    from jinja2 import TemplateError

    answer = "loragen-answer"  # without white space, which some templates strip
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False)).rpartition(answer)[2].rstrip()
    except TemplateError:  # a template for prompts only
        text = ""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    specials = [place for place, token in enumerate(ids) if token in tokenizer.added_tokens_decoder]
    end = ids[: specials[0] + 1] if specials else ids
    return tuple(end) or (() if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),))


def num_common_tokens(sequences: Iterable[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with."""
    return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def shared_beginnings(sequences: Sequence[Sequence[int]], *, num_common: int = 0) -> list[tuple[int, list[int]]]:
    """Return groups of sequences that begin alike, each with how many tokens: those that spare most of all reading.

    A group's beginning is read once for all that are in it. All sequences begin with the same ``num_common`` tokens,
    which count for nothing; what shares no more with another is in no group. No sequence is in two.
    """
    order = sorted(range(len(sequences)), key=lambda index: list(sequences[index]))
    common = [num_common_tokens([sequences[one], sequences[other]]) for one, other in itertools.pairwise(order)]

    def best(start: int, end: int, level: int) -> tuple[int, list[tuple[int, list[int]]]]:
        """How many tokens need not be read of the sequences from ``start`` to ``end`` of the order, and the groups."""
        if end - start < 2:
            return 0, []
        depth = min(common[start : end - 1])
        whole = (end - start - 1) * (depth - num_common), [(depth, order[start:end])]
        if level == _MAX_LEVELS:
            return whole
        cuts = [start, *(place + 1 for place in range(start, end - 1) if common[place] == depth), end]
        parts = [best(first, last, level + 1) for first, last in itertools.pairwise(cuts)]
        spared = sum(part[0] for part in parts)
        return max(whole, (spared, [group for part in parts for group in part[1]]), key=lambda found: found[0])

    return [group for group in best(0, len(order), 0)[1] if group[0] > num_common]


def prompt_hash(prompt: str) -> str:
    """Return 16 hexadecimal digits (BLAKE2b, 64 bits) that tell a sample's prompt again, whatever its white space."""
    return hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=8).hexdigest()
