"""The language model behind the page: loaded when the page is up, asked with and without adapter, one at a time."""

import threading
from typing import TYPE_CHECKING, Any

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.answering import Questions
from loragen_infer.demo.loading import Loading
from loragen_infer.errors import LoragenInferError
from loragen_infer.generator import scale_adapter
from loragen_infer.models.base_model import load_base_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LanguageModel"]

_MAX_QUESTION_TOKENS = 1024
_MAX_ANSWER_TOKENS = 64


class LanguageModel(Loading["tuple[Any, PreTrainedTokenizerBase]"]):
    """A base model that is there some time after :meth:`load` is called.

    Args:
        name: A folder, a ``.gguf`` file or a hub name; None: nobody knows, which is an error of each question.
        device: A torch device.
    """

    def __init__(self, name: str | None, *, device: str = "cpu") -> None:
        super().__init__(name or "The language model", lambda: _loaded(name, device))
        # The model is changed while it answers.
        self._lock = threading.Lock()

    def answers(self, question: str, adapter: LoraAdapter) -> tuple[str, str]:
        """Return what the base model answers, and what it answers with ``adapter``, each token the likeliest.

        Raises:
            LoragenInferError: The model could not be loaded, the question is too long, or the adapter does not fit.
        """
        model, tokenizer = self.result()
        asked = Questions(tokenizer, [question, question], max_new_tokens=_MAX_ANSWER_TOKENS)
        limit = getattr(model.config, "max_position_embeddings", None) or _MAX_QUESTION_TOKENS + _MAX_ANSWER_TOKENS
        limit = min(limit - _MAX_ANSWER_TOKENS, _MAX_QUESTION_TOKENS)
        if asked.longest > limit:
            raise LoragenInferError(f"The question has {asked.longest:,} tokens, and {limit:,} are read; shorten it.")
        stack = AdapterStack.of([scale_adapter(adapter, 0.0), adapter])
        with self._lock:
            batched = BatchedLora(model, adapter.modules)
            try:
                with torch.no_grad(), batched.applied(stack):
                    (base, _), (adapted, _) = asked.answers_of(model, batch_size=2)
            finally:
                batched.remove()
        return base, adapted


def _loaded(name: str | None, device: str) -> "tuple[Any, PreTrainedTokenizerBase]":
    if name is None:
        raise LoragenInferError("the generator does not know its language model; name it with --base-model.")
    return load_base_model(name, device=device)
