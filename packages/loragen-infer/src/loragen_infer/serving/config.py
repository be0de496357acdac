"""The options of ``loragen-infer serve``, without loading anything."""

import math
from dataclasses import dataclass, field

from loragen_infer.errors import LoragenInferError

__all__ = ["ServeConfig"]


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, where, and within which limits.

    Raises:
        LoragenInferError: A value out of range.
    """

    model: str
    """A bundle, a ``final_model`` folder, an experiment folder or a hub name."""
    store: str = "adapters"
    """Folder of the adapters, which other servers may share."""
    host: str = "127.0.0.1"
    """Address to listen on; the default answers this machine only."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    token: str | None = field(default=None, repr=False)
    """What clients must send as ``Authorization: Bearer …``; None: nothing."""
    max_adapters: int | None = None
    """Most adapters that the store keeps; None: what was last set for it, or 10,000."""
    max_batch_size: int = 16
    """Most requests whose adapters are made in one forward pass."""
    batch_timeout: float = 0.0
    """Seconds that a request waits for others to share its forward pass; 0: it takes those that wait already."""
    max_prompts: int = 64
    """Most prompts of a request; more are answered with 422."""
    max_prompt_characters: int = 8192
    """Longest prompt; a longer one is answered with 422."""
    max_body_bytes: int = 1 << 20
    """Largest body of a request; a larger one is answered with 413."""
    max_queue: int = 256
    """Most requests for adapters that are open at once; more are answered with 429."""
    vllm: str | None = None
    """Address of a vLLM that loads every adapter that is asked for; None: nobody does."""
    drain_seconds: int = 30
    """How long open requests are waited for after SIGTERM."""
    revision: str | None = None
    """Branch, tag or commit of ``model`` on the hub."""
    condition_model: str | None = None
    """Where the base model is, for a generator that is conditioned on its states."""
    device: str = "cpu"
    """Torch device of encoder and generator."""
    dtype: str = "float32"
    """What the generator computes in."""
    cache_dir: str | None = None
    """Folder of the embedding cache; None: no cache."""

    def __post_init__(self) -> None:
        counts = ("max_adapters", "max_batch_size", "max_prompts", "max_prompt_characters", "max_body_bytes")
        for name in (*counts, "max_queue", "drain_seconds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LoragenInferError(f"{_option(name)} is {value}, where a number from 1 belongs")
        if not 0 <= self.batch_timeout < math.inf:
            raise LoragenInferError(f"--batch-timeout is {self.batch_timeout}, where a number from 0 belongs")
        if not 0 <= self.port < 1 << 16:
            raise LoragenInferError(f"--port is {self.port}, where a number from 0 to 65535 belongs")
        if not self.host.strip():
            raise LoragenInferError("--host is empty; leave it out, or give 0.0.0.0 to answer other machines")
        if self.token == "":
            raise LoragenInferError("The token (--token, or LORAGEN_TOKEN) is empty; give one, or unset it")
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and self.token.strip() == self.token
        ):
            raise LoragenInferError("--token must be printable ASCII characters without a space at either end")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
