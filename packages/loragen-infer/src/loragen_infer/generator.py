"""From prompts to adapters: encoder, generator, statistics and layout in one object.

Legend: B tasks in a batch, P prompts of a task (padded), T token states of a prompt (padded), D width of an embedding,
N tokens of an adapter, W values per token.
"""

import copy
import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.encoder.encoder import PromptEncoder
from loragen_infer.errors import LoragenInferError

__all__ = ["LoraGenerator", "scale_adapter"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoraGenerator:
    """Writes LoRA adapters from prompts with a trained bundle.

    Args:
        bundle: The trained generator; it is left as it is.
        encoder: The prompt encoder that the bundle was trained with.
        device: A torch device for the generator.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``: what the generator computes in. The encoder stays in
            float32, and the adapter is in the dtype that the layout stores.
        compile: Compile the generator with ``torch.compile`` at its first use, which takes from seconds to minutes.

    Raises:
        LoragenInferError: The encoder's embeddings are not as wide as the generator takes, or the dtype is unknown.

    Example:
        .. code-block:: python

            generator = LoraGenerator.from_pretrained("experiments/zoo_20260101_120000")
            adapter = generator.generate(["What is 17 + 25?", "What is 3 + 88?"])
            adapter.save_pretrained("my-adapter")
    """

    def __init__(
        self,
        bundle: GeneratorBundle,
        encoder: PromptEncoder,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        compile: bool = False,  # noqa: A002  # as torch and the command line call it
    ) -> None:
        if bundle.generator.config.condition_dim != encoder.embedding_dim:
            raise LoragenInferError(
                f"The text encoder {encoder.name!r} makes embeddings of {encoder.embedding_dim} values, but the "
                f"generator takes {bundle.generator.config.condition_dim}; use {bundle.text_encoder_name!r}."
            )
        if dtype not in _DTYPES:
            raise LoragenInferError(f"The dtype {dtype!r} is unknown; use one of {', '.join(_DTYPES)}.")
        self.bundle = bundle
        self.encoder = encoder
        self._device = torch.device(device)
        self._dtype = dtype
        network = bundle.generator
        if self._device.type != "cpu" or dtype != "float32":
            network = copy.deepcopy(network).to(self._device)
            for parameter in network.parameters():  # and not the running mean, whose sums need float32
                parameter.data = parameter.data.to(_DTYPES[dtype])
        self._network = torch.compile(network, dynamic=True) if compile else network
        self._is_compiled = compile

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        compile: bool = False,  # noqa: A002
        cache_dir: Path | None = None,
    ) -> "LoraGenerator":
        """Load a bundle (a file, a ``final_model`` or an experiment folder) and the encoder that it names.

        With ``cache_dir`` the encoder keeps its embeddings there; the other options are those of the class.

        Raises:
            LoragenInferError: The bundle or its encoder is missing or unreadable, or the device cannot be used.
        """
        bundle = GeneratorBundle.load(Path(path))
        encoder = PromptEncoder(
            bundle.text_encoder_name, device=device, cache_dir=cache_dir, state=bundle.text_encoder_state
        )
        return cls(bundle, encoder, device=device, dtype=dtype, compile=compile)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over what an adapter depends on besides its prompts: bundle, encoder, dtype."""
        parts = (self.bundle.fingerprint, self.encoder.fingerprint(), self._dtype)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def generate(self, prompts: Sequence[str], *, scale: float = 1.0) -> LoraAdapter:
        """Return the adapter for the one task that ``prompts``, unlabelled and in any order, describe.

        Args:
            prompts: At least one prompt.
            scale: Factor on the change that the adapter makes to the base model; see :func:`scale_adapter`.

        Raises:
            LoragenInferError: ``prompts`` is empty, one of them has no text, or ``scale`` is no finite number.
        """
        return next(self.generate_many([prompts], scale=scale))

    def generate_many(
        self, batches: Iterable[Sequence[str]], *, batch_size: int = 16, scale: float = 1.0
    ) -> Iterator[LoraAdapter]:
        """Yield one adapter per item of ``batches``, the prompts of a task each, in order.

        ``batches`` may be endless: ``batch_size`` tasks at a time are read, encoded and generated together, and no
        more are held. Against :meth:`generate` the values differ by rounding.

        Raises:
            LoragenInferError: As :meth:`generate`, for the first task that has such prompts.
        """
        if batch_size < 1:
            raise LoragenInferError(f"batch_size is {batch_size}, where a number from 1 belongs.")
        tasks = iter(batches)
        while group := list(itertools.islice(tasks, batch_size)):
            for tokens_NW in self._tokens(group):
                # The values of the adapter share one buffer, so what is not yielded yet is the batch's tokens only.
                yield scale_adapter(self.bundle.layout.decode(self.bundle.stats.denormalize(tokens_NW)), scale)

    @torch.no_grad()
    def _tokens(self, tasks: Sequence[Sequence[str]]) -> torch.Tensor:
        """z-scored tokens, float32 ``[B, N, W]`` on the CPU."""
        for prompts in tasks:
            if isinstance(prompts, str):
                raise LoragenInferError(f"The prompts of a task are the text {prompts[:40]!r}; give a list of texts.")
            if not prompts:
                raise LoragenInferError("There is no prompt to encode; give at least one.")
        condition, mask = self._condition(tasks)
        tokens_BNW: torch.Tensor = self._run_network(condition.to(self._device), mask.to(self._device))
        if not torch.isfinite(tokens_BNW).all():
            raise LoragenInferError(
                f"The generator made NaN or Inf in {self._dtype}; use float32, or train the model again."
            )
        return tokens_BNW.float().cpu()

    def _run_network(self, condition: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not self._is_compiled:
            return self._network(condition, mask)  # type: ignore[no-any-return]
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._network(condition, mask)  # type: ignore[no-any-return]
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise LoragenInferError(f"torch.compile failed ({reason}); leave --compile away.") from error

    def _condition(self, tasks: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``[B, P, D]`` and their mask ``[B, P]``."""
        flat = [prompt for prompts in tasks for prompt in prompts]
        counts = [len(prompts) for prompts in tasks]
        pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        embedding_nD = self.encoder.encode(flat)
        mask = [torch.ones(count, dtype=torch.bool) for count in counts]
        return pad(embedding_nD.split(counts)), pad(mask)  # type: ignore[no-untyped-call]

    def mean_adapter(self) -> LoraAdapter:
        """Return the mean of the training adapters: what generation deviates from, and a baseline to beat."""
        return self.bundle.layout.decode(self.bundle.stats.mean)


def scale_adapter(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    """Return ``adapter`` with ``scale`` times the effect: every B (and the bias of B, where there is one) times it.

    Raises:
        LoragenInferError: ``scale`` is not finite, or the adapter is a DoRA, whose effect is not linear in B.
    """
    if scale == 1:
        return adapter
    if not math.isfinite(scale):
        raise LoragenInferError(f"The scale is {scale}, where a finite number belongs.")
    if adapter.config.use_dora:
        raise LoragenInferError(f"A DoRA adapter cannot be scaled by {scale}: its magnitudes act too; use scale 1.")
    is_b = (".lora_B.", ".lora_embedding_B")
    tensors = {
        name: tensor * scale if any(part in name for part in is_b) else tensor
        for name, tensor in adapter.tensors.items()
    }
    return dataclasses.replace(adapter, tensors=tensors)
