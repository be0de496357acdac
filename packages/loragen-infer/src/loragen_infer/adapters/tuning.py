"""Goes on from adapters with a few gradient steps on solved samples of their tasks, many adapters at once.

Each adapter sees its own samples, has its own loss and its own clipping, so all at once give what one by one gives, to
rounding. How many steps are too many for a few samples is found by cross-validation. The language model stays frozen,
and is as it was afterwards. Whoever changes what comes out for the same samples and settings raises ``TUNING_VERSION``.

Legend: K adapters, B samples of all of them, F folds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lora_tokenizer import LoraAdapter
from lora_tokenizer.names import join_name
from torch import Tensor

from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.reading import reading_once
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.errors import LoragenInferError
from loragen_infer.likelihood import response_nll
from loragen_infer.samples import (
    TUNE_FOLDS,
    TUNE_LEARNING_RATE,
    TUNE_STEPS,
    Example,
    TokenizedExample,
    tokenize_example,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TUNING_VERSION", "TuneSettings", "Tuned", "tune", "tune_many"]

TUNING_VERSION = 1
"""Stands for the algorithm in the names of finished rows of an evaluation. Raise it with every change of what the same
adapter, samples and settings are tuned to beyond rounding (order of samples, optimizer, schedule, clipping, choice of
the number of steps, a default that ``evaluate`` does not set), or old rows are taken for new ones."""
_MAX_GRAD_NORM = 1.0
# What has been no better for so many steps, few samples do not make better.
_PATIENCE = 4


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How adapters are tuned."""

    num_steps: int = TUNE_STEPS
    """Most steps of AdamW on A and B."""
    num_folds: int = TUNE_FOLDS
    """Parts that an adapter's samples are divided into, no more than there are samples. Before the tuning itself each
    part is left out of one like it, and so many steps are taken then as made the parts left out likeliest, on the mean:
    none, if all of them harm. What four steps in a row do not better is not tried further, and of a part the first
    ``batch_size`` samples are judged. Fewer than 2 parts, or a single sample: all steps are taken."""
    learning_rate: float = TUNE_LEARNING_RATE
    """Of the first step; it falls towards zero, where it is after ``num_steps``, in a straight line."""
    batch_size: int = 8
    """Most samples of an adapter in a step; of more, every step takes the next of a random order."""
    seed: int = 0
    """Of that order, and of which samples are a part."""

    def __post_init__(self) -> None:
        if self.num_steps < 0 or self.num_folds < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise LoragenInferError(
                f"Tuning has num_steps={self.num_steps}, num_folds={self.num_folds}, batch_size={self.batch_size} and "
                f"learning_rate={self.learning_rate:g}; give 0 steps and folds or more, 1 sample or more, and a "
                "learning rate above 0."
            )


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning has made of an adapter."""

    adapter: LoraAdapter
    num_steps: int
    """The steps taken."""


def tune(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    adapter: LoraAdapter,
    samples: Sequence[Example],
    **settings: Any,
) -> LoraAdapter:
    """Return ``adapter`` after gradient steps on the responses of ``samples``; see :func:`tune_many`.

    Args:
        model: The language model that the adapter is of, without adapters.
        tokenizer: Its tokenizer.
        adapter: The adapter; it stays as it is.
        samples: Samples with responses.
        settings: Fields of :class:`TuneSettings`.

    Example:
        .. code-block:: python

            adapter = generator.generate(["What is 17 + 25?", "What is 3 + 88?"])
            samples = [Example(prompt="What is 2 + 9?", response="11"), Example(prompt="What is 4 + 4?", response="8")]
            adapter = tune(model, tokenizer, adapter, samples)
    """
    (tuned,) = tune_many(model, tokenizer, [adapter], [samples], TuneSettings(**settings))
    return tuned.adapter


def tune_many(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    adapters: Sequence[LoraAdapter],
    samples: Sequence[Sequence[Example]],
    settings: TuneSettings | None = None,
) -> list[Tuned]:
    """Return ``adapters`` after gradient steps, each on the responses of its own samples.

    Args:
        model: The language model that the adapters are of, without adapters.
        tokenizer: Its tokenizer.
        adapters: Adapters of the same modules.
        samples: For every adapter, samples with responses.
        settings: How; by default as `TuneSettings` says.

    Raises:
        LoragenInferError: There is no adapter, or another number of them than of lists of samples; an adapter does not
            fit the model or is more than two factors per linear layer (DoRA); there are no samples or one without a
            response, one is longer than the model takes, or the loss is not finite.
    """
    settings = settings or TuneSettings()
    if not adapters or len(samples) != len(adapters):
        raise LoragenInferError(
            f"There are samples of {len(samples)} tasks for {len(adapters)} adapters; give some for each."
        )
    items = [_tokenize(model, tokenizer, of_adapter) for of_adapter in samples]
    batched = BatchedLora(model, adapters[0].modules)
    try:
        num_steps = [
            _best_number(model, batched, adapter, of_adapter, settings)
            for adapter, of_adapter in zip(adapters, items, strict=True)
        ]
        adapters_K = AdapterStack.of([adapter.to(torch.float32) for adapter in adapters]).to(model.device)
        tuned: dict[int, LoraAdapter] = {}
        for step in _descend(model, batched, adapters_K, items, settings):
            for place, (adapter, wanted) in enumerate(zip(adapters, num_steps, strict=True)):
                if wanted == step:
                    # Without a step it is the adapter itself, whatever its dtype.
                    tuned[place] = _with_weights(adapter, adapters_K, place) if step else adapter
            if len(tuned) == len(adapters):
                break
    finally:
        batched.remove()
    return [Tuned(adapter=tuned[place], num_steps=wanted) for place, wanted in enumerate(num_steps)]


def _descend(
    model: "PreTrainedModel",
    batched: BatchedLora,
    adapters_K: AdapterStack,
    items: Sequence[Sequence[TokenizedExample]],
    settings: TuneSettings,
) -> Iterator[int]:
    """Change the weights of ``adapters_K`` step by step; yield 0 before the first, and then the number of each."""
    weights = [*adapters_K.a_Kri.values(), *adapters_K.b_Kor.values()]
    for weight in weights:
        weight.requires_grad_()
    batches = [_batches(of_adapter, settings.batch_size, settings.seed) for of_adapter in items]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, settings.num_steps))
    yield 0
    for step in range(1, settings.num_steps + 1):
        loss_K = _backward(model, batched, adapters_K, [next(batch) for batch in batches])
        if not loss_K.isfinite().all():
            raise LoragenInferError(
                f"The loss of tuning is {float(loss_K[~loss_K.isfinite()][0])} in step {step} of {settings.num_steps}; "
                f"lower the learning rate ({settings.learning_rate:g})."
            )
        _clip(weights)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise LoragenInferError(
                f"Tuning has made weights that are not finite; lower the learning rate ({settings.learning_rate:g})."
            )
        yield step


def _best_number(
    model: "PreTrainedModel",
    batched: BatchedLora,
    adapter: LoraAdapter,
    items: Sequence[TokenizedExample],
    settings: TuneSettings,
) -> int:
    """Return after how many steps samples that are left out are likeliest on the mean; of equal ones the fewest."""
    num_folds = min(settings.num_folds, len(items))
    if num_folds < 2 or not settings.num_steps:
        return settings.num_steps
    # In an order of chance, since files are sorted by kind.
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    left_out = [[items[place] for place in order[fold::num_folds]] for fold in range(num_folds)]
    others = [[item for of_fold in left_out if of_fold is not own for item in of_fold] for own in left_out]
    # No more samples pass at once than in a step of the tuning itself.
    at_once = max(1, settings.batch_size // min(settings.batch_size, max(map(len, others))))
    groups = [slice(first, first + at_once) for first in range(0, num_folds, at_once)]
    ways = [_left_out_nll(model, batched, adapter, others[group], left_out[group], settings) for group in groups]
    losses = list[float]()
    best = 0
    for step, of_groups in enumerate(zip(*ways, strict=True)):
        nll = [one for of_group in of_groups for one in of_group]
        losses.append(sum(nll) / len(nll))
        best = min(best, step, key=losses.__getitem__)
        if step - best == _PATIENCE:
            break
    return best


def _left_out_nll(
    model: "PreTrainedModel",
    batched: BatchedLora,
    adapter: LoraAdapter,
    others: Sequence[list[TokenizedExample]],
    left_out: Sequence[list[TokenizedExample]],
    settings: TuneSettings,
) -> Iterator[list[float]]:
    """Yield the NLL per token of samples left out, before and after each step of a copy of the adapter per fold."""
    adapters_F = AdapterStack.of([adapter.to(torch.float32)] * len(others)).to(model.device)
    # More of a fold than a step has the memory for say little more.
    judged = [of_fold[: settings.batch_size] for of_fold in left_out]
    flat = [item for of_fold in judged for item in of_fold]
    for _ in _descend(model, batched, adapters_F, others, settings):
        nll_B = _nll(model, batched, adapters_F, judged)
        yield [nll / len(item.response_ids) for nll, item in zip(nll_B.tolist(), flat, strict=True)]


@torch.no_grad()
def _nll(
    model: "PreTrainedModel", batched: BatchedLora, adapters: AdapterStack, samples: Sequence[list[TokenizedExample]]
) -> Tensor:
    # In a function of its own, so that what the model keeps of its reading is gone while other folds take their steps.
    with reading_once(model, batched, adapters, samples) as inputs:
        return response_nll(model, **inputs)


def _tokenize(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", samples: Sequence[Example]
) -> list[TokenizedExample]:
    if not samples:
        raise LoragenInferError("There are no samples to tune on; give one at least, with its response.")
    if missing := next((sample for sample in samples if not sample.response.strip()), None):
        raise LoragenInferError(f"The sample {missing.prompt[:60]!r} has no response to tune on; add it.")
    items = [tokenize_example(tokenizer, sample) for sample in samples]
    max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)
    longest = max(range(len(items)), key=lambda index: len(items[index].input_ids))
    number = len(items[longest].input_ids)
    if max_tokens is not None and number > max_tokens:
        raise LoragenInferError(
            f"The sample {samples[longest].prompt[:60]!r} has {number} tokens, but the language model takes "
            f"{max_tokens}; drop it."
        )
    return items


def _batches(items: Sequence[TokenizedExample], size: int, seed: int) -> Iterator[list[TokenizedExample]]:
    """Yield batches for ever: every sample once, in an order of its own, before one comes again."""
    random = torch.Generator().manual_seed(seed)
    size, order = min(size, len(items)), list[int]()
    while True:
        while len(order) < size:
            order += torch.randperm(len(items), generator=random).tolist()
        yield [items[index] for index in order[:size]]
        del order[:size]


def _backward(
    model: "PreTrainedModel", batched: BatchedLora, adapters: AdapterStack, batches: Sequence[list[TokenizedExample]]
) -> Tensor:
    """Add up the gradients; return the mean loss per response token of each adapter, ``[K]``."""
    with reading_once(model, batched, adapters, batches) as inputs:
        nll_B = response_nll(model, **inputs)
        losses = [
            nll.sum() / sum(len(item.response_ids) for item in batch)
            for nll, batch in zip(torch.split(nll_B, [len(batch) for batch in batches]), batches, strict=True)
        ]
        loss_K = torch.stack(losses)
        torch.autograd.backward(loss_K.sum())
    return loss_K.detach()


def _clip(weights: Sequence[Tensor]) -> None:
    """Bound the norm of each adapter's gradient by itself."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm_K = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale_K11 = (_MAX_GRAD_NORM / (norm_K + 1e-6)).clamp(max=1.0)[:, None, None]
    for gradient in gradients:
        gradient.mul_(scale_K11)


def _with_weights(adapter: LoraAdapter, tuned: AdapterStack, place: int) -> LoraAdapter:
    """``adapter`` with the weights of that place, of its own rank, dtype and names."""
    tensors: dict[str, Tensor] = dict(adapter.tensors)
    factors: Mapping[str, Mapping[str, Tensor]] = {"A": tuned.a_Kri, "B": tuned.b_Kor}
    for module in adapter.modules:
        for part, of_part in factors.items():
            name = join_name(module, f"lora_{part}.weight")
            value, old = of_part[module][place].detach().cpu(), tensors[name]
            # A copy, since the steps of others go on.
            tensors[name] = value[: old.shape[0], : old.shape[1]].to(old.dtype, copy=True).contiguous()
    return replace(adapter, tensors=tensors)
