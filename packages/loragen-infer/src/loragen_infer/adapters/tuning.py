"""Goes on from adapters with a few gradient steps on solved samples of their tasks, many adapters at once.

Each adapter sees its own samples, has its own loss and its own clipping, so all at once give what one by one gives, to
rounding. The language model stays frozen, and is as it was afterwards.

Legend: K adapters, B samples of all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from lora_tokenizer import LoraAdapter
from lora_tokenizer.names import join_name
from torch import Tensor

from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.errors import LoragenInferError
from loragen_infer.likelihood import read_tokens, response_nll
from loragen_infer.samples import (
    TUNE_LEARNING_RATE,
    TUNE_STEPS,
    Example,
    TokenizedExample,
    num_common_tokens,
    tokenize_example,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["tune", "tune_many"]

_MAX_GRAD_NORM = 1.0


def tune(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    adapter: LoraAdapter,
    samples: Sequence[Example],
    *,
    num_steps: int = TUNE_STEPS,
    learning_rate: float = TUNE_LEARNING_RATE,
    batch_size: int = 8,
    seed: int = 0,
) -> LoraAdapter:
    """Return ``adapter`` after gradient steps on the responses of ``samples``; see :func:`tune_many`.

    Example:
        .. code-block:: python

            adapter = generator.generate(["What is 17 + 25?", "What is 3 + 88?"])
            adapter = tune(model, tokenizer, adapter, [Example(prompt="What is 2 + 9?", response="11")])
    """
    (tuned,) = tune_many(
        model,
        tokenizer,
        [adapter],
        [samples],
        num_steps=num_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    return tuned


def tune_many(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    adapters: Sequence[LoraAdapter],
    samples: Sequence[Sequence[Example]],
    *,
    num_steps: int = TUNE_STEPS,
    learning_rate: float = TUNE_LEARNING_RATE,
    batch_size: int = 8,
    seed: int = 0,
) -> list[LoraAdapter]:
    """Return ``adapters`` after gradient steps, each on the responses of its own samples.

    Args:
        model: The language model that the adapters are of, without adapters.
        tokenizer: Its tokenizer.
        adapters: Adapters of the same modules.
        samples: For every adapter, samples with responses.
        num_steps: Number of steps of AdamW on A and B.
        learning_rate: Of the first step; it falls to zero in a straight line.
        batch_size: Most samples of an adapter in a step; of more, every step takes the next of a random order.
        seed: Of that order.

    Raises:
        LoragenInferError: An adapter does not fit the model or is more than two factors per linear layer (DoRA), there
            are no samples or one without a response, one is longer than the model takes, or the loss is not finite.
    """
    if num_steps < 0 or batch_size < 1 or not learning_rate > 0:
        raise LoragenInferError(
            f"Tuning has num_steps={num_steps}, batch_size={batch_size} and learning_rate={learning_rate:g}; give 0 "
            "steps or more, 1 sample or more, and a learning rate above 0."
        )
    items = [_tokenize(model, tokenizer, of_adapter) for of_adapter in samples]
    adapters_K = AdapterStack.of([adapter.to(torch.float32) for adapter in adapters]).to(model.device)
    weights = [*adapters_K.a_Kri.values(), *adapters_K.b_Kor.values()]
    for weight in weights:
        weight.requires_grad_()
    batches = [_batches(of_adapter, batch_size, seed) for of_adapter in items]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(1, num_steps))
    batched = BatchedLora(model, adapters[0].modules)
    try:
        for step in range(num_steps):
            loss_K = _backward(model, batched, adapters_K, [next(batch) for batch in batches])
            if not loss_K.isfinite().all():
                raise LoragenInferError(
                    f"The loss of tuning is {float(loss_K[~loss_K.isfinite()][0])} in step {step + 1} of {num_steps}; "
                    f"lower the learning rate ({learning_rate:g})."
                )
            _clip(weights)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    finally:
        batched.remove()
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise LoragenInferError(
            f"Tuning has made weights that are not finite; lower the learning rate ({learning_rate:g})."
        )
    return [_with_weights(adapter, adapters_K, place) for place, adapter in enumerate(adapters)]


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
    items = [item for batch in batches for item in batch]
    counts = [len(batch) for batch in batches]
    # The last token of a prompt, which predicts the response, is each sample's own.
    prompts = [[item.input_ids[: item.num_prompt_tokens - 1] for item in batch] for batch in batches]
    beginnings = [of_batch[0][: num_common_tokens(of_batch)] for of_batch in prompts]
    read = None
    if all(beginnings):
        with batched.applied(adapters, num_samples=[1] * len(batches)):
            read = read_tokens(model, beginnings, padding=0)
    if read is not None:
        read = read.rows([place for place, count in enumerate(counts) for _ in range(count)])
    with batched.applied(adapters, num_samples=counts):
        nll_B = response_nll(model, items, padding=0, after=read)
        losses = [
            nll.sum() / sum(len(item.response_ids) for item in batch)
            for nll, batch in zip(torch.split(nll_B, counts), batches, strict=True)
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
            tensors[name] = value[: old.shape[0], : old.shape[1]].to(old.dtype).contiguous()
    return replace(adapter, tensors=tensors)
