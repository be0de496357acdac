"""How ``loragen-train analyze`` and ``test-tokenizer`` read checkpoints; imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from loragen_train.configs.collect import check_positive

__all__ = ["ReadingConfig"]


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How checkpoints are read and cut into tokens."""

    max_tokens: int | Literal["auto"] = 512
    """Number of tokens that there may be, or auto for as many as it takes."""
    token_dim: int = 384
    """Values per token."""
    lora_alpha: float | None = None
    """Alpha, in place of what checkpoints say; needed where they do not."""

    def __post_init__(self) -> None:
        check_positive("", token_dim=self.token_dim)
        if self.max_tokens != "auto":
            check_positive("", max_tokens=self.max_tokens)
        if self.lora_alpha is not None:
            check_positive("", lora_alpha=self.lora_alpha)
