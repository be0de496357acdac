"""What vLLM runs when it starts: the entry point ``loragen`` of the group ``vllm.general_plugins``.

vLLM runs it in each of its processes, also on machines that have neither store nor model, so whatever is wrong is said
and nothing is raised.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from loragen_infer.errors import LoragenInferError
from loragen_infer.vllm.remarks import log_remarks

__all__ = ["ResolverSettings", "register"]

logger = logging.getLogger(__name__)

_SWITCH = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


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


def register() -> None:
    """Give vLLM a resolver for ``loragen:ID``, if the environment names a store."""
    settings = ResolverSettings.from_environment(os.environ)
    if settings is None:
        logger.debug("LORAGEN_STORE is not set, so vLLM is not asked to serve adapters of a store.")
        return
    from vllm.lora.resolver import LoRAResolverRegistry

    from loragen_infer.vllm.resolver import LoragenResolver

    LoRAResolverRegistry.register_resolver("loragen", LoragenResolver(settings))
    if os.environ.get(_SWITCH, "0").strip().lower() not in ("1", "true"):
        logger.warning("vLLM asks for no adapter that it does not know unless %s=1 is set.", _SWITCH)
    if settings.model is not None:
        _say_what_vllm_needs(settings.model)


def _say_what_vllm_needs(model: str) -> None:
    from loragen_infer.bundle.bundle import GeneratorBundle

    try:
        bundle = GeneratorBundle.load(model)
    except LoragenInferError as error:
        logger.error("LORAGEN_MODEL: %s", error)
        return
    log_remarks(bundle.layout.decode(bundle.stats.mean), model)
