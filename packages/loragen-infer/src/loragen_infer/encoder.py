"""The prompt encoder: text in, L2-normalised sentence embeddings out. Training and inference share this class."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loragen_infer.device import check_device
from loragen_infer.errors import LoragenInferError
from loragen_infer.locate import locate_model

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT_TEXT_ENCODER", "PromptEncoder"]

logger = logging.getLogger(__name__)

DEFAULT_TEXT_ENCODER = "all-MiniLM-L6-v2"
_MAX_SPECIAL_TOKENS = 8


class PromptEncoder:
    """A frozen SentenceTransformer.

    Args:
        name: A SentenceTransformer name or folder; see :func:`loragen_infer.locate.locate_model` for where it is
            looked for.
        device: A torch device such as ``"cpu"`` or ``"cuda:0"``.

    Raises:
        LoragenInferError: The encoder is not found or cannot be loaded, or the device cannot be used.

    Example:
        >>> encoder = PromptEncoder("all-MiniLM-L6-v2")
        >>> encoder.encode(["What is 2 + 3?", "Spell 'cat' backward."]).shape
        torch.Size([2, 384])
    """

    def __init__(self, name: str = DEFAULT_TEXT_ENCODER, *, device: str = "cpu") -> None:
        location = locate_model(name, kind="text encoder", organisation="sentence-transformers")
        check_device(device)
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(location, device=device)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise LoragenInferError(
                f"The text encoder {name!r} ({location}) cannot be loaded as a SentenceTransformer: {reason}"
            ) from error
        self._model.eval().requires_grad_(False)
        self.name = name
        width = self._model.get_embedding_dimension()
        if width is None:
            raise LoragenInferError(f"The text encoder {name!r} does not say how wide its embeddings are.")
        self.embedding_dim: int = width

    def encode(self, prompts: Sequence[str], *, batch_size: int = 32) -> "torch.Tensor":
        """Return the embeddings of ``prompts``, float32 ``[len(prompts), embedding_dim]``, on the CPU.

        A prompt longer than the encoder takes is truncated by it; one warning says how many were.

        Raises:
            LoragenInferError: ``prompts`` is empty, or one of them has no text.
        """
        if not prompts:
            raise LoragenInferError("There is no prompt to encode; give at least one.")
        for index, prompt in enumerate(prompts):
            if not prompt.strip():
                raise LoragenInferError(f"Prompt {index + 1} of {len(prompts)} has no text; remove it or fill it in.")
        self._warn_about_truncation(prompts)
        embeddings = self._model.encode(
            list(prompts),
            batch_size=batch_size,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return embeddings.detach().float().cpu()

    def _warn_about_truncation(self, prompts: Sequence[str]) -> None:
        limit = self._model.max_seq_length
        if limit is None:
            return
        # Apart from the special tokens every token takes at least one byte, so most prompts need no counting.
        suspects = [prompt for prompt in prompts if len(prompt.encode()) > limit - _MAX_SPECIAL_TOKENS]
        if not suspects:
            return
        lengths = [len(ids) for ids in self._model.tokenizer(suspects, truncation=False, verbose=False)["input_ids"]]
        over = [length for length in lengths if length > limit]
        if over:
            logger.warning(
                "%d of %d prompts are longer than the %d tokens that %s reads (the longest has %d); the rest is "
                "ignored.",
                *(len(over), len(prompts), limit, self.name, max(over)),
            )
