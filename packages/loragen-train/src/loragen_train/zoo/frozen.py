"""A frozen language model with room for adapters, which everything that learns through one is judged and trained by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from loragen_infer.adapters import AdapterStack, BatchedLora
from loragen_infer.adapters.reading import Batch, reading_once
from loragen_infer.errors import is_out_of_memory
from loragen_infer.likelihood import ResponseLogits, can_go_on, response_logits, response_nll
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import TokenizedExample
from loragen_infer.zoo import TaskQuality
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from loragen_train.configs.collect import Precision
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo.passes import Pass, passes

__all__ = ["FrozenModel", "memory_named"]

# Tokens; where the two implementations of attention take as long.
_SHORT = 128


@dataclass(frozen=True, kw_only=True)
class FrozenModel:
    """A language model whose layers have room for adapters."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batched: BatchedLora
    """The adapters' places in ``model``."""
    tokens_per_pass: int
    """Most tokens, padding included, that go through the model at once."""
    attention: str
    """The implementation of attention that the model came with."""
    reads_once: bool = True
    """Whether an adapter reads once what its prompts begin with."""

    @classmethod
    def load(
        cls,
        name: str,
        modules: Iterable[str],
        *,
        device: "torch.device | str",
        precision: Precision,
        tokens_per_pass: int | Literal["auto"] = "auto",  # noqa: S107  # no password
        gradient_checkpointing: bool = False,
    ) -> "FrozenModel":
        """Load the language model called ``name`` and freeze it (:meth:`of`).

        Raises:
            LoragenInferError: It cannot be loaded, or lacks one of the modules.
        """
        model, tokenizer = load_base_model(name)
        return cls.of(
            model,
            tokenizer,
            modules,
            precision=precision,
            device=device,
            tokens_per_pass=tokens_per_pass,
            gradient_checkpointing=gradient_checkpointing,
        )

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        modules: Iterable[str],
        *,
        precision: Precision,
        device: "torch.device | str | None" = None,
        tokens_per_pass: int | Literal["auto"] = "auto",  # noqa: S107  # no password
        gradient_checkpointing: bool = False,
    ) -> "FrozenModel":
        """Freeze ``model`` and make room for adapters in it.

        Args:
            model: A causal language model in eval mode; its weights are changed in place.
            tokenizer: Its tokenizer.
            modules: Full names of the layers to adapt, as ``LoraAdapter.modules`` has them.
            precision: What its weights are in.
            device: Where it goes; None: it stays where it is.
            tokens_per_pass: Most tokens at once; ``auto``: 1,024 on a CPU, 16,384 elsewhere.
            gradient_checkpointing: Compute activations again in the backward pass, for less memory.

        Raises:
            LoragenInferError: The model lacks one of the modules.
        """
        for parameter in model.parameters():
            # No buffers: rotary frequencies in bfloat16 would turn far positions by other angles than the model knows.
            parameter.data = parameter.data.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        if device is not None:
            torch.nn.Module.to(model, device)
        if gradient_checkpointing:
            enable: Callable[..., None] = model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for module in model.modules():
                # These alone, so that no dropout of the model's own awakes.
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True
        if tokens_per_pass == "auto":  # noqa: S105  # no password
            tokens_per_pass = 1024 if model.device.type == "cpu" else 16_384
        return cls(
            model=model,
            tokenizer=tokenizer,
            batched=BatchedLora(model, modules),
            tokens_per_pass=tokens_per_pass,
            attention=model.config._attn_implementation,
            # Checkpoints keep no keys and values.
            reads_once=not gradient_checkpointing and can_go_on(model),
        )

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return "bf16" if self.model.dtype == torch.bfloat16 else "fp32"

    def choose_attention(self, tasks: Iterable[Sequence[TokenizedExample]]) -> None:
        """Take the implementation of attention that is fastest for samples of this length."""
        longest = max((len(item.input_ids) for task in tasks for item in task), default=0)
        # On a CPU the backward pass of the fused one takes several times that of plain products for short sequences;
        # for long ones these take too much memory.
        is_plain = self.model.device.type == "cpu" and longest <= _SHORT
        self.model.set_attn_implementation("eager" if is_plain else self.attention)

    def passes(self, samples: Sequence[Sequence[TokenizedExample]], *, dropout: float = 0.0) -> list[Pass]:
        """Return passes that have every sample once, of adapters by number, and that there is the memory for."""
        is_shared = self.reads_once and not dropout
        num_common = [Batch.of(of_adapter).num_common for of_adapter in samples] if is_shared else None
        lengths = [[len(item.input_ids) for item in of_adapter] for of_adapter in samples]
        return passes(lengths, self.tokens_per_pass, num_common=num_common)

    @contextmanager
    def response_nll(
        self,
        adapters: AdapterStack | None,
        samples: Sequence[Sequence[TokenizedExample]],
        *,
        dropout: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield the summed NLL of each sample's response, ``[B]``: of all samples of the first adapter, and so on.

        A backward pass belongs into the block. Without adapters it is that of the model alone.
        """
        with self._reading(adapters, samples, dropout=dropout) as inputs:
            yield response_nll(self.model, **inputs)

    @contextmanager
    def response_logits(
        self, adapters: AdapterStack | None, samples: Sequence[Sequence[TokenizedExample]]
    ) -> Iterator[ResponseLogits]:
        """Yield the logits of each response token; samples are counted as above."""
        with self._reading(adapters, samples) as inputs:
            yield response_logits(self.model, **inputs)

    def _reading(
        self,
        adapters: AdapterStack | None,
        samples: Sequence[Sequence[TokenizedExample]],
        *,
        dropout: float = 0.0,
    ) -> AbstractContextManager[dict[str, Any]]:
        return reading_once(
            self.model,
            self.batched,
            adapters,
            samples,
            padding=int(self.tokenizer.pad_token_id or 0),
            dropout=dropout,
            is_shared=self.reads_once,
        )

    @torch.no_grad()  # under inference mode the buffers that a model makes could not be trained through later
    def mean_nll(
        self, adapters: AdapterStack | None, tests: Sequence[Sequence[TokenizedExample]]
    ) -> list[float | None]:
        """Return the NLL per response token of each adapter on its samples, or of the model alone on all of them.

        None for an adapter without any.
        """
        judged = [index for index, test in enumerate(tests) if test]
        totals = dict.fromkeys(judged, 0.0)
        for part in self.passes([tests[index] for index in judged]):
            chosen = [judged[place] for place in part.adapters]
            samples = [[tests[index][row] for row in rows] for index, rows in zip(chosen, part.rows, strict=True)]
            used = None if adapters is None else adapters.select(chosen)
            with self.response_nll(used, samples) as nll_B:
                of_adapters = torch.split(nll_B, [len(rows) for rows in part.rows])
            for index, of_adapter in zip(chosen, of_adapters, strict=True):
                totals[index] += float(of_adapter.sum())
        return [
            totals[index] / sum(len(item.response_ids) for item in test) if test else None
            for index, test in enumerate(tests)
        ]

    def judge(self, adapters: AdapterStack, tests: Sequence[Sequence[TokenizedExample]]) -> list[TaskQuality | None]:
        """Return how likely each adapter, and the model without it, holds the responses of its task's test samples.

        None for a task without any.
        """
        return [
            None if nll is None or base_nll is None else TaskQuality(nll=nll, base_nll=base_nll)
            for nll, base_nll in zip(self.mean_nll(adapters, tests), self.mean_nll(None, tests), strict=True)
        ]


@contextmanager
def memory_named(frozen: FrozenModel) -> Iterator[None]:
    """Say in one sentence what to do where the memory does not hold what is trained in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LoragenTrainError(
            f"The memory does not hold {frozen.tokens_per_pass} tokens at once; set training.tokens_per_pass to "
            f"{frozen.tokens_per_pass // 2}, or training.gradient_checkpointing to true."
        ) from error
