"""The prompt encoder: text in, L2-normalised sentence embeddings out. Training and inference share this class.

Legend: n prompts, T tokens of a prompt (padded), D width of an embedding.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.models.device import check_device
from loragen_infer.models.locate import hub_name, hub_revision, locate_model

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

    from loragen_infer.encoder.embedding_cache import EmbeddingCache

__all__ = ["PromptEncoder", "check_prompts"]

logger = logging.getLogger(__name__)

# What changes an embedding and shows neither in a weight nor in a token.
_NETWORK = ("model_type", "hidden_act", "num_attention_heads", "num_hidden_layers", "position_embedding_type")
# Cases, accents, white space, digits, scripts and what is in no vocabulary: where tokenizers differ.
_PROBE = "The quick BROWN fox: naïve Ünïcode\t12,345.60 = x_1  + y² (don't!)\n数学 각 עברית 🙂 http://a.b/c?d=e"


class PromptEncoder:
    """A SentenceTransformer, frozen unless its :attr:`module` is trained.

    Args:
        name: A SentenceTransformer name or folder; see :func:`loragen_infer.models.locate.locate_model` for where it is
            looked for.
        revision: Branch, tag or commit on the hub.
        device: A torch device such as ``"cpu"`` or ``"cuda:0"``.
        cache_dir: Folder of an embedding cache that several processes, training and inference may share; what
            :meth:`encode` returns is kept there for each prompt and weights.
        state: Weights that replace the loaded ones, such as those of a fine-tuned encoder: names of
            ``module.state_dict()``, all or some of them.

    Raises:
        LoragenInferError: The encoder is not found or cannot be loaded, the device cannot be used, or ``state`` has a
            name or a shape that the encoder does not have.

    Example:
        >>> encoder = PromptEncoder("all-MiniLM-L6-v2")
        >>> encoder.encode(["What is 2 + 3?", "Spell 'cat' backward."]).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        name: str = "all-MiniLM-L6-v2",
        *,
        revision: str | None = None,
        device: "str | torch.device" = "cpu",
        cache_dir: Path | None = None,
        state: "Mapping[str, torch.Tensor] | None" = None,
    ) -> None:
        location = locate_model(name, kind="text encoder", revision=revision)
        check_device(device)
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        try:
            self._model = SentenceTransformer(location, device=str(device), revision=revision)
        except (MemoryError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise LoragenInferError(
                f"The text encoder {name!r} ({location}) cannot be loaded as a SentenceTransformer: {reason_of(error)}"
            ) from error
        self._model.eval().requires_grad_(False)
        self.name: str = hub_name(name) or str(Path(name).expanduser().resolve())
        """The hub's name of the encoder, or the absolute path of its folder."""
        # A name of the hub is in its cache by now.
        self.revision: str | None = hub_revision(locate_model(name, kind="text encoder", revision=revision))
        """The hub's commit that it is from; None where that is not known, as of a package."""
        width = self._model.get_embedding_dimension()
        if width is None:
            raise LoragenInferError(f"The text encoder {name!r} does not say how wide its embeddings are.")
        self.embedding_dim: int = width
        if state is not None:
            self._replace_weights(state)
        self._cache_dir = cache_dir
        self._cache: EmbeddingCache | None = None
        self._fingerprint = ""
        self._versions: tuple[tuple[int, int], ...] = ()
        # An encoder may be made to put a text such as "query: " before every prompt.
        self._prefix: str = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        marks = self._model.preprocess(["x"], prompt=self._prefix or None)
        self._marks = {key: value for key, value in marks.items() if not hasattr(value, "shape")}
        self._gathered: Counter[str] | None = None

    @property
    def module(self) -> "SentenceTransformer":
        """The network, an ``nn.Module``; frozen and in eval mode until the caller changes that."""
        return self._model

    @property
    def device(self) -> "torch.device":
        """Where the network is and where :meth:`tokenize` puts its tensors."""
        return self._model.device

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over all that an embedding hangs on: weights as they are now, tokens, pooling, limits.

        Taken from values that are loaded, so it is the same for every copy of an encoder, and with every version of the
        libraries.
        """
        versions = tuple((value.data_ptr(), value._version) for value in self._model.state_dict().values())
        if versions != self._versions:
            self._fingerprint, self._versions = _content_fingerprint(self._model, self._prefix), versions
        return self._fingerprint

    def encode(self, prompts: Sequence[str], *, batch_size: int = 32) -> "torch.Tensor":
        """Return the embeddings of ``prompts``, float32 ``[n, D]`` of length one, on the CPU and without gradient.

        A prompt longer than the encoder takes is truncated by it; one warning says how many were and how much is lost.

        Raises:
            LoragenInferError: ``prompts`` is empty, or one of them has no text.
        """
        import torch

        self._check(prompts)
        different = list(dict.fromkeys(prompts))
        cache = self._current_cache()
        found = cache.read(different) if cache is not None else {}
        # The longest first, so that a batch has little padding and memory runs out at once or never.
        missing = sorted((prompt for prompt in different if prompt not in found), key=len, reverse=True)
        was_training = self._model.training
        self._model.eval()
        try:
            # Not inference_mode, whose tensors no layer that trains can take.
            with torch.no_grad():
                for start in range(0, len(missing), batch_size):
                    batch = missing[start : start + batch_size]
                    fresh = dict(zip(batch, self.embed(self._features(batch)).cpu(), strict=True))
                    found |= fresh
                    if cache is not None:
                        cache.write(fresh)
        finally:
            self._model.train(was_training)
        return torch.stack([found[prompt] for prompt in prompts])

    def tokenize(self, prompts: Sequence[str]) -> "dict[str, torch.Tensor]":
        """Return what :meth:`embed` takes: ``input_ids``, ``attention_mask`` and the like, ``[n, T]``, on the device.

        Raises:
            LoragenInferError: As :meth:`encode`.
        """
        self._check(prompts)
        return self._features(prompts)

    def embed(self, features: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return the embeddings of tokenised prompts, float32 ``[n, D]`` of length one, on the device.

        Gradients flow to the parameters of :attr:`module` that ask for them, and dropout is on if it is in train mode.
        """
        import torch

        embedding_nD = self._model({**self._marks, **features})["sentence_embedding"]
        return torch.nn.functional.normalize(embedding_nD.float(), dim=1)

    @contextmanager
    def one_truncation_warning(self) -> Iterator[None]:
        """Within the block the truncations of all calls are gathered, and one warning at its end says their sum."""
        self._gathered = Counter()
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            self._warn(gathered)

    def _features(self, prompts: Sequence[str]) -> "dict[str, torch.Tensor]":
        features = self._model.preprocess(list(prompts), prompt=self._prefix or None)
        return {key: value.to(self.device) for key, value in features.items() if hasattr(value, "shape")}

    def _check(self, prompts: Sequence[str]) -> None:
        check_prompts(prompts)
        found = Counter(read=len(prompts))
        limit = self._model.max_seq_length
        if limit is not None:
            # Apart from a few special tokens every token takes at least one byte, so most prompts need no counting.
            suspects = [
                text for text in (self._prefix + prompt for prompt in prompts) if len(text.encode()) > limit - 8
            ]
            encoded = self._model.tokenizer(suspects, verbose=False)["input_ids"] if suspects else []
            over = [len(ids) - limit for ids in encoded if len(ids) > limit]
            found.update(cut=len(over), tokens=sum(over))
        if self._gathered is None:
            self._warn(found)
        else:
            self._gathered += found

    def _warn(self, found: Counter[str]) -> None:
        if found["cut"]:
            logger.warning(
                "%d of %d prompts are longer than the %d tokens that %s reads: %d tokens are ignored.",
                *(found["cut"], found["read"], self._model.max_seq_length, self.name, found["tokens"]),
            )

    def _replace_weights(self, state: "Mapping[str, torch.Tensor]") -> None:
        try:
            unexpected = self._model.load_state_dict(state, strict=False).unexpected_keys
            reason = f"it has no weight {unexpected[0]!r}" if unexpected else ""
        except RuntimeError as error:  # another shape
            reason = str(error).splitlines()[-1].strip().rstrip(".")
        if reason:
            raise LoragenInferError(
                f"The fine-tuned weights are not of the text encoder {self.name!r}: {reason}; use the encoder that "
                "they were made from."
            )

    def _current_cache(self) -> "EmbeddingCache | None":
        """The cache of the weights as they are now: after a training step it is another one."""
        if self._cache_dir is None:
            return None
        if self._cache is None or self._cache.identity != self.fingerprint:
            from loragen_infer.encoder.embedding_cache import EmbeddingCache

            self._cache = EmbeddingCache(self._cache_dir, identity=self.fingerprint)
        return self._cache


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise LoragenInferError if there is no prompt, or one is blank or holds a lone surrogate."""
    if not prompts:
        raise LoragenInferError("There is no prompt to encode; give at least one.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise LoragenInferError(f"Prompt {number} of {len(prompts)} has no text; remove it or fill it in.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise LoragenInferError(
                f"Prompt {number} of {len(prompts)} holds half a character (a lone surrogate, at place "
                f"{error.start + 1}); mend it."
            ) from error


def _content_fingerprint(model: "SentenceTransformer", prefix: str) -> str:
    import torch

    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    facts = {
        "modules": [type(module).__name__ for module in model.children()],
        "pooling": [getattr(module, "pooling_mode", None) for module in model.children()],
        "network": {key: getattr(config, key, None) for key in _NETWORK},
        "max_seq_length": model.max_seq_length,
        "prefix": prefix,
        "vocabulary": sorted(model.tokenizer.get_vocab().items()),
        "probe": model.preprocess([_PROBE])["input_ids"].tolist(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for value in model.state_dict().values():
        if value.is_floating_point():  # the others are positions and the like, which not every version keeps
            digest.update(str(tuple(value.shape)).encode())
            digest.update(value.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
