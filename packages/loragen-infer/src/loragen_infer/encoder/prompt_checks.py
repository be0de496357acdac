"""What can be wrong with prompts before an encoder sees them: none at all, no text, half a character, too long."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Truncation", "check_prompts", "measure_truncation"]

logger = logging.getLogger(__name__)

_MAX_SPECIAL_TOKENS = 8


def check_prompts(prompts: Sequence[str]) -> None:
    """Return if every prompt is text that can be encoded.

    Raises:
        LoragenInferError: There is no prompt; or one is empty, blank, or holds a lone surrogate.

    Example:
        >>> check_prompts(["What is 2 + 3?"])
    """
    if not prompts:
        raise LoragenInferError("There is no prompt to encode; give at least one.")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise LoragenInferError(f"Prompt {index + 1} of {len(prompts)} has no text; remove it or fill it in.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise LoragenInferError(
                f"Prompt {index + 1} of {len(prompts)} holds half a character (a lone surrogate, at place "
                f"{error.start + 1}); mend it."
            ) from error


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """How much of some prompts an encoder does not read."""

    num_prompts: int = 0
    """Prompts looked at."""
    num_cut: int = 0
    """Prompts longer than the encoder takes."""
    num_tokens_lost: int = 0
    """Tokens that it ignores, of all of them together."""
    longest: int = 0
    """Tokens of the longest prompt that is cut."""

    def __add__(self, other: "Truncation") -> "Truncation":
        return Truncation(
            num_prompts=self.num_prompts + other.num_prompts,
            num_cut=self.num_cut + other.num_cut,
            num_tokens_lost=self.num_tokens_lost + other.num_tokens_lost,
            longest=max(self.longest, other.longest),
        )

    def warn(self, encoder_name: str, limit: int) -> None:
        """Log one warning if anything was cut."""
        if self.num_cut:
            logger.warning(
                "%d of %d prompts are longer than the %d tokens that %s reads: %d tokens are ignored (the longest "
                "prompt has %d).",
                *(self.num_cut, self.num_prompts, limit, encoder_name, self.num_tokens_lost, self.longest),
            )


def measure_truncation(model: "SentenceTransformer", prompts: Sequence[str], prefix: str) -> Truncation:
    """Return what ``model`` ignores of ``prompts``, each with ``prefix`` before it."""
    limit = model.max_seq_length
    if limit is None:
        return Truncation(num_prompts=len(prompts))
    texts = [prefix + prompt for prompt in prompts]
    # Apart from the special tokens every token takes at least one byte, so most prompts need no counting.
    suspects = [text for text in texts if len(text.encode()) > limit - _MAX_SPECIAL_TOKENS]
    if not suspects:
        return Truncation(num_prompts=len(prompts))
    lengths = [len(ids) for ids in model.tokenizer(suspects, truncation=False, verbose=False)["input_ids"]]
    over = [length for length in lengths if length > limit]
    return Truncation(
        num_prompts=len(prompts),
        num_cut=len(over),
        num_tokens_lost=sum(length - limit for length in over),
        longest=max(over, default=0),
    )
