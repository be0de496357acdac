"""The language model behind the page: loaded in the background, asked one question at a time, with and without adapter.

Legend: B rows of a batch, the base model's and the adapted one's; T tokens.
"""

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.errors import LoragenInferError
from loragen_infer.generator import scale_adapter
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import Example, tokenize_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LanguageModel"]

_MAX_QUESTION_TOKENS = 1024
_MAX_ANSWER_TOKENS = 64


class LanguageModel:
    """A base model that is there some time after :meth:`start`.

    Args:
        name: A folder, a ``.gguf`` file or a hub name; None: nobody knows, which is an error of each question.
        device: A torch device.
    """

    def __init__(self, name: str | None, *, device: str = "cpu") -> None:
        self._name, self._device = name, device
        self._loaded: Future[tuple[Any, PreTrainedTokenizerBase]] = Future()
        # The model is changed while it answers.
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to load; a process that ends does not wait for it."""
        threading.Thread(target=self._load, name="language model", daemon=True).start()

    @property
    def is_settled(self) -> bool:
        """Whether it is loaded, or will never be."""
        return self._loaded.done()

    @property
    def status(self) -> str:
        """How far it is, in words."""
        if not self.is_settled:
            return f"{self._name} is being loaded…"
        error = self._loaded.exception()
        return f"{self._name} is ready." if error is None else f"No language model: {error}"

    def answers(self, question: str, adapter: LoraAdapter) -> tuple[str, str]:
        """Return what the base model answers, and what it answers with ``adapter``, each token the likeliest.

        Raises:
            LoragenInferError: The model could not be loaded, the question is too long, or the adapter does not fit.
        """
        model, tokenizer = self._loaded.result()
        tokens = tokenize_example(tokenizer, Example(prompt=question, response=""))
        prompt, end = tokens.input_ids[: tokens.num_prompt_tokens], tokens.input_ids[tokens.num_prompt_tokens :]
        limit = getattr(model.config, "max_position_embeddings", None) or _MAX_QUESTION_TOKENS + _MAX_ANSWER_TOKENS
        limit = min(limit - _MAX_ANSWER_TOKENS, _MAX_QUESTION_TOKENS)
        if len(prompt) > limit:
            raise LoragenInferError(f"The question has {len(prompt):,} tokens, and {limit:,} are read; shorten it.")
        stack = AdapterStack.of([scale_adapter(adapter, 0.0), adapter])
        input_ids_BT = torch.tensor([prompt, prompt], device=model.device)
        known = model.generation_config.eos_token_id
        stops = {*end[-1:], *([known] if isinstance(known, int) else known or [])}
        with self._lock:
            batched = BatchedLora(model, adapter.modules)
            try:
                with torch.no_grad(), batched.applied(stack):
                    output_BT = model.generate(
                        input_ids=input_ids_BT,
                        attention_mask=torch.ones_like(input_ids_BT),
                        max_new_tokens=_MAX_ANSWER_TOKENS,
                        do_sample=False,
                        eos_token_id=sorted(stops) or None,
                        pad_token_id=tokenizer.pad_token_id,
                    )
            finally:
                batched.remove()
        base, adapted = tokenizer.batch_decode(output_BT[:, len(prompt) :], skip_special_tokens=True)
        return base.strip(), adapted.strip()

    def _load(self) -> None:
        try:
            if self._name is None:
                raise LoragenInferError("the generator does not know its language model; name it with --base-model.")
            self._loaded.set_result(load_base_model(self._name, device=self._device))
        except Exception as error:  # noqa: BLE001  # whoever waits for it is told
            self._loaded.set_exception(error)
