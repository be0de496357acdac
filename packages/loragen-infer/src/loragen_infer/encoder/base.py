"""What every prompt encoder does: it checks prompts, embeds each different one once, keeps that in the cache, and says
what it had to cut off.

Legend: n prompts, D width of an embedding.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    import torch

    from loragen_infer.encoder.embedding_cache import EmbeddingCache

__all__ = ["PROBE", "CachedEncoder", "ConditionEncoder", "EncoderRecord", "check_prompts"]

logger = logging.getLogger(__name__)

PROBE = "The quick BROWN fox: naïve Ünïcode\t12,345.60 = x_1  + y² (don't!)\n数学 각 עברית 🙂 http://a.b/c?d=e"
"""Cases, accents, white space, digits, scripts and what is in no vocabulary: where tokenizers differ."""


class EncoderRecord(TypedDict):
    """What a bundle says of its encoder, under the names of its fields."""

    condition: str
    text_encoder_name: str | None
    text_encoder_revision: str | None
    text_encoder_fingerprint: str | None
    condition_model_name: str | None
    condition_model_fingerprint: str | None


class ConditionEncoder(ABC):
    """Text in, L2-normalised embeddings out: what conditions a generator."""

    name: str
    """What makes the embeddings: the hub's name of a model, or the absolute path of its folder."""
    embedding_dim: int

    @property
    @abstractmethod
    def device(self) -> "torch.device":
        """Where it computes."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """32 hexadecimal digits over all that an embedding hangs on, the same for every copy of the model.

        Taken from values that are loaded, so no version of a library changes it.
        """

    @property
    @abstractmethod
    def record(self) -> EncoderRecord:
        """What tells the encoder again."""

    @abstractmethod
    def to(self, device: "str | torch.device") -> None:
        """Compute on ``device`` from now on."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], *, batch_size: int = 32) -> "torch.Tensor":
        """Return the embeddings of ``prompts``, float32 ``[n, D]`` of length one, on the CPU and without gradient.

        A prompt longer than the encoder takes is truncated by it; one warning says how many were and how much is lost.

        Raises:
            LoragenInferError: ``prompts`` is empty, or one of them has no text.
        """

    @abstractmethod
    def one_truncation_warning(self) -> AbstractContextManager[None]:
        """Within the block the truncations of all calls are gathered, and one warning at its end says their sum."""


class CachedEncoder(ConditionEncoder):
    """An encoder of one model, whose embeddings are kept on disk.

    Args:
        cache_dir: Folder of an embedding cache that several processes, training and inference may share; what
            :meth:`encode` returns is kept there for each prompt and fingerprint.
    """

    def __init__(self, cache_dir: Path | None) -> None:
        self._cache_dir = cache_dir
        self._cache: EmbeddingCache | None = None
        self._gathered: Counter[str] | None = None

    @property
    @abstractmethod
    def max_tokens(self) -> int | None:
        """Most tokens that it reads of a prompt, with those that it adds; None: as many as there are."""

    @property
    @abstractmethod
    def _num_added(self) -> int:
        """No fewer than the tokens that it adds to a prompt."""

    @abstractmethod
    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each prompt, with those that it adds."""

    @abstractmethod
    def _encoded(self, prompts: list[str], batch_size: int) -> "Iterator[dict[str, torch.Tensor]]":
        """Yield the embeddings ``[D]`` of different prompts, on the CPU, a batch at a time."""

    def encode(self, prompts: Sequence[str], *, batch_size: int = 32) -> "torch.Tensor":
        import torch

        self._check(prompts)
        different = list(dict.fromkeys(prompts))
        cache = self._current_cache()
        found = cache.read(different) if cache is not None else {}
        # Not inference_mode, whose tensors no layer that trains can take.
        with torch.no_grad():
            for fresh in self._encoded([prompt for prompt in different if prompt not in found], batch_size):
                found |= fresh
                if cache is not None:
                    cache.write(fresh)
        return torch.stack([found[prompt] for prompt in prompts])

    @contextmanager
    def one_truncation_warning(self) -> Iterator[None]:
        self._gathered = Counter()
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            self._warn(gathered)

    def _check(self, prompts: Sequence[str]) -> None:
        check_prompts(prompts)
        found = Counter(read=len(prompts))
        limit = self.max_tokens
        if limit is not None:
            # Every token of a prompt takes at least one byte, so most prompts need no counting.
            suspects = [prompt for prompt in prompts if len(prompt.encode()) > limit - self._num_added]
            over = [length - limit for length in self._lengths(suspects) if length > limit] if suspects else []
            found.update(cut=len(over), tokens=sum(over))
        if self._gathered is None:
            self._warn(found)
        else:
            self._gathered += found

    def _warn(self, found: Counter[str]) -> None:
        if found["cut"]:
            logger.warning(
                "%d of %d prompts are longer than the %d tokens that %s reads: %d tokens are ignored.",
                *(found["cut"], found["read"], self.max_tokens, self.name, found["tokens"]),
            )

    def _current_cache(self) -> "EmbeddingCache | None":
        """The cache of the weights as they are now: after a training step it is another one."""
        if self._cache_dir is None:
            return None
        if self._cache is None or self._cache.identity != self.fingerprint:
            from loragen_infer.encoder.embedding_cache import EmbeddingCache

            self._cache = EmbeddingCache(self._cache_dir, identity=self.fingerprint)
        return self._cache


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise LoragenInferError if there is no prompt, or one is blank or holds a lone surrogate."""
    if not prompts:
        raise LoragenInferError("There is no prompt to encode; give at least one.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise LoragenInferError(f"Prompt {number} of {len(prompts)} has no text; remove it or fill it in.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise LoragenInferError(
                f"Prompt {number} of {len(prompts)} holds half a character (a lone surrogate, at place "
                f"{error.start + 1}); mend it."
            ) from error
