"""The encoder of sentences: text in, L2-normalised sentence embeddings out. Training and inference share this class.

Legend: n prompts, T tokens of a prompt (padded), D width of an embedding.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.encoder.base import PROBE, CachedEncoder, EncoderRecord
from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.models.device import check_device
from loragen_infer.models.locate import LOADING, hub_name, hub_revision, locate_model

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

__all__ = ["PromptEncoder"]

# What changes an embedding and shows neither in a weight nor in a token.
_NETWORK = ("model_type", "hidden_act", "num_attention_heads", "num_hidden_layers", "position_embedding_type")


class PromptEncoder(CachedEncoder):
    """A SentenceTransformer, frozen unless its :attr:`module` is trained.

    Args:
        name: A SentenceTransformer name or folder; see :func:`loragen_infer.models.locate.locate_model` for where it is
            looked for.
        revision: Branch, tag or commit on the hub.
        device: A torch device such as ``"cpu"`` or ``"cuda:0"``.
        cache_dir: Folder of the embedding cache; see :class:`loragen_infer.encoder.base.CachedEncoder`.
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
        super().__init__(cache_dir)
        location = locate_model(name, kind="text encoder", revision=revision)
        check_device(device)
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        try:
            with LOADING:
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
        self._fingerprint = ""
        self._versions: tuple[tuple[int, int], ...] = ()
        # An encoder may be made to put a text such as "query: " before every prompt.
        self._prefix: str = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        marks = self._model.preprocess(["x"], prompt=self._prefix or None)
        self._marks = {key: value for key, value in marks.items() if not hasattr(value, "shape")}

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

    def to(self, device: "str | torch.device") -> None:
        self._model.to(device)

    @property
    def record(self) -> EncoderRecord:
        return EncoderRecord(
            condition="sentence",
            text_encoder_name=self.name,
            text_encoder_revision=self.revision,
            text_encoder_fingerprint=self.fingerprint,
            condition_model_name=None,
            condition_model_fingerprint=None,
        )

    @property
    def max_tokens(self) -> int | None:
        limit: int | None = self._model.max_seq_length
        return limit

    @property
    def _num_added(self) -> int:
        return len(self._prefix.encode()) + 8  # a few special tokens

    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        encoded = self._model.tokenizer([self._prefix + prompt for prompt in prompts], verbose=False)["input_ids"]
        return [len(ids) for ids in encoded]

    def _encoded(self, prompts: list[str], batch_size: int) -> "Iterator[dict[str, torch.Tensor]]":
        # The longest first, so that a batch has little padding and memory runs out at once or never.
        ordered = sorted(prompts, key=len, reverse=True)
        was_training = self._model.training
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            self._model.eval()
            try:
                embedding_nD = self.embed(self._features(batch)).cpu()
            finally:
                self._model.train(was_training)
            yield dict(zip(batch, embedding_nD, strict=True))

    def _features(self, prompts: Sequence[str]) -> "dict[str, torch.Tensor]":
        features = self._model.preprocess(list(prompts), prompt=self._prefix or None)
        return {key: value.to(self.device) for key, value in features.items() if hasattr(value, "shape")}

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
        "probe": model.preprocess([PROBE])["input_ids"].tolist(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for value in model.state_dict().values():
        if value.is_floating_point():  # the others are positions and the like, which not every version keeps
            digest.update(str(tuple(value.shape)).encode())
            digest.update(value.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
