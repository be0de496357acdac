"""The bundle: all that a generator needs in one file, written by training and read by everything else.

:mod:`loragen_infer.bundle.bundle_file` says how it lies on disk.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from lora_tokenizer import TokenLayout, TokenStats

from loragen_infer.bundle.bundle_file import find_bundle, read_bundle_file, write_bundle_file
from loragen_infer.encoder.condition import Condition
from loragen_infer.errors import LoragenInferError

__all__ = ["GeneratorBundle", "TrainingTasks", "read_old_task_means"]

_NEWEST_FORMAT = 3
_PACKAGES = ("hyperconv", "lora-tokenizer", "loragen-infer", "torch")
_HASH_BYTES = 8
_SAMPLES = "samples."


@dataclass(frozen=True, kw_only=True)
class TrainingTasks:
    """The tasks that a generator was trained on, with hashes of their samples.

    The hashes are what lets an evaluation keep to samples that were not trained on; they give no sample away.

    Raises:
        ValueError: A name is no text or there twice, or hashes are of no task or not as ``prompt_hash`` makes them.
    """

    names: tuple[str, ...]
    """Names of the tasks."""
    prompt_hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By task, the ``loragen_infer.samples.prompt_hash`` of every single sample in its training prompts. A task that is
    missing here is one of which nobody knows: bundles of older versions have names only."""
    sample_hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By task, the same of every sample whose response an adapter was trained on that the generator has learned from or
    starts from: the task's own ones, and a joint one. The generator may not have been shown them as prompts."""

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in self.names) or len(set(self.names)) < len(self.names):
            raise ValueError(f"the training tasks are called {list(self.names)!r}, where different texts belong")
        for of_kind in (self.prompt_hashes, self.sample_hashes):
            if strangers := sorted(of_kind.keys() - set(self.names)):
                raise ValueError(f"there are hashes of {strangers[0]!r}, which is no training task")
            if any(len(value) != 2 * _HASH_BYTES for values in of_kind.values() for value in values):
                raise ValueError(f"a hash of a training prompt has not {2 * _HASH_BYTES} digits")

    def seen(self, name: str) -> frozenset[str]:
        """Return the hashes of all samples of a task that are known to have been trained on, shown or not."""
        return self.prompt_hashes.get(name, frozenset()) | self.sample_hashes.get(name, frozenset())

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The hashes, uint8 ``[number, 8]`` for each task under its place in ``names``; those of ``sample_hashes`` have
        ``samples.`` before it.
        """
        return {
            f"{kind}{self.names.index(name)}": torch.tensor(
                [list(bytes.fromhex(value)) for value in sorted(values)], dtype=torch.uint8
            ).view(-1, _HASH_BYTES)
            for kind, of_kind in (("", self.prompt_hashes), (_SAMPLES, self.sample_hashes))
            for name, values in of_kind.items()
        }

    @classmethod
    def from_tensors(cls, names: list[str], tensors: Mapping[str, torch.Tensor]) -> "TrainingTasks":
        """The inverse of :meth:`to_tensors`; raises a ValueError as the class."""
        if not isinstance(names, list):
            raise ValueError("the names of the training tasks are no list")
        prompt_hashes, sample_hashes = dict[str, frozenset[str]](), dict[str, frozenset[str]]()
        for key, tensor in tensors.items():
            of_kind = sample_hashes if key.startswith(_SAMPLES) else prompt_hashes
            name = names[int(key.removeprefix(_SAMPLES))]
            of_kind[name] = frozenset(bytes(row).hex() for row in tensor.tolist())
        return cls(names=tuple(names), prompt_hashes=prompt_hashes, sample_hashes=sample_hashes)


@dataclass(frozen=True, kw_only=True)
class GeneratorBundle:
    """A trained generator with everything that gives its output meaning."""

    generator: HyperConvGenerator
    """The network, in eval mode."""
    layout: TokenLayout
    """Which value of which LoRA tensor each token holds; also the adapter's PEFT config."""
    stats: TokenStats
    """Per-position mean and standard deviation, which undo the z-scoring of the training targets."""
    text_encoder_name: str | None
    """Hub name or folder of the SentenceTransformer whose embeddings are the generator's condition; None where it is
    conditioned on states of the base model alone."""
    text_encoder_revision: str | None = None
    """Commit of the hub that the encoder is from, where it is known."""
    text_encoder_fingerprint: str | None = None
    """``PromptEncoder.fingerprint`` of the encoder, trained weights included; None in bundles of older versions."""
    text_encoder_state: Mapping[str, torch.Tensor] | None = None
    """Weights that replace those of the text encoder, where it was trained along; names of its ``state_dict()``."""
    condition: str = "sentence"
    """``sentence``, ``lm:LAYER`` or ``both:LAYER``, the layer a number; see
    :class:`loragen_infer.encoder.condition.Condition`."""
    condition_model_name: str | None = None
    """Hub name or path of the base model whose states are in the condition; None where none are."""
    condition_model_fingerprint: str | None = None
    """``StateEncoder.fingerprint`` of that model, up to that layer."""
    training_tasks: TrainingTasks | None = None
    """What training saw, where it is known."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Whatever else should be known of its origin, such as the name of the experiment; shown, never acted on."""

    @property
    def format_version(self) -> int:
        """Version of the file: 3 with states in the condition, 2 with a trained encoder, otherwise 1.

        A reader of an older version would generate something else, or nothing.
        """
        if self.condition != "sentence":
            return 3
        return 1 if self.text_encoder_state is None else 2

    @property
    def base_model(self) -> str | None:
        """Name of the language model that the adapters belong to."""
        return self.layout.config.base_model_name_or_path

    def with_base_model(self, name: str | None) -> "GeneratorBundle":
        """Return the bundle for adapters that name another base model."""
        config = replace(self.layout.config, base_model_name_or_path=name)
        return replace(self, layout=replace(self.layout, config=config))

    def save(self, path: Path) -> Path:
        """Write the bundle to ``path``, whole or not at all, and return it; equal bundles give equal bytes.

        A path that ends in ``.pt`` becomes a file of ``torch.save``, any other a safetensors file.
        """
        tasks = self.training_tasks
        content = {
            "format_version": self.format_version,
            "state_dict": dict(self.generator.state_dict()),
            "config": self.generator.config.to_dict(),
            "layout": self.layout.to_json(),
            "stats": self.stats.to_tensors(),
            "text_encoder_name": self.text_encoder_name,
            "text_encoder_revision": self.text_encoder_revision,
            "text_encoder_fingerprint": self.text_encoder_fingerprint,
            "text_encoder_state": dict(self.text_encoder_state or {}),
            "condition": self.condition,
            "condition_model_name": self.condition_model_name,
            "condition_model_fingerprint": self.condition_model_fingerprint,
            "training_tasks": None if tasks is None else list(tasks.names),
            "training_task_hashes": {} if tasks is None else tasks.to_tensors(),
            "versions": {package: version(package) for package in _PACKAGES},
            "provenance": dict(self.provenance) or None,
        }
        write_bundle_file(Path(path), content)
        return path

    @classmethod
    def load(cls, path: str | Path, *, revision: str | None = None) -> "GeneratorBundle":
        """Read a bundle: the file itself, the folder that holds one, or a hub name (at ``revision``).

        Raises:
            LoragenInferError: There is no bundle, it is damaged, or it is of a newer format than this version reads.
        """
        file = find_bundle(path, revision=revision)
        content = read_bundle_file(file)
        try:
            found = int(content["format_version"])
            if found > _NEWEST_FORMAT:
                raise LoragenInferError(
                    f"{file} has bundle format {found}, newer than {_NEWEST_FORMAT}; upgrade with: "
                    "pip install -U loragen-infer."
                )
            if (kind := content.get("condition_kind", "sentence")) != "sentence":
                raise LoragenInferError(
                    f"{file} was trained on {kind!r} as its condition, which is gone since loragen-infer 0.1; train it "
                    "again on sentence embeddings."
                )
            return cls._from_content(content)
        # The errors of the siblings are ValueErrors.
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise LoragenInferError(f"{file} is a damaged bundle ({reason}); copy or train it again.") from error

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> "GeneratorBundle":
        provenance = content.get("provenance", {})
        if not isinstance(provenance, dict):
            raise TypeError("its provenance is no JSON object")
        # Older bundles hold the means of their training tasks, and with them the names.
        names, hashes = content.get("training_tasks", content.get("task_names")), content.get("training_task_hashes")
        generator = _build_generator(content["config"], content["state_dict"])
        layout = TokenLayout.from_json(content["layout"])
        # Copied out of the file, which may be replaced while a server is running.
        stats = TokenStats.from_tensors({name: tensor.clone() for name, tensor in content["stats"].items()})
        num_layers, row_tokens, width = layout.grid
        sizes: dict[str, tuple[int, ...]] = {
            "layout": (num_layers * row_tokens, width),
            "generator": (generator.config.max_seq_len, generator.config.output_dim),
            "statistics": tuple(stats.mean.shape),
        }
        if len(set(sizes.values())) > 1:
            raise ValueError("its parts differ in the tokens: " + ", ".join(f"{k} {v}" for k, v in sizes.items()))
        # Bundles of older versions know one condition.
        condition = Condition.parse(content.get("condition", "sentence"))
        return cls(
            generator=generator,
            layout=layout,
            stats=stats,
            text_encoder_name=None if condition.kind == "lm" else content["text_encoder_name"],
            text_encoder_revision=content.get("text_encoder_revision"),
            text_encoder_fingerprint=content.get("text_encoder_fingerprint"),
            text_encoder_state=content.get("text_encoder_state") or None,
            condition=str(condition),
            condition_model_name=None if condition.kind == "sentence" else content["condition_model_name"],
            condition_model_fingerprint=content.get("condition_model_fingerprint"),
            training_tasks=None if names is None else TrainingTasks.from_tensors(names, hashes or {}),
            provenance=provenance,
        )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with whatever an adapter depends on, but for the prompts.

        That is every weight and statistic, the generator's config, the layout, and the condition. The text encoder
        counts only where it was trained along; :attr:`text_encoder_fingerprint` is of the encoder as a whole, as
        :attr:`condition_model_fingerprint` is of the base model's part in the condition.
        """
        digest = hashlib.sha256(self.layout.fingerprint.encode())
        digest.update(json.dumps(self.generator.config.to_dict(), sort_keys=True).encode())
        if self.condition != "sentence":  # as older versions know none but this
            digest.update(self.condition.encode())
        states = {**self.generator.state_dict(), **self.stats.to_tensors()}
        states |= {f"text_encoder.{name}": value for name, value in (self.text_encoder_state or {}).items()}
        for name in sorted(states):
            digest.update(name.encode())
            digest.update(states[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def read_old_task_means(path: str | Path) -> "tuple[list[str], dict[str, torch.Tensor]] | None":
    """Return the training tasks' names and means that a bundle of an older version holds; None: it holds none.

    The tensors, mapped from the file, are ``condition_means`` ``[K, D]`` and ``token_means`` ``[K, N, W]``.

    Raises:
        LoragenInferError: There is no bundle, or it is damaged.
    """
    content = read_bundle_file(find_bundle(path))
    return (content["task_names"], content["task_means"]) if content.get("task_means") else None


def _build_generator(values: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> HyperConvGenerator:
    config = GeneratorConfig.from_dict(values)
    # A config may claim any size. Built on "meta" a tensor of any size costs nothing, but a block does.
    if config.num_hyperconv_blocks > len(weights):
        raise ValueError(f"its generator config has {config.num_hyperconv_blocks} blocks, more than it holds weights")
    # Random weights that are replaced at once would take longer than all the rest. The copies lie as torch lays out its
    # own tensors; on those that the file maps, at any address, kernels round otherwise in the last bit.
    generator = HyperConvGenerator(config, device="meta")
    copies = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}
    generator.load_state_dict(copies, assign=True)
    return generator.eval()
