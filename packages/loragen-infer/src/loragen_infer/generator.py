"""From prompts to an adapter: encoder, generator, statistics and layout in one object."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.bundle import GeneratorBundle
from loragen_infer.encoder import PromptEncoder
from loragen_infer.errors import LoragenInferError

__all__ = ["LoraGenerator"]


class LoraGenerator:
    """Writes LoRA adapters from prompts with a trained bundle.

    Args:
        bundle: The trained generator.
        encoder: The prompt encoder that the bundle was trained with.
        device: A torch device for the generator.

    Raises:
        LoragenInferError: The encoder's embeddings are not as wide as the generator takes.

    Example:
        .. code-block:: python

            generator = LoraGenerator.from_pretrained("experiments/zoo_20260101_120000")
            adapter = generator.generate(["What is 17 + 25?", "What is 3 + 88?"])
            write_adapter(adapter, "my-adapter")  # lora_tokenizer.write_adapter
    """

    def __init__(self, bundle: GeneratorBundle, encoder: PromptEncoder, *, device: str = "cpu") -> None:
        if bundle.generator.config.condition_dim != encoder.embedding_dim:
            raise LoragenInferError(
                f"The text encoder {encoder.name!r} makes embeddings of {encoder.embedding_dim} values, but the "
                f"generator takes {bundle.generator.config.condition_dim}; use {bundle.text_encoder_name!r}."
            )
        self.bundle = bundle
        self.encoder = encoder
        self._device = torch.device(device)
        bundle.generator.to(self._device)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "cpu", cache_dir: Path | None = None
    ) -> "LoraGenerator":
        """Load a bundle (a file, a ``final_model`` or an experiment folder) and the encoder that it names.

        With ``cache_dir`` the encoder keeps its embeddings there.

        Raises:
            LoragenInferError: The bundle or its encoder is missing or unreadable.
        """
        bundle = GeneratorBundle.load(Path(path))
        encoder = PromptEncoder(
            bundle.text_encoder_name, device=device, cache_dir=cache_dir, state=bundle.text_encoder_state
        )
        return cls(bundle, encoder, device=device)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str]) -> LoraAdapter:
        """Return the adapter for the one task that ``prompts``, unlabelled and in any order, describe.

        Raises:
            LoragenInferError: ``prompts`` is empty, or one of them has no text.
        """
        condition_BPD = self.encoder.encode(prompts).unsqueeze(0).to(self._device)
        tokens_BNW = self.bundle.generator(condition_BPD)
        return self.bundle.layout.decode(self.bundle.stats.denormalize(tokens_BNW[0].float().cpu()))

    def mean_adapter(self) -> LoraAdapter:
        """Return the mean of the training adapters: what generation deviates from, and a baseline to beat."""
        return self.bundle.layout.decode(self.bundle.stats.mean)
