"""The bundle: all that a generator needs in one file, written by training and read by everything else.

Generator weights and config, token layout and statistics, the text encoder (name, revision, a fingerprint of its
content, and its weights where they were trained), and which tasks training saw. :mod:`loragen_infer.bundle.bundle_file`
says how it lies on disk.
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
from loragen_infer.bundle.training_tasks import TrainingTasks
from loragen_infer.errors import LoragenInferError

__all__ = ["GeneratorBundle"]

_NEWEST_FORMAT = 2
_PACKAGES = ("hyperconv", "lora-tokenizer", "loragen-infer", "torch")


@dataclass(frozen=True, kw_only=True)
class GeneratorBundle:
    """A trained generator with everything that gives its output meaning."""

    generator: HyperConvGenerator
    """The network, in eval mode."""
    layout: TokenLayout
    """Which value of which LoRA tensor each token holds; also the adapter's PEFT config."""
    stats: TokenStats
    """Per-position mean and standard deviation, which undo the z-scoring of the training targets."""
    text_encoder_name: str
    """Hub name or folder of the SentenceTransformer whose embeddings are the generator's condition."""
    text_encoder_revision: str | None = None
    """Commit of the hub that the encoder is from, where it is known."""
    text_encoder_fingerprint: str | None = None
    """``PromptEncoder.fingerprint`` of the encoder, trained weights included; None in bundles of older versions."""
    text_encoder_state: Mapping[str, torch.Tensor] | None = None
    """Weights that replace those of the text encoder, where it was trained along; names of its ``state_dict()``."""
    training_tasks: TrainingTasks | None = None
    """What training saw, where it is known."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Whatever else should be known of its origin, such as the name of the experiment; shown, never acted on."""

    @property
    def format_version(self) -> int:
        """Version of the file: 2 where a reader of version 1 would generate something else, otherwise 1."""
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

        Raises:
            LoragenInferError: The disk refuses.
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
            if content.get("condition_kind", "sentence") != "sentence":
                raise LoragenInferError(
                    f"{file} was trained on {content['condition_kind']!r} as its condition, which is gone since "
                    "loragen-infer 0.1; train it again on sentence embeddings."
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
        bundle = cls(
            generator=_build_generator(content["config"], content["state_dict"]),
            layout=TokenLayout.from_json(content["layout"]),
            stats=TokenStats.from_tensors(content["stats"]),
            text_encoder_name=content["text_encoder_name"],
            text_encoder_revision=content.get("text_encoder_revision"),
            text_encoder_fingerprint=content.get("text_encoder_fingerprint"),
            text_encoder_state=content.get("text_encoder_state") or None,
            training_tasks=None if names is None else TrainingTasks.from_tensors(names, hashes or {}),
            provenance=provenance,
        )
        bundle._check_sizes()
        return bundle

    def _check_sizes(self) -> None:
        num_layers, row_tokens, width = self.layout.grid
        config = self.generator.config
        sizes: dict[str, tuple[int, ...]] = {
            "layout": (num_layers * row_tokens, width),
            "generator": (config.max_seq_len, config.output_dim),
            "statistics": tuple(self.stats.mean.shape),
        }
        if len(set(sizes.values())) > 1:
            raise ValueError("its parts differ in the tokens: " + ", ".join(f"{k} {v}" for k, v in sizes.items()))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with whatever an adapter depends on, but for the prompts.

        That is every weight and statistic, the generator's config and the layout. The text encoder counts only where it
        was trained along; :attr:`text_encoder_fingerprint` is of the encoder as a whole.
        """
        digest = hashlib.sha256(self.layout.fingerprint.encode())
        digest.update(json.dumps(self.generator.config.to_dict(), sort_keys=True).encode())
        states = {**self.generator.state_dict(), **self.stats.to_tensors()}
        states |= {f"text_encoder.{name}": value for name, value in (self.text_encoder_state or {}).items()}
        for name in sorted(states):
            digest.update(name.encode())
            digest.update(states[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


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
