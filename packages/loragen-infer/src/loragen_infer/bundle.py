"""The bundle: one safetensors file that holds all a generator needs, written by training and read by inference.

Tensors ``generator.*`` are the weights, ``stats.*`` the token statistics; the metadata holds format version,
generator config, token layout, encoder name and the versions that wrote it. Nothing in it is code.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from lora_tokenizer import TokenLayout, TokenStats
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_file

__all__ = ["BUNDLE_NAME", "GeneratorBundle", "find_bundle"]

BUNDLE_NAME = "generator.safetensors"
_FORMAT_VERSION = 1
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

    def save(self, path: Path) -> Path:
        """Write the bundle to the file ``path``, whole or not at all, and return it."""
        tensors = {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        tensors |= {f"stats.{name}": value for name, value in self.stats.to_tensors().items()}
        metadata = {
            "format": "loragen-bundle",
            "format_version": str(_FORMAT_VERSION),
            "generator_config": json.dumps(self.generator.config.to_dict()),
            "layout": self.layout.to_json(),
            "text_encoder_name": self.text_encoder_name,
            "versions": json.dumps({package: version(package) for package in _PACKAGES}),
        }
        with atomic_file(path) as part:
            try:
                save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part, metadata)
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
        try:
            with safe_open(file, framework="pt") as reader:
                metadata = reader.metadata() or {}
                tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118  # no iterator
        except (SafetensorError, OSError) as error:
            raise LoragenInferError(f"{file} is not a readable bundle ({error}); copy or train it again.") from error
        if metadata.get("format") != "loragen-bundle":
            raise LoragenInferError(f"{file} is a safetensors file but no generator bundle; give one that fit wrote.")
        try:
            found = int(metadata["format_version"])
            if found > _FORMAT_VERSION:
                raise LoragenInferError(
                    f"{file} has bundle format {found}, newer than {_FORMAT_VERSION}; upgrade with: "
                    "pip install -U loragen-infer."
                )
            bundle = cls(
                generator=_build_generator(json.loads(metadata["generator_config"]), tensors),
                layout=TokenLayout.from_json(metadata["layout"]),
                stats=TokenStats.from_tensors(_with_prefix(tensors, "stats.")),
                text_encoder_name=metadata["text_encoder_name"],
            )
            bundle._check_sizes()
        # Both siblings' errors are ValueErrors, and so is bad JSON.
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise LoragenInferError(f"{file} is a damaged bundle ({reason}); copy or train it again.") from error
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
        """Sixteen hexadecimal digits that change with any weight, statistic or the layout."""
        digest = hashlib.sha256(self.layout.fingerprint.encode())
        states = {**self.generator.state_dict(), **self.stats.to_tensors()}
        for name in sorted(states):
            digest.update(name.encode())
            digest.update(states[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
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
    generator = HyperConvGenerator(config)
    generator.load_state_dict(weights)
    return generator.eval()


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
