"""What can be wrong with prompts before an encoder sees them: none at all, no text, half a character, too long."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["check_prompts", "count_truncated"]

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


def count_truncated(model: "SentenceTransformer", prompts: Sequence[str], prefix: str) -> Counter[str]:
    """Return how many ``prompts`` (``prefix`` comes before each) are ``read`` and ``cut``, and ``tokens`` lost."""
    limit = model.max_seq_length
    if limit is None:
        return Counter(read=len(prompts))
    # Apart from the special tokens every token takes at least one byte, so most prompts need no counting.
    suspects = [prefix + text for text in prompts if len((prefix + text).encode()) > limit - _MAX_SPECIAL_TOKENS]
    encoded = model.tokenizer(suspects, truncation=False, verbose=False)["input_ids"] if suspects else []
    over = [len(ids) - limit for ids in encoded if len(ids) > limit]
    return Counter(read=len(prompts), cut=len(over), tokens=sum(over))
