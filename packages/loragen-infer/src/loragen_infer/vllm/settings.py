"""What the environment tells the plugin."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["ResolverSettings"]


@dataclass(frozen=True, kw_only=True)
class ResolverSettings:
    """Where adapters come from."""

    store: Path
    """Folder of the store (``LORAGEN_STORE``)."""
    model: str | None = None
    """The bundle that makes the adapters of registered prompts (``LORAGEN_MODEL``); None: only finished ones are
    served."""

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> Self | None:
        """Read the settings; None: ``LORAGEN_STORE`` is not set, so vLLM is to be left alone."""
        store = variables.get("LORAGEN_STORE")
        return cls(store=Path(store).absolute(), model=variables.get("LORAGEN_MODEL") or None) if store else None
