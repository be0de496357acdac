"""The options of ``loragen-infer demo``, without loading anything."""

from dataclasses import dataclass

from loragen_infer.errors import LoragenInferError

__all__ = ["DemoConfig"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Which generator the page shows, and where the page is.

    Raises:
        LoragenInferError: A value is out of range.
    """

    model: str
    """A bundle, a final_model folder, an experiment folder or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    base_model: str | None = None
    """The language model that answers, and that the adapters name (default: as the model says)."""
    condition_model: str | None = None
    """Where the base model is, for a generator that is conditioned on its states (default: where the model says)."""
    store: str = "adapters"
    """Folder in which the adapters are kept."""
    host: str = "127.0.0.1"
    """Address that the page listens on; 0.0.0.0 lets other machines in, and nothing asks them for a password."""
    port: int = 7860
    """Port of the page."""
    share: bool = False
    """on (or true): a public address through Gradio's servers too, for which it loads a program of theirs."""
    device: str = "cpu"
    """Torch device of encoder, generator and language model."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise LoragenInferError(f"--port is {self.port}, where a number from 1 to 65535 belongs")
        if not isinstance(self.share, bool):  # "off" would be as true as any other text
            raise LoragenInferError(f"share is {self.share!r}, where True or False belongs")
