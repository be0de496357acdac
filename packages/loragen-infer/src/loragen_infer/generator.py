"""From prompts to adapters: encoder, generator, statistics and layout in one object.

Legend: B tasks in a batch, P prompts of a task (padded), D width of an embedding, N tokens of an adapter, W values per
token.
"""

import copy
import dataclasses
import hashlib
import itertools
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from lora_tokenizer import LoraAdapter
from lora_tokenizer.io.finite import find_not_finite
from torch.nn.utils.rnn import pad_sequence

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.bundle.bundle_file import BUNDLE_NAME, find_bundle
from loragen_infer.bundle.encoder_match import check_encoder, load_encoder_of
from loragen_infer.encoder.base import ConditionEncoder, check_prompts
from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.models.device import as_dtype, check_device, dtype_name
from loragen_infer.models.locate import hub_name
from loragen_infer.words import counted

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["LoraGenerator", "check_scale", "scale_adapter"]

logger = logging.getLogger(__name__)


class LoraGenerator:
    """Writes LoRA adapters from prompts with a trained bundle.

    Hub methods have the names of huggingface_hub's ``ModelHubMixin`` but are not the mixin's: it would copy the bundle,
    a dataclass, into a ``config.json``, and push a part of the files at a time.

    Args:
        bundle: The trained generator; it is left as it is.
        encoder: The prompt encoder that the bundle was trained with.
        device: A torch device for the generator.
        dtype: What the generator computes in: float32, bfloat16 or float16. Encoder and adapter keep theirs.
        compile: Compile the generator with ``torch.compile`` at its first use, which takes from seconds to minutes.

    Raises:
        LoragenInferError: The encoder is not the one that the bundle was trained with, or the dtype is unknown.

    Example:
        .. code-block:: python

            generator = LoraGenerator.from_pretrained("experiments/zoo_20260101_120000")
            adapter = generator.generate(["What is 17 + 25?", "What is 3 + 88?"])
            adapter.save_pretrained("my-adapter")
    """

    def __init__(
        self,
        bundle: GeneratorBundle,
        encoder: ConditionEncoder,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        compile: bool = False,  # noqa: A002  # as torch and the command line call it
    ) -> None:
        check_encoder(bundle, encoder)
        # A model that lies in a cache or a package is called as on the hub, which is the same on every machine.
        name = bundle.base_model and hub_name(bundle.base_model)
        self.bundle = bundle.with_base_model(name) if name else bundle
        self.encoder = encoder
        self._is_compiled = compile
        self._evaluation: Path | None = None
        self._place(torch.device(device), as_dtype(dtype))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        compile: bool = False,  # noqa: A002
        cache_dir: Path | None = None,
        condition_model: str | None = None,
    ) -> Self:
        """Load a bundle and the encoder that it names.

        ``path`` is a bundle, a ``final_model`` or an experiment folder, or (at ``revision``) a hub repository with a
        bundle, which ``token`` (default: that of ``hf auth login`` or ``HF_TOKEN``) may read; ``cache_dir`` is where
        the encoder keeps its embeddings. ``condition_model`` is where the base model is, for a bundle that is
        conditioned on its states; by default where the bundle says. The other options, and the
        errors, are those of the class, :meth:`GeneratorBundle.load` and :func:`load_encoder_of`.
        """
        from loragen_infer.hub.model_card import find_evaluation

        file = find_bundle(path, revision=revision, token=token)
        bundle = GeneratorBundle.load(file)
        encoder = load_encoder_of(
            bundle, file.parent, device=device, cache_dir=cache_dir, condition_model=condition_model
        )
        generator = cls(bundle, encoder, device=device, dtype=dtype, compile=compile)
        generator._evaluation = find_evaluation(file)
        return generator

    def save_pretrained(self, folder: str | Path, *, evaluation: str | Path | None = None) -> Path:
        """Write the bundle, as safetensors, and its model card into ``folder``, which is made where it is missing.

        ``evaluation`` is a folder with the ``evaluation.json`` and ``evaluation.png`` of ``loragen-infer evaluate``,
        for the card; by default that beside the bundle or in its experiment, where there is one. A card that is there
        stays.

        Returns:
            The folder.

        Raises:
            LoragenInferError: ``evaluation`` has no ``evaluation.json``, or the folder cannot be written to.
        """
        return self._save(Path(folder), name="path/of/this/folder", evaluation=evaluation)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Push a generator of LoRA adapters",
        token: str | None = None,
        evaluation: str | Path | None = None,
    ) -> str:
        """Push what :meth:`save_pretrained` writes to the hub, in one commit, and return the commit's URL.

        The arguments and errors are those of :func:`loragen_infer.hub.pushing.push_folder`; ``evaluation`` is that of
        :meth:`save_pretrained`.

        Example:
            .. code-block:: python

                generator.push_to_hub("ada/sums", private=True)
                generator = LoraGenerator.from_pretrained("ada/sums")
        """
        from loragen_infer.hub.pushing import check_push, push_folder

        check_push(repo_id)
        bundle = self._with_hub_names()
        for name in (bundle.base_model, bundle.text_encoder_name, bundle.condition_model_name):
            if name is not None and hub_name(name) is None:
                logger.warning("The generator names the model %s of this machine, which others do not have.", name)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), name=repo_id, evaluation=evaluation)
            return push_folder(
                Path(folder), repo_id, private=private, revision=revision, commit_message=commit_message, token=token
            )

    def _save(self, folder: Path, *, name: str, evaluation: str | Path | None) -> Path:
        from loragen_infer.hub.model_card import EVALUATION_NAME, write_card

        results = self._evaluation if evaluation is None else Path(evaluation)
        if evaluation is not None and not (Path(evaluation) / EVALUATION_NAME).is_file():
            raise LoragenInferError(f"{evaluation} holds no {EVALUATION_NAME}; give the output_dir of an evaluation.")
        bundle = self._with_hub_names()
        bundle.save(folder / BUNDLE_NAME)
        write_card(folder, bundle, name=name, evaluation=results)
        return folder

    def _with_hub_names(self) -> GeneratorBundle:
        """The bundle with the encoders called as on the hub where they lie in a cache or a package."""
        encoder, model = self.bundle.text_encoder_name, self.bundle.condition_model_name
        return dataclasses.replace(
            self.bundle,
            text_encoder_name=encoder and (hub_name(encoder) or encoder),
            condition_model_name=model and (hub_name(model) or model),
        )

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the generator to ``device`` and the encoder with it, let it compute in ``dtype``, and return it."""
        place = self._device if device is None else torch.device(device)
        check_device(place)
        self.encoder.to(place)
        self._place(place, self._dtype if dtype is None else as_dtype(dtype))
        return self

    @property
    def base_model(self) -> str | None:
        """Name of the language model that the adapters belong to."""
        return self.bundle.base_model

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over what an adapter depends on besides its prompts: bundle, encoder, dtype."""
        parts = (self.bundle.fingerprint, self.encoder.fingerprint, str(self._dtype))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def generate(self, prompts: Sequence[str], *, scale: float = 1.0) -> LoraAdapter:
        """Return the adapter for the one task that ``prompts``, unlabelled and in any order, describe.

        ``scale`` is a factor on the change that the adapter makes to the base model; see :func:`scale_adapter`.

        Raises:
            LoragenInferError: ``prompts`` is empty, one of them has no text, ``scale`` is no finite number, or the
                adapter would hold NaN or Inf.
        """
        return next(self.generate_many([prompts], scale=scale))

    def generate_many(
        self, tasks: Iterable[Sequence[str]], *, batch_size: int = 16, scale: float | Iterable[float] = 1.0
    ) -> Iterator[LoraAdapter]:
        """Yield one adapter per item of ``tasks``, the prompts of a task each, in order.

        ``tasks`` may be endless: ``batch_size`` of them at a time are read, encoded and generated together, and no
        more are held. ``scale`` is one for all, or one for each; it may be endless too. Against :meth:`generate` the
        values differ by rounding; its errors are those of the first task that has one.

        Raises:
            LoragenInferError: As :meth:`generate`, ``batch_size`` is below 1, or ``scale`` has another length than
                ``tasks``, or ends before them.
        """
        if batch_size < 1:
            raise LoragenInferError(f"batch_size is {batch_size}, where a number from 1 belongs.")
        way_out = "give one for each, or a single number for all."
        if isinstance(scale, Sized) and isinstance(tasks, Sized) and len(scale) != len(tasks):
            counts = f"{counted(len(scale), 'value')} for {counted(len(tasks), 'task')}"
            raise LoragenInferError(f"scale has {counts}; {way_out}")
        source = iter(tasks)
        scales = iter(scale) if isinstance(scale, Iterable) else itertools.repeat(float(scale))
        while group := list(itertools.islice(source, batch_size)):
            factors = list(itertools.islice(scales, len(group)))
            if len(factors) < len(group):
                raise LoragenInferError(f"scale has fewer values than there are tasks; {way_out}")
            for tokens_NW, factor in zip(self._tokens(group), factors, strict=True):
                # The values of the adapter share one buffer, so what is not yielded yet is the batch's tokens only.
                adapter = self.bundle.layout.decode(self.bundle.stats.denormalize(tokens_NW))
                yield _finite(scale_adapter(adapter, factor), factor)

    def add_to(
        self,
        model: "PreTrainedModel | PeftModel",
        prompts: Sequence[str],
        *,
        adapter_name: str = "default",
        scale: float = 1.0,
    ) -> "PeftModel":
        """Generate an adapter and put it on ``model`` in memory: :meth:`generate` and then ``add_adapter``."""
        from loragen_infer.adapters.attach import add_adapter

        return add_adapter(model, self.generate(prompts, scale=scale), adapter_name=adapter_name)

    def mean_adapter(self) -> LoraAdapter:
        """Return the mean of the training adapters: what generation deviates from, and a baseline to beat."""
        return self.bundle.layout.decode(self.bundle.stats.mean)

    def _place(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        network = self.bundle.generator
        if device.type != "cpu" or dtype != torch.float32:
            network = copy.deepcopy(network).to(device)
            for parameter in network.parameters():  # and not the mean of the prompts, which needs float32
                parameter.data = parameter.data.to(dtype)
        self._network = torch.compile(network, dynamic=True) if self._is_compiled else network

    @torch.no_grad()
    def _tokens(self, tasks: Sequence[Sequence[str]]) -> torch.Tensor:
        """z-scored tokens, float32 ``[B, N, W]`` on the CPU."""
        for prompts in tasks:
            if isinstance(prompts, str):
                raise LoragenInferError(f"The prompts of a task are the text {prompts[:40]!r}; give a list of texts.")
            check_prompts(prompts)
        embedding_nD = self.encoder.encode([prompt for prompts in tasks for prompt in prompts])
        counts = [len(prompts) for prompts in tasks]
        condition_BPD = pad_sequence(list(torch.split(embedding_nD, counts)), batch_first=True)
        mask_BP = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        tokens_BNW = self._run_network(condition_BPD.to(self._device), mask_BP.to(self._device))
        if not torch.isfinite(tokens_BNW).all():
            raise LoragenInferError(
                f"The generator made NaN or Inf in {dtype_name(self._dtype)}; use float32, or train the model again."
            )
        return tokens_BNW.float().cpu()

    def _run_network(self, condition_BPD: torch.Tensor, mask_BP: torch.Tensor) -> torch.Tensor:
        if not self._is_compiled:
            return self._network(condition_BPD, mask_BP)  # type: ignore[no-any-return]  # modules return Any
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._network(condition_BPD, mask_BP)  # type: ignore[no-any-return]
        except TorchDynamoException as error:
            raise LoragenInferError(f"torch.compile failed ({reason_of(error)}); leave --compile away.") from error


def check_scale(scale: float) -> None:
    """Raise LoragenInferError if ``scale`` is not finite."""
    if not math.isfinite(scale):
        raise LoragenInferError(f"The scale is {scale}, where a finite number belongs.")


def scale_adapter(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    """Return ``adapter`` with ``scale`` times the effect: every B (and the bias of B, where there is one) times it.

    Raises:
        LoragenInferError: ``scale`` is not finite, or the adapter is a DoRA, whose effect is not linear in B.
    """
    if scale == 1:
        return adapter
    check_scale(scale)
    if adapter.config.use_dora:
        raise LoragenInferError(f"A DoRA adapter cannot be scaled by {scale}: its magnitudes act too; use scale 1.")
    tensors = {
        name: tensor * scale if ".lora_B." in name or ".lora_embedding_B" in name else tensor
        for name, tensor in adapter.tensors.items()
    }
    return dataclasses.replace(adapter, tensors=tensors)


def _finite(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    """Return ``adapter``, whose dtype may be too narrow for what was generated and scaled."""
    name = find_not_finite(adapter)
    if name is not None:
        raise LoragenInferError(
            f"The adapter would hold NaN or Inf: {name} goes beyond {dtype_name(adapter.tensors[name].dtype)} at scale "
            f"{scale:g}; use a smaller scale, or train the model again."
        )
    return adapter
