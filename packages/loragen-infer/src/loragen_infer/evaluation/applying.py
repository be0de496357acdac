"""Puts the adapters of rows on the language model: together where they act on the same linear layers, else alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.adapters import AdapterStack, BatchedLora, adapter_attached
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.scoring import ExampleScores, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Applier"]


class Applier:
    """Scores adapters on one model, which is as it was after :meth:`remove`."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model
        self._batched: dict[tuple[str, ...], BatchedLora | None] = {}

    def remove(self) -> None:
        """Take everything off the model."""
        for batched in self._batched.values():
            if batched is not None:
                batched.remove()
        self._batched = {}

    def check(self, adapter: LoraAdapter) -> None:
        """Refuse an adapter that the model has no place for.

        Raises:
            LoragenInferError: The adapter has a tensor that the model has no place for, or lacks one.
        """
        if self._places_of(adapter) is None:
            with adapter_attached(self._model, adapter):
                pass

    def score(self, scorer: Scorer, adapters: Sequence[LoraAdapter]) -> list[ExampleScores]:
        """Return the scores of the model with each of ``adapters``."""
        found: dict[int, ExampleScores] = {}
        together: dict[BatchedLora, list[int]] = {}
        for index, adapter in enumerate(adapters):
            batched = self._places_of(adapter)
            if batched is not None:
                together.setdefault(batched, []).append(index)
                continue
            with adapter_attached(self._model, adapter) as adapted:
                found[index] = scorer.score(adapted)
        for batched, indices in together.items():
            stack = AdapterStack.of([adapters[index].to(torch.float32) for index in indices]).to(self._model.device)
            scores = scorer.score_adapters(self._model, batched, stack)
            found.update(zip(indices, scores, strict=True))
        return [found[index] for index in range(len(adapters))]

    def _places_of(self, adapter: LoraAdapter) -> BatchedLora | None:
        """The adapter's places in the model; None where it must be attached alone."""
        modules = tuple(sorted(adapter.modules))
        if modules not in self._batched:
            try:
                self._batched[modules] = BatchedLora(self._model, modules)
            except LoragenInferError:  # a layer of another kind, or none: PEFT may know it, or says why not
                self._batched[modules] = None
        try:
            AdapterStack.of([adapter])
        except LoragenInferError:  # DoRA and the like
            return None
        batched = self._batched[modules]
        return batched if batched is not None and batched.fits(adapter) else None
