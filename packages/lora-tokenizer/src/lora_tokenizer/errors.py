"""The one exception of this package, and the one warning helper: every refusal is one sentence."""

from __future__ import annotations

import functools
import logging

logger = logging.getLogger("lora_tokenizer")


class LoraTokenizerError(ValueError):
    """Anything this package refuses: the message says what, the value, where, and the way out."""


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log `message` as a warning the first time it comes up; a folder of fifty adapters must not say it fifty times."""
    logger.warning(message)
