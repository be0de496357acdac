"""Lets a language model read once, with each adapter, what the prompts of the adapter's samples begin with."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.likelihood import read_tokens
from loragen_infer.samples import TokenizedExample, num_common_tokens

__all__ = ["KEPT_PER_TOKEN", "Batch", "num_read_once", "num_tokens", "reading_once"]

# Tokens; what reading apart takes beside its own tokens (two CPU cores, a model of 135 M parameters, with gradients).
_PASS = 180
KEPT_PER_TOKEN = 4
"""As many tokens whose keys and values a sample goes on from count as one that passes through the model."""


class Batch(NamedTuple):
    """Samples that are read with one adapter, by their numbers of tokens."""

    num_samples: int
    longest: int
    """Tokens of the longest sample."""
    num_common: int = 0
    """Tokens that all prompts begin with, and that may be read once."""

    @classmethod
    def of(cls, samples: Sequence[TokenizedExample]) -> "Batch":
        """Measure ``samples``."""
        # The last token of a prompt, which predicts the response, is each sample's own.
        prompts = [item.input_ids[: item.num_prompt_tokens][:-1] for item in samples]
        longest = max((len(item.input_ids) for item in samples), default=0)
        return cls(num_samples=len(samples), longest=longest, num_common=num_common_tokens(prompts))


def num_read_once(batches: Sequence[Batch]) -> list[int]:
    """Return of each adapter's batch how many tokens the prompts begin with that are read once for all of them.

    What all tasks share (a chat template), and of what those of one task do (an instruction) as much as spares most,
    padding counted. All are 0 where less is spared than another pass through the model takes, or where one adapter's
    prompts begin with nothing in common: a row of no tokens cannot be read beside others.
    """
    if not batches or not all(batch.num_common for batch in batches):
        return [0] * len(batches)
    # The samples that have most of their own are what all are padded to; whoever reads more once than brings it there
    # only makes the other beginnings longer, by padding.
    most = max(batch.longest for batch in batches) - max(batch.longest - batch.num_common for batch in batches)
    num_spared = (sum(batch.num_samples for batch in batches) - len(batches)) * most
    return [min(batch.num_common, most) if num_spared > _PASS else 0 for batch in batches]


def num_tokens(batches: Sequence[Batch]) -> int:
    """Return for how many tokens reading all batches together takes the memory, padding included."""
    numbers = num_read_once(batches)
    num_samples = sum(batch.num_samples for batch in batches)
    rest = max((batch.longest - number for batch, number in zip(batches, numbers, strict=True)), default=0)
    # Every sample has a copy of what was read for it.
    num_kept = num_samples * max((batch.longest for batch in batches), default=0)
    return max(num_samples * rest + len(batches) * max(numbers, default=0), -(-num_kept // KEPT_PER_TOKEN))


@contextmanager
def reading_once(
    model: Any,
    batched: BatchedLora,
    adapters: AdapterStack | None,
    samples: Sequence[Sequence[TokenizedExample]],
    *,
    padding: int = 0,
    dropout: float = 0.0,
    is_shared: bool = True,
) -> Iterator[dict[str, Any]]:
    """Read the beginnings, and yield what ``response_nll`` and ``response_logits`` take beside the model for the rest.

    Their forward pass belongs into the block, in which the adapters are applied; gradients pass through both.

    Args:
        model: A causal language model.
        batched: The adapters' places in it.
        adapters: The adapters; None: the model alone reads all.
        samples: The samples of each adapter.
        padding: Token id that shorter sequences are filled up with.
        dropout: Probability of zeroing an input of A, as ``lora_dropout``. Each sample draws its own zeros, so with any
            nothing is read once.
        is_shared: Whether to read beginnings once; or else each sample reads all of it.
    """

    def applied(num_samples: Sequence[int]) -> AbstractContextManager[None]:
        if adapters is None:
            return nullcontext()
        return batched.applied(adapters, num_samples=num_samples, dropout=dropout)

    numbers = num_read_once([Batch.of(of_adapter) for of_adapter in samples]) if is_shared and not dropout else []
    read = None
    if any(numbers):
        beginnings = [of_adapter[0].input_ids[:number] for of_adapter, number in zip(samples, numbers, strict=True)]
        with applied([1] * len(samples)):
            read = read_tokens(model, beginnings, padding=padding)
    if read is not None:
        read = read.rows([place for place, of_adapter in enumerate(samples) for _ in of_adapter])
    with applied([len(of_adapter) for of_adapter in samples]):
        yield {"items": [item for of_adapter in samples for item in of_adapter], "padding": padding, "after": read}
