"""What ``loragen-train test-tokenizer`` finds: does a checkpoint survive tokenizing, and does it fit the given size."""

from pathlib import Path
from typing import Any

from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, check_round_trip, read_adapter

__all__ = ["try_tokenizer"]

# Widths that are tried for one that would fit; beyond, another number of tokens is the better way.
_WIDTH_STEP = 64
_MAX_WIDTH = 8192


def try_tokenizer(
    checkpoint: Path, *, max_tokens: int | str, token_dim: int, read_options: dict[str, Any]
) -> dict[str, Any]:
    """Encode and decode ``checkpoint``, through the files that PEFT loads too, and compare to the bit.

    Returns:
        ``ok``; ``fits`` and, if it does not, ``error`` (the sentence), ``needed_max_tokens`` and ``fitting_token_dim``
        (the least multiple of 64 from ``token_dim`` on that fits, or None); ``tokens_equal``, ``files_equal`` and
        ``layout_equal`` (None where it does not fit); size, r and modules of the adapter, and its padding.

    Raises:
        LoraTokenizerError: It cannot be read, or a size makes no sense.
    """
    adapter = read_adapter(checkpoint, **read_options)
    layout = TokenLayout.from_adapter(adapter, token_dim=token_dim, max_tokens="auto")
    found: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "num_modules": len(adapter.modules),
        "ranks": sorted({adapter.factors(module)[0].shape[0] for module in adapter.modules}),
        "num_parameters": adapter.num_parameters,
        "token_dim": token_dim,
        "max_tokens": max_tokens,
        "num_tokens": layout.num_tokens,
        "grid": list(layout.grid),
        "padding": layout.padding,
        "fingerprint": layout.fingerprint,
    }
    try:
        # Refuses a size that makes no sense, too.
        TokenLayout.from_adapter(adapter, token_dim=token_dim, max_tokens=max_tokens)
    except LoraTokenizerError as error:
        if not isinstance(max_tokens, int) or not 0 < max_tokens < layout.num_tokens:
            raise
        unknown = dict.fromkeys(("tokens_equal", "files_equal", "layout_equal"))
        return {
            **found,
            "ok": False,
            "fits": False,
            "error": str(error),
            "needed_max_tokens": layout.num_tokens,
            "fitting_token_dim": _fitting_width(adapter, token_dim, max_tokens),
            **unknown,
        }
    proof = check_round_trip(checkpoint, token_dim=token_dim, max_tokens=max_tokens, **read_options)
    return {
        **found,
        "ok": proof.ok,
        "fits": True,
        "tokens_equal": proof.tokens_equal,
        "files_equal": proof.files_equal,
        "layout_equal": proof.layout_equal,
    }


def _fitting_width(adapter: LoraAdapter, token_dim: int, max_tokens: int) -> int | None:
    start = token_dim - token_dim % _WIDTH_STEP + _WIDTH_STEP
    for width in range(start, _MAX_WIDTH + 1, _WIDTH_STEP):
        if TokenLayout.from_adapter(adapter, token_dim=width, max_tokens="auto").num_tokens <= max_tokens:
            return width
    return None
