"""What vLLM runs when it starts: the entry point ``loragen`` of the group ``vllm.general_plugins``.

vLLM runs it in each of its processes, also on machines that have neither store nor model, so whatever is wrong is said
and nothing is raised.
"""

import logging
import os

from loragen_infer.errors import LoragenInferError
from loragen_infer.vllm.remarks import log_remarks
from loragen_infer.vllm.settings import ResolverSettings

__all__ = ["register"]

# Of vLLM's own logger, since vLLM sets up no other: below a warning nothing else is shown.
logger = logging.getLogger("vllm.loragen")

_SWITCH = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def register() -> None:
    """Give vLLM a resolver for ``loragen:ID``, if the environment names a store."""
    try:
        settings = _register()
    except Exception:
        logger.exception(
            "The plugin loragen is not registered, and vLLM goes on without it; install a loragen-infer and a vLLM "
            "that fit each other, or unset LORAGEN_STORE."
        )
        return
    if settings is None:
        logger.debug("LORAGEN_STORE is not set, so vLLM is not asked to serve adapters of a store.")
        return
    if os.environ.get(_SWITCH, "0").strip().lower() not in ("1", "true"):
        logger.warning("vLLM asks for no adapter that it does not know unless %s=1 is set.", _SWITCH)
    if settings.model is not None:
        _say_what_vllm_needs(settings.model)


def _register() -> ResolverSettings | None:
    """Register the resolver and return its settings; None: there is no store to serve."""
    settings = ResolverSettings.from_environment(os.environ)
    if settings is not None:
        from vllm.lora.resolver import LoRAResolverRegistry

        from loragen_infer.vllm.resolver import LoragenResolver

        LoRAResolverRegistry.register_resolver("loragen", LoragenResolver(settings))
    return settings


def _say_what_vllm_needs(model: str) -> None:
    from loragen_infer.bundle.bundle import GeneratorBundle

    try:
        bundle = GeneratorBundle.load(model)
        log_remarks(bundle.layout.decode(bundle.stats.mean), model, logger)
    except LoragenInferError as error:
        logger.error("LORAGEN_MODEL: %s", error)
    except Exception:
        logger.exception("LORAGEN_MODEL: what vLLM needs for the adapters of %s is not known; check the bundle.", model)
