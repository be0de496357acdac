"""Which embeddings condition a generator: of sentences, states of the base language model, or both side by side.

Legend: n prompts, D width of an embedding.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

from loragen_infer.encoder.base import ConditionEncoder, EncoderRecord
from loragen_infer.encoder.encoder import PromptEncoder
from loragen_infer.encoder.state_encoder import StateEncoder
from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    import torch

__all__ = ["Condition", "JointEncoder", "load_encoder"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition as configurations and bundles write it: ``sentence``, ``lm:LAYER`` or ``both:LAYER``.

    Example:
        >>> condition = Condition.parse("both:middle")
        >>> condition
        Condition(kind='both', layer='middle')
        >>> str(condition)
        'both:middle'
    """

    kind: Literal["sentence", "lm", "both"]
    layer: int | Literal["middle"] | None
    """The layer of the base model, from 1, whose output is taken; None where none is."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a condition; a ValueError says what is wrong with it."""
        if text == "sentence":
            return cls(kind="sentence", layer=None)
        found = re.fullmatch(r"(lm|both):(?:(middle)|0*([1-9][0-9]{0,4}))", text, flags=re.ASCII)
        if found is None:
            raise ValueError(
                f"condition is {text!r}, where 'sentence', 'lm:LAYER' or 'both:LAYER' belongs (LAYER: a number from 1, "
                "or middle)"
            )
        kind = cast("Literal['lm', 'both']", found[1])
        return cls(kind=kind, layer="middle" if found[2] else int(found[3]))

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}:{self.layer}"


class JointEncoder(ConditionEncoder):
    """Sentence embeddings and states of the base model side by side, of the same weight."""

    def __init__(self, sentences: PromptEncoder, states: StateEncoder) -> None:
        self._sentences, self._states = sentences, states
        self.name = f"{sentences.name} with {states.name}"
        self.embedding_dim = sentences.embedding_dim + states.embedding_dim

    @property
    def device(self) -> "torch.device":
        return self._states.device

    @property
    def fingerprint(self) -> str:
        parts = f"{self._sentences.fingerprint} {self._states.fingerprint}"
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def record(self) -> EncoderRecord:
        states = self._states.record
        return {
            **self._sentences.record,
            "condition": f"both:{self._states.layer}",
            "condition_model_name": states["condition_model_name"],
            "condition_model_fingerprint": states["condition_model_fingerprint"],
        }

    def to(self, device: "str | torch.device") -> None:
        self._sentences.to(device)
        self._states.to(device)

    def encode(self, prompts: Sequence[str], *, batch_size: int = 32) -> "torch.Tensor":
        import torch

        parts = [part.encode(prompts, batch_size=batch_size) for part in (self._sentences, self._states)]
        return torch.cat(parts, dim=1) / math.sqrt(2)

    @contextmanager
    def one_truncation_warning(self) -> Iterator[None]:
        with self._sentences.one_truncation_warning(), self._states.one_truncation_warning():
            yield


def load_encoder(
    condition: Condition,
    *,
    text_encoder: str | None = None,
    condition_model: str | None = None,
    revision: str | None = None,
    device: "str | torch.device" = "cpu",
    cache_dir: Path | None = None,
    state: "Mapping[str, torch.Tensor] | None" = None,
) -> ConditionEncoder:
    """Return the encoder that makes ``condition``.

    Args:
        condition: What to make.
        text_encoder: The encoder of sentences, where there is one in it.
        condition_model: The base model, where there are states in it.
        revision: Branch, tag or commit of ``text_encoder`` on the hub.
        device: A torch device.
        cache_dir: Folder of the embedding cache.
        state: Weights that replace those of ``text_encoder``.

    Raises:
        LoragenInferError: A model is not named, not found or cannot be loaded, or it has no such layer.
    """
    if condition.kind != "lm":
        if text_encoder is None:
            raise LoragenInferError(f"The condition {condition} takes embeddings of sentences; name a text encoder.")
        sentences = PromptEncoder(text_encoder, revision=revision, device=device, cache_dir=cache_dir, state=state)
        if condition.kind == "sentence":
            return sentences
    if condition_model is None or condition.layer is None:
        raise LoragenInferError(
            f"The condition {condition} takes states of the base model, which is not known; name it as condition_model."
        )
    try:
        states = StateEncoder(condition_model, layer=condition.layer, device=device, cache_dir=cache_dir)
    except LoragenInferError as error:
        raise LoragenInferError(f"condition_model, whose states are in the condition {condition}: {error}") from error
    return states if condition.kind == "lm" else JointEncoder(sentences, states)
