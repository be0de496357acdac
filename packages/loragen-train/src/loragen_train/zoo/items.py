"""A task as a training of its adapter sees it: its samples as token ids, and what decides the adapter's weights."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loragen_infer.samples import Example, TokenizedExample, read_examples, tokenize_example
from loragen_infer.words import counted
from transformers import PreTrainedTokenizerBase

from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo import records

__all__ = ["AdapterTask", "hash_samples", "mean_length", "tokenize_samples", "tokenize_task"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdapterTask:
    """What one adapter is trained on."""

    name: str
    """Name of the task."""
    folder: Path
    """Where the adapter goes."""
    train: list[TokenizedExample]
    """The samples to train on."""
    test: list[TokenizedExample]
    """Those to judge it by; none where that is not asked for."""
    decided_by: dict[str, Any]
    """The settings and the hash of the samples: a training is only continued under the same."""


def tokenize_task(
    task: CollectTask, config: CollectConfig, output_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> AdapterTask:
    """Return ``task`` with the samples that lie in ``output_dir``.

    Of a task that only lends its samples there are none to judge it by, and those without a response, which an imported
    task may have, are passed over.

    Raises:
        LoragenTrainError: A sample is too long, or all of them are and were to be left out, or none has a response.
        LoragenInferError: A file cannot be read, or a sample of a task that gets an adapter has no response.
    """
    train_file, test_file = (output_dir / part / f"{task.name}.jsonl" for part in ("train", "test"))
    return AdapterTask(
        name=task.name,
        folder=output_dir / "adapters" / task.name,
        train=_tokenize(train_file, config, tokenizer, need_response=task.wants_adapter),
        test=_tokenize(test_file, config, tokenizer) if task.wants_adapter else [],
        decided_by={
            "settings": records.task_settings(config, task),
            "samples_sha256": hash_samples(task, output_dir),
        },
    )


def mean_length(items: Sequence[TokenizedExample]) -> float:
    """Return how many tokens the samples have on the mean."""
    return sum(len(item.input_ids) for item in items) / len(items)


def hash_samples(task: CollectTask, output_dir: Path) -> str:
    """Return the SHA-256 of the samples that ``task`` is trained on, as they lie in ``output_dir``."""
    return hashlib.sha256((output_dir / "train" / f"{task.name}.jsonl").read_bytes()).hexdigest()


def _tokenize(
    file: Path, config: CollectConfig, tokenizer: PreTrainedTokenizerBase, *, need_response: bool = True
) -> list[TokenizedExample]:
    training = config.training
    rows = read_examples(file, need_response=need_response)
    samples = {f"{file}, row {number}": row for number, row in enumerate(rows, start=1) if row.response.strip()}
    if not samples:
        raise LoragenTrainError(f"{file} has no sample with a response.")
    if len(samples) < len(rows):
        logger.warning(
            "%s: %d of %d samples have no response and are passed over.", file, len(rows) - len(samples), len(rows)
        )
    items = tokenize_samples(
        samples,
        tokenizer,
        max_length=training.max_length,
        too_long=training.too_long,
        source=str(file),
        section="training.",
    )
    if not items:
        raise LoragenTrainError(
            f"{file} has no sample of at most {training.max_length} tokens; raise training.max_length."
        )
    return [item for _, item in items.values()]


def tokenize_samples(
    samples: Mapping[str, Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    too_long: Literal["error", "drop", "truncate"],
    source: str,
    section: str,
) -> dict[str, tuple[Example, TokenizedExample]]:
    """Return the samples, by where each stands, as text and as token ids; those that are too long as ``too_long`` says.

    Args:
        samples: The samples by where they stand, which errors name.
        tokenizer: The language model's.
        max_length: Most tokens of a sample.
        too_long: What becomes of a longer one: an error, it is left out, or its prompt loses its end.
        source: What all of them are called in a warning.
        section: The section of the configuration that has both options, with its dot.

    Raises:
        LoragenTrainError: A sample is too long, or its response is, so that no prompt has room.
    """
    items, num_changed = {}, 0
    for where, sample in samples.items():
        item = tokenize_example(tokenizer, sample)
        if len(item.input_ids) > max_length:
            num_changed += 1
            if too_long == "error":
                raise LoragenTrainError(
                    f"{where} has {len(item.input_ids)} tokens, over {section}max_length, which is {max_length}; raise "
                    f"it, or set {section}too_long to drop or truncate."
                )
            if too_long == "drop":
                continue
            sample, item = _truncate(sample, item, tokenizer, where, max_length=max_length, section=section)
        items[where] = sample, item
    if num_changed:
        done = "left out" if too_long == "drop" else "cut off"
        logger.warning("%s: %s over %smax_length %s.", source, counted(num_changed, "sample"), section, done)
    return items


def _truncate(
    sample: Example,
    item: TokenizedExample,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    max_length: int,
    section: str,
) -> tuple[Example, TokenizedExample]:
    """Shorten the prompt at its end, where what is asked stands less often than at its start."""
    prompt_ids = tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    while len(item.input_ids) > max_length:
        # Cut text may become more tokens than it was in the whole; so once may not do.
        prompt_ids = prompt_ids[: len(prompt_ids) - (len(item.input_ids) - max_length)]
        prompt = str(tokenizer.decode(prompt_ids, skip_special_tokens=True))
        if not prompt.strip():
            raise LoragenTrainError(
                f"{where} leaves no room for a prompt within {max_length} tokens; raise {section}max_length."
            )
        sample = replace(sample, prompt=prompt)
        item = tokenize_example(tokenizer, sample)
    return sample, item
