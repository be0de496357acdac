"""Cuts the batches of several adapters into passes through the language model that a device has the memory for."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Pass", "passes"]


class Pass(NamedTuple):
    """Samples that go through the model together, by the adapter that they are for."""

    adapters: list[int]
    """The adapters, each once, in ascending order."""
    rows: list[list[int]]
    """For each of them, which samples of its batch."""


def passes(lengths: Sequence[Sequence[int]], max_tokens: int) -> list[Pass]:
    """Return passes of at most ``max_tokens`` tokens, padding included, that have every sample once.

    Adapters of like length stand together, and each is in one pass with its whole batch where that fits; the samples of
    one that does not are cut up by length. A sample longer than ``max_tokens`` is a pass of its own.

    Args:
        lengths: Of every adapter's batch, the length of each sample in tokens.
        max_tokens: Number of samples times the longest one.
    """
    found: list[Pass] = []
    adapters: list[int] = []
    num_rows = longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -max(lengths[index])):
        batch = lengths[index]
        if len(batch) * max(batch) > max_tokens:
            found += [Pass(adapters=[index], rows=[rows]) for rows in _cut(batch, max_tokens)]
            continue
        if adapters and (num_rows + len(batch)) * longest > max_tokens:
            found.append(_whole(adapters, lengths))
            adapters, num_rows = [], 0
        # The first of a pass is its longest.
        longest = longest if adapters else max(batch)
        adapters.append(index)
        num_rows += len(batch)
    return [*found, _whole(adapters, lengths)] if adapters else found


def _whole(adapters: list[int], lengths: Sequence[Sequence[int]]) -> Pass:
    ordered = sorted(adapters)
    return Pass(adapters=ordered, rows=[list(range(len(lengths[index]))) for index in ordered])


def _cut(batch: Sequence[int], max_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for row in sorted(range(len(batch)), key=lambda row: -batch[row]):
        # The first of a part is its longest.
        if parts and (len(parts[-1]) + 1) * batch[parts[-1][0]] <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts
