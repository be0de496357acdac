"""Answers vLLM's question for an adapter that it does not know: ``loragen:ID`` is the adapter ID of a store.

Made, if need be, from the prompts registered under the id. Needs vLLM, whose signatures are those of release 0.33.
"""

import asyncio
import functools
import logging
import threading

from lora_tokenizer.io.reading import read_settings
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from loragen_infer.models.locate import is_same_model
from loragen_infer.store import AdapterStore, StoredAdapter
from loragen_infer.vllm.names import adapter_id_of, request_id_of
from loragen_infer.vllm.settings import ResolverSettings

__all__ = ["LoragenResolver"]

logger = logging.getLogger(__name__)


class LoragenResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not there to be checked
    """Finds or makes the adapters of a store for vLLM's OpenAI server.

    Args:
        settings: The store, and the bundle if adapters are to be made.
    """

    def __init__(self, settings: ResolverSettings) -> None:
        self._settings = settings
        self._loading = threading.Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the request for the adapter that ``lora_name`` means; None: there is no such adapter.

        An adapter of another base model than ``base_model_name`` is none, and the log says so.

        Raises:
            LoragenInferError: The adapter is to be made and cannot be: the model does not load, the disk is full.
        """
        adapter_id = adapter_id_of(lora_name)
        if adapter_id is None:
            return None
        # In a thread, since making an adapter would hold up every other request of the server.
        return await asyncio.to_thread(self._resolve, base_model_name, lora_name, adapter_id)

    def _resolve(self, base_model_name: str, lora_name: str, adapter_id: str) -> LoRARequest | None:
        adapter = self._find_or_make(adapter_id)
        if adapter is None:
            return None
        named = read_settings(adapter.path).get("base_model_name_or_path")  # vLLM reads the weights itself
        if named is None or not is_same_model(named, base_model_name):
            logger.warning(
                "%s is an adapter of %s, but vLLM serves %s; generate it with a model for that, or serve its own.",
                lora_name,
                named or "an unknown base model",
                base_model_name,
            )
            return None
        path = str(adapter.path.absolute())
        return LoRARequest(lora_name=lora_name, lora_int_id=request_id_of(adapter_id), lora_path=path)

    def _find_or_make(self, adapter_id: str) -> StoredAdapter | None:
        # A finished adapter needs no generator, whose encoder takes seconds to load.
        adapter = self._finished.find(adapter_id)
        if adapter is not None or self._settings.model is None or not self._finished.is_registered(adapter_id):
            return adapter
        with self._loading:
            store = self._making
        return store.find_or_create(adapter_id)

    @functools.cached_property
    def _finished(self) -> AdapterStore:
        return AdapterStore(self._settings.store)

    @functools.cached_property
    def _making(self) -> AdapterStore:
        from loragen_infer.generator import LoraGenerator

        # On the CPU: the accelerator is vLLM's.
        return AdapterStore(self._settings.store, LoraGenerator.from_pretrained(str(self._settings.model)))
