"""The bundle: one safetensors file that holds all a generator needs, written by training and read by inference.

Tensors ``generator.*`` are the weights, ``stats.*`` the token statistics, ``text_encoder.*`` the weights of a
fine-tuned encoder, ``tasks.*`` the means of the training tasks; the metadata holds format version, generator config,
token layout, encoder name and the versions that wrote it, and a SHA-256 of the file. Nothing in it is code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from lora_tokenizer import TokenLayout, TokenStats
from safetensors import SafetensorError

from loragen_infer.bundle.sealed_file import read_sealed, write_sealed
from loragen_infer.bundle.training_tasks import TrainingTasks
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.task_means import TaskMeans
from loragen_infer.files import atomic_file

__all__ = ["BUNDLE_NAME", "ConditionKind", "GeneratorBundle", "find_bundle"]

BUNDLE_NAME = "generator.safetensors"
ConditionKind = Literal["sentence", "tokens"]
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
    """Name or folder of the SentenceTransformer whose embeddings are the generator's condition."""
    text_encoder_state: Mapping[str, torch.Tensor] | None = None
    """Weights that replace those of the text encoder, where it was trained along; names of its ``state_dict()``."""
    condition_kind: ConditionKind = "sentence"
    """What the generator was trained on: sentence embeddings, or token states as ``PromptEncoder.encode_tokens`` gives
    them."""
    tasks: TaskMeans | None = None
    """Means of the training tasks, for the baselines of an evaluation."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Whatever else should be known of its origin, such as the name of the experiment; shown, never acted on."""

    @property
    def training_tasks(self) -> TrainingTasks | None:
        """What training saw, where it is known."""
        return None if self.tasks is None else TrainingTasks(names=self.tasks.names)

    @property
    def format_version(self) -> int:
        """Version of the file: 2 where a reader of version 1 would generate something else, otherwise 1."""
        return 1 if self.text_encoder_state is None and self.condition_kind == "sentence" else 2

    def save(self, path: Path) -> Path:
        """Write the bundle to the file ``path``, whole or not at all, and return it; equal bundles give equal bytes."""
        tensors = {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        tensors |= {f"stats.{name}": value for name, value in self.stats.to_tensors().items()}
        metadata = {
            "format": "loragen-bundle",
            "format_version": str(self.format_version),
            "generator_config": json.dumps(self.generator.config.to_dict()),
            "layout": self.layout.to_json(),
            "text_encoder_name": self.text_encoder_name,
            "versions": json.dumps({package: version(package) for package in _PACKAGES}),
        }
        if self.text_encoder_state is not None:
            tensors |= {f"text_encoder.{name}": value for name, value in self.text_encoder_state.items()}
        if self.condition_kind != "sentence":
            metadata["condition_kind"] = self.condition_kind
        if self.tasks is not None:
            tensors |= {f"tasks.{name}": value for name, value in self.tasks.to_tensors().items()}
            metadata["task_names"] = self.tasks.names_json()
        if self.provenance:
            metadata["provenance"] = json.dumps(dict(self.provenance), sort_keys=True)
        with atomic_file(path) as part:
            try:
                write_sealed(part, _separate(tensors), metadata)
            except SafetensorError as error:  # how a full disk comes back
                raise LoragenInferError(
                    f"{path} cannot be written: {error}; choose another place or free it."
                ) from error
        return path

    @classmethod
    def load(cls, path: Path) -> "GeneratorBundle":
        """Read a bundle: the file itself, or a ``final_model`` or experiment folder that holds one.

        Raises:
            LoragenInferError: There is no bundle, it is damaged, or it is of a newer format than this version reads.
        """
        file = find_bundle(path)
        tensors, metadata = read_sealed(file)
        if metadata.get("format") != "loragen-bundle":
            raise LoragenInferError(f"{file} is a safetensors file but no generator bundle; give one that fit wrote.")
        try:
            found = int(metadata["format_version"])
            if found > _NEWEST_FORMAT:
                raise LoragenInferError(
                    f"{file} has bundle format {found}, newer than {_NEWEST_FORMAT}; upgrade with: "
                    "pip install -U loragen-infer."
                )
            bundle = cls._from_parts(tensors, metadata)
        # The errors of the siblings are ValueErrors, and so is bad JSON.
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise LoragenInferError(f"{file} is a damaged bundle ({reason}); copy or train it again.") from error
        return bundle

    @classmethod
    def _from_parts(cls, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> "GeneratorBundle":
        kind = metadata.get("condition_kind", "sentence")
        if kind not in get_args(ConditionKind):
            raise ValueError(f"its condition kind is {kind!r}, not {' or '.join(get_args(ConditionKind))}")
        provenance = json.loads(metadata.get("provenance", "{}"))
        if not isinstance(provenance, dict):
            raise TypeError("its provenance is no JSON object")
        tasks = None
        if "task_names" in metadata:
            try:
                tasks = TaskMeans.from_tensors(metadata["task_names"], _with_prefix(tensors, "tasks."))
            except LoragenInferError as error:
                raise ValueError(str(error).rstrip(".")) from error
        bundle = cls(
            generator=_build_generator(json.loads(metadata["generator_config"]), tensors),
            layout=TokenLayout.from_json(metadata["layout"]),
            stats=TokenStats.from_tensors(_with_prefix(tensors, "stats.")),
            text_encoder_name=metadata["text_encoder_name"],
            text_encoder_state=_with_prefix(tensors, "text_encoder.") or None,
            condition_kind=kind,  # type: ignore[arg-type]  # one of them, as checked above
            tasks=tasks,
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
        if self.tasks is not None:
            sizes["task means"] = tuple(self.tasks.token_means.shape[1:])
        if len(set(sizes.values())) > 1:
            raise ValueError("its parts differ in the tokens: " + ", ".join(f"{k} {v}" for k, v in sizes.items()))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any weight, statistic or the layout: all of it that generates.

        The text encoder counts only where it was trained along; its name may be a folder that is not the same
        everywhere.
        """
        digest = hashlib.sha256(self.layout.fingerprint.encode())
        states = {**self.generator.state_dict(), **self.stats.to_tensors()}
        if self.format_version > 1:
            digest.update(self.condition_kind.encode())
            states |= {f"text_encoder.{name}": value for name, value in (self.text_encoder_state or {}).items()}
        for name in sorted(states):
            digest.update(name.encode())
            digest.update(states[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def find_bundle(path: Path) -> Path:
    """Return the bundle file that ``path`` (a file, a ``final_model`` folder or an experiment folder) means.

    Raises:
        LoragenInferError: There is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for candidate in (path / BUNDLE_NAME, path / "results" / "final_model" / BUNDLE_NAME):
        if candidate.is_file():
            return candidate
    if not path.exists():
        raise LoragenInferError(f"The model {path} does not exist; give a bundle, a final_model or experiment folder.")
    raise LoragenInferError(f"{path} holds no {BUNDLE_NAME}; give a bundle, a final_model or an experiment folder.")


def _build_generator(values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> HyperConvGenerator:
    config = GeneratorConfig.from_dict(values)
    weights = _with_prefix(tensors, "generator.")
    # A config may claim any size; nothing is built that the file does not hold the weights of.
    if config.num_parameters() > sum(weight.numel() for weight in weights.values()):
        raise ValueError(f"its generator config needs {config.num_parameters():,} parameters, more than it holds")
    # Random weights that are replaced at once would take longer than all the rest. The copies lie as torch lays out its
    # own tensors; on those that the file maps, at any address, kernels round otherwise in the last bit.
    generator = HyperConvGenerator(config, device="meta")
    copies = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}
    generator.load_state_dict(copies, assign=True)
    return generator.eval()


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors of which no two share memory, as the format demands."""
    separate: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        separate[name] = plain.clone() if plain.data_ptr() in places else plain
        places.add(plain.data_ptr())
    return separate


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
