"""What a language model and adapters on it answer to the same prompts, side by side.

Decoding is greedy, so the same question gets the same answer twice. Prompts are read, and answers end, as in training
and evaluation; where a file has responses, their likelihood under each model is given beside what it answers.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lora_tokenizer import LoraAdapter, LoraTokenizerError, read_adapter

from loragen_infer.errors import LoragenInferError
from loragen_infer.models.locate import is_same_model
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import Example, iter_lines, read_examples, tokenize_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BASE", "Answer", "ComparedPrompt", "Comparison", "compare", "format_comparison", "read_prompts"]

BASE = "base"
"""What the model without an adapter is called."""
_BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model says to one prompt."""

    text: str
    is_complete: bool
    """Whether it ended by itself, and not because it had no more tokens."""
    nll: float | None
    """Mean negative log-likelihood per token of the response that the file has, in nats."""


@dataclass(frozen=True, kw_only=True)
class ComparedPrompt:
    """One prompt with the answers of all models to it."""

    prompt: str
    response: str | None
    """What the file says that the answer should be."""
    answers: dict[str, Answer]
    """By model: ``base``, and the adapters by their folders."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The answers to all prompts."""

    base_model: str
    prompts: list[ComparedPrompt]

    def mean_nll(self) -> dict[str, float]:
        """By model, the mean of its likelihoods over the prompts with responses; empty where there are none."""
        known = [prompt.answers for prompt in self.prompts if prompt.response is not None]
        names = known[0] if known else ()
        return {name: fmean(answers[name].nll or 0.0 for answers in known) for name in names}


def read_prompts(path: Path) -> list[Example]:
    """Return the prompts of a text file (one per line) or a JSON/JSONL file, which may have responses.

    Raises:
        LoragenInferError: It cannot be read, or holds no prompt.
    """
    if path.suffix.lower() in (".json", ".jsonl"):
        return read_examples(path, need_response=False)
    try:
        with path.open("rb") as stream:
            prompts = [Example(prompt=line, response="") for _, line in iter_lines(stream, str(path))]
    except OSError as error:
        raise LoragenInferError(
            f"The prompts {path} cannot be read: {error.strerror}; give a .txt, .jsonl or .json file."
        ) from error
    if not prompts:
        raise LoragenInferError(f"{path} is empty; it needs one prompt per line.")
    return prompts


def compare(
    paths: Sequence[Path],
    examples: Sequence[Example],
    *,
    base_model: str | None = None,
    max_new_tokens: int = 64,
    device: str = "cpu",
    dtype: str | None = None,
) -> Comparison:
    """Let the base model and each adapter on it, one at a time, answer the prompts of ``examples``.

    Args:
        paths: PEFT folders, or single files with an adapter.
        examples: Prompts; a response that is not empty is scored.
        base_model: Name or place of the language model; None: the one that all adapters name.
        max_new_tokens: Longest answer.
        device: Torch device.
        dtype: What the language model computes in; None: its own.

    Raises:
        LoragenInferError: There is nothing to compare, an adapter cannot be read or does not fit, the base model is not
            known or differs, or a prompt leaves the model no room for an answer.
    """
    from loragen_infer.adapters.attach import adapter_attached
    from loragen_infer.models.base_model import load_base_model

    if max_new_tokens < 1:
        raise LoragenInferError(f"max_new_tokens is {max_new_tokens}, where a number from 1 belongs.")
    if not paths or not examples:
        raise LoragenInferError(f"There is no {'prompt' if paths else 'adapter'} to compare; give one at least.")
    try:
        adapters = dict(zip(_names(paths), map(read_adapter, paths), strict=True))
    except LoraTokenizerError as error:
        raise LoragenInferError(str(error)) from error
    name = base_model or _common_base_model(adapters)
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise LoragenInferError("Comparing needs peft; install it with: pip install 'loragen-infer[eval]'.") from error
    model, tokenizer = load_base_model(name, dtype=dtype, device=device)
    asked = _Scored(tokenizer, examples, max_new_tokens=max_new_tokens)
    asked.check_room(getattr(model.config, "max_position_embeddings", None))
    columns: dict[str, list[Answer]] = {}
    with ProgressBar("compare", total=len(adapters) + 1, unit="model") as bar:
        columns[BASE] = asked.answers_of(model)
        bar.advance()
        for column, adapter in adapters.items():
            with _named(column), adapter_attached(model, adapter) as adapted:
                columns[column] = asked.answers_of(adapted)
            bar.advance()
    prompts = [
        ComparedPrompt(
            prompt=example.prompt,
            response=example.response or None,
            answers={column: answers[index] for column, answers in columns.items()},
        )
        for index, example in enumerate(examples)
    ]
    return Comparison(base_model=name, prompts=prompts)


