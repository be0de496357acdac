"""Lets a language model read once, with each adapter, what the prompts of the adapter's samples begin with."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.likelihood import read_tokens
from loragen_infer.samples import TokenizedExample, num_common_tokens

__all__ = ["num_read_once", "reading_once"]


# Tokens; what reading apart takes beside its own tokens (two CPU cores, a model of 135 M parameters, with gradients).
_PASS = 180


def num_read_once(samples: Sequence[Sequence[TokenizedExample]]) -> list[int]:
    """Return of each adapter's samples how many tokens their prompts begin with that are read once for all of them.

    What all tasks share (a chat template), and of what those of one task do (an instruction) as much as spares most,
    padding counted. All are 0 where nothing is spared, or where one adapter's prompts begin with nothing in common: a
    row of no tokens cannot be read beside others.
    """
    # The last token of a prompt, which predicts the response, is each sample's own.
    prompts = [[item.input_ids[: item.num_prompt_tokens][:-1] for item in of_adapter] for of_adapter in samples]
    common = [num_common_tokens(of_adapter) for of_adapter in prompts]
    longest = [max((len(item.input_ids) for item in of_adapter), default=0) for of_adapter in samples]
    num_samples = sum(map(len, samples))

    def num_computed(most: int) -> int:
        """How many tokens pass through the model where no beginning is longer than ``most``."""
        rests = (length - min(number, most) for length, number in zip(longest, common, strict=True))
        return num_samples * max(rests, default=0) + (len(samples) * min(most, max(common)) + _PASS if most else 0)

    best = min([0, *sorted(set(common))] if all(common) else [0], key=num_computed)
    return [min(number, best) for number in common]


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
        dropout: Probability of zeroing an input of A, as ``lora_dropout``.
        is_shared: Whether to read beginnings once; or else each sample reads all of it.
    """

    def applied(num_samples: Sequence[int]) -> AbstractContextManager[None]:
        if adapters is None:
            return nullcontext()
        return batched.applied(adapters, num_samples=num_samples, dropout=dropout)

    numbers = num_read_once(samples) if is_shared else [0] * len(samples)
    read = None
    if any(numbers):
        beginnings = [of_adapter[0].input_ids[:number] for of_adapter, number in zip(samples, numbers, strict=True)]
        with applied([1] * len(samples)):
            read = read_tokens(model, beginnings, padding=padding)
    if read is not None:
        read = read.rows([place for place, of_adapter in enumerate(samples) for _ in of_adapter])
    with applied([len(of_adapter) for of_adapter in samples]):
        yield {"items": [item for of_adapter in samples for item in of_adapter], "padding": padding, "after": read}
