"""The one exception of this package, and the helpers that keep its sentences alike: every refusal is one of them."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("lora_tokenizer")

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""How a system says that a disk, a user's share of it, or a file can hold no more."""


class LoraTokenizerError(ValueError):
    """Anything this package refuses: the message says what, the value, where, and the way out."""


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `target`, into a LoraTokenizerError.

    So with a name that holds a null character, which Python reports as a bare ValueError.
    """
    if "\0" in str(target):
        raise LoraTokenizerError(f"cannot write {str(target)!r}: a name cannot hold a null character")
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise LoraTokenizerError(
                f"no space left to write {target} ({error.strerror}): free some and run it again"
            ) from error
        raise LoraTokenizerError(
            f"cannot write {target}: {error.strerror or error}: choose another place or free it"
        ) from error


@functools.lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log `message` as a warning the first time it comes up; a folder of fifty adapters must not say it fifty times."""
    logger.warning(message)