def format_comparison(comparison: Comparison, *, width: int = 100) -> str:
    """Return the answers as plain text of about ``width`` columns, the models below each other under every prompt."""
    means = comparison.mean_nll()
    names = list(comparison.prompts[0].answers)
    labels = max(map(len, [*names, "expected"]))

    def lines(label: str, number: float | None, text: str) -> Iterator[str]:
        head = f"  {label.ljust(labels)}  " + (f"{'' if number is None else f'{number:.3f}':>6}  " if means else "")
        room = max(20, width - len(head))
        pieces = [piece for line in text.splitlines() for piece in textwrap.wrap(line, room) or [""]] or ["(nothing)"]
        yield from (
            start + piece for start, piece in zip([head, *[" " * len(head)] * len(pieces)], pieces, strict=False)
        )

    blocks = []
    for number, prompt in enumerate(comparison.prompts, start=1):
        block = textwrap.wrap(f"{number}. {' '.join(prompt.prompt.split())}", width, max_lines=4, placeholder=" …")
        if prompt.response is not None:
            block += lines("expected", None, prompt.response)
        for name, answer in prompt.answers.items():
            block += lines(name, answer.nll, answer.text + ("" if answer.is_complete else " …"))
        blocks.append("\n".join(block))
    if means:
        count = sum(prompt.response is not None for prompt in comparison.prompts)
        rows = [f"  {name.ljust(labels)}  {mean:6.3f}" for name, mean in means.items()]
        what = f"Mean NLL per token of the expected answers of {count} prompts (lower is better):"
        blocks.append("\n".join([what, *rows]))
    return "\n\n".join(blocks)


class _Scored:
    """Examples as token ids, to be asked of one model after another."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example], *, max_new_tokens: int
    ) -> None:
        from loragen_infer.answering import Questions

        prompts = [example.prompt for example in examples]
        self._questions = Questions(tokenizer, prompts, max_new_tokens=max_new_tokens)
        self._max_new_tokens = max_new_tokens
        self._scored = {
            index: tokenize_example(tokenizer, example) for index, example in enumerate(examples) if example.response
        }

    def check_room(self, max_tokens: int | None) -> None:
        """Refuse prompts and responses that are longer than the model takes."""
        longest = self._questions.longest + self._max_new_tokens
        longest = max([longest, *(len(item.input_ids) for item in self._scored.values())])
        if max_tokens is not None and longest > max_tokens:
            raise LoragenInferError(
                f"A prompt with its answer may have {longest} tokens, but the language model takes {max_tokens}; lower "
                "max_new_tokens (--max-new-tokens) or drop the prompt."
            )

    def answers_of(self, model: Any) -> list[Answer]:
        """Return what ``model`` answers, and how likely it holds the responses that there are."""
        import torch

        with torch.inference_mode():
            spoken, nll = list(self._questions.answers_of(model)), self._nll(model)
        return [
            Answer(text=text, is_complete=is_complete, nll=nll.get(index))
            for index, (text, is_complete) in enumerate(spoken)
        ]

    def _nll(self, model: Any) -> dict[int, float]:
        from loragen_infer.likelihood import response_nll

        found: dict[int, float] = {}
        places = list(self._scored)
        for start in range(0, len(places), _BATCH_SIZE):
            batch = places[start : start + _BATCH_SIZE]
            items = [self._scored[place] for place in batch]
            sums = response_nll(model, items, padding=self._questions.padding).tolist()
            found |= {
                place: total / len(item.response_ids) for place, item, total in zip(batch, items, sums, strict=True)
            }
        return found


def _names(paths: Sequence[Path]) -> list[str]:
    """What the adapters are called: the ends of their paths, as short as tells them apart."""
    places = [path.resolve().parts for path in paths]
    if len(set(places)) < len(places):
        raise LoragenInferError("An adapter is named twice; name each once.")
    for number in range(1, max(map(len, places)) + 1):
        names = [str(Path(*place[-number:])) for place in places]
        if len({BASE, *names}) > len(names):
            break
    return names


def _common_base_model(adapters: dict[str, LoraAdapter]) -> str:
    named = {column: adapter.config.base_model_name_or_path for column, adapter in adapters.items()}
    first, *others = named.values()
    if not first or not all(other and is_same_model(first, other) for other in others):
        said = ", ".join(f"{column}: {base or 'none'}" for column, base in named.items())
        raise LoragenInferError(f"The adapters do not name one base model ({said}); give it with --base-model.")
    return first


@contextmanager
def _named(column: str) -> Iterator[None]:
    """Say in an error of the block whose it is."""
    try:
        yield
    except LoragenInferError as error:
        raise LoragenInferError(f"{column}: {error}") from error
