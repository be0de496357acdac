"""Cuts the batches of several adapters into passes through the language model that a device has the memory for."""

from collections.abc import Sequence
from typing import NamedTuple

from loragen_infer.adapters.reading import Batch, num_tokens

__all__ = ["Pass", "passes"]


class Pass(NamedTuple):
    """Samples that go through the model together, by the adapter that they are for."""

    adapters: list[int]
    """The adapters, each once, in ascending order."""
    rows: list[list[int]]
    """For each of them, which samples of its batch."""


def passes(lengths: Sequence[Sequence[int]], max_tokens: int, *, num_common: Sequence[int] | None = None) -> list[Pass]:
    """Return passes of at most ``max_tokens`` tokens, padding included, that have every sample once.

    Adapters of like length stand together, and each is in one pass with its whole batch where that fits; the samples of
    one that does not are cut up by length. A sample longer than ``max_tokens`` is a pass of its own.

    Args:
        lengths: Of every adapter's batch, the length of each sample in tokens.
        max_tokens: Most tokens of a pass, as :func:`num_tokens` counts them; where nothing is read once, the number of
            samples times the longest one.
        num_common: Of every adapter's batch, how many tokens may be read once; by default none.
    """
    common = num_common or [0] * len(lengths)
    batches = [Batch(len(batch), max(batch), common[index]) for index, batch in enumerate(lengths)]
    found: list[Pass] = []
    adapters: list[int] = []
    for index in sorted(range(len(batches)), key=lambda index: batches[index].num_common - batches[index].longest):
        if num_tokens([batches[index]]) > max_tokens:
            rows = _cut(lengths[index], common[index], max_tokens)
            found += [Pass(adapters=[index], rows=[of_pass]) for of_pass in rows]
            continue
        if num_tokens([batches[other] for other in (*adapters, index)]) > max_tokens:
            found.append(_whole(adapters, lengths))
            adapters = []
        adapters.append(index)
    return [*found, _whole(adapters, lengths)] if adapters else found


def _whole(adapters: list[int], lengths: Sequence[Sequence[int]]) -> Pass:
    ordered = sorted(adapters)
    return Pass(adapters=ordered, rows=[list(range(len(lengths[index]))) for index in ordered])


def _cut(batch: Sequence[int], num_common: int, max_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for row in sorted(range(len(batch)), key=lambda row: -batch[row]):
        # The first of a part is its longest.
        if parts and num_tokens([Batch(len(parts[-1]) + 1, batch[parts[-1][0]], num_common)]) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
