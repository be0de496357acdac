"""Builds what a training needs from its configuration: zoo, prompts, condition, generator, data."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from loragen_infer.encoder.encoder import PromptEncoder

from loragen_train.configs.fit import FitConfig
from loragen_train.experiments.folder import describe_versions, digest
from loragen_train.prompts.table import TaskPrompts, read_prompts
from loragen_train.training.condition import FrozenCondition, PromptTable, TrainedCondition
from loragen_train.training.module import GeneratorModule
from loragen_train.training.pairs import ZooDataModule
from loragen_train.zoo.tokens import Zoo, read_zoo

__all__ = ["Parts", "build_parts", "cache_folder", "default_device", "is_first_process"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything of a training but the trainer."""

    zoo: Zoo
    """The tokenized checkpoints."""
    prompts: TaskPrompts
    """The prompts of every task."""
    table: PromptTable
    """The same under one numbering."""
    encoder: PromptEncoder
    """The text encoder."""
    module: GeneratorModule
    """Generator, condition and loss."""
    data: ZooDataModule
    """The pairs."""

    def provenance(self) -> dict[str, Any]:
        """Versions, git commit, and hashes of the data: what decides the result besides the configuration."""
        tasks = {
            task: {
                "prompts": self.prompts.sha256(task),
                "checkpoints": digest(self.zoo.content_hashes(task)),
            }
            for task in self.zoo.names
        }
        return {"versions": describe_versions(), "layout": self.zoo.layout.fingerprint, "tasks": tasks}


@contextmanager
def cache_folder(config: FitConfig, *, keep: bool = True) -> Iterator[Path]:
    """Yield the folder for tokens and embeddings; a temporary one where nothing shall be kept."""
    if keep and config.data.cache_tokenized:
        chosen = config.data.cache_dir or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/loragen"
        yield Path(chosen).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="loragen-") as folder:
        yield Path(folder)


def default_device(accelerator: str) -> torch.device:
    """The device that this process trains on, in so far as that is known before the trainer is made."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None or accelerator == "cpu":
        return torch.device("cpu")
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))


def is_first_process() -> bool:
    """Whether this is the process that writes, by the variables of torchrun, SLURM or Lightning's own launcher."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ:
        return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"
    return os.environ.get("SLURM_PROCID", "0") == "0"


def build_parts(config: FitConfig, cache_dir: Path) -> Parts:
    """Read the data and make the network that ``config`` describes.

    Raises:
        LoragenTrainError: Prompts and checkpoints do not belong together.
        LoragenInferError: A prompt file or the text encoder cannot be read.
        LoraTokenizerError: A folder holds no checkpoints.
    """
    prompts = read_prompts(config.data, config.training.seed)
    zoo = read_zoo(config.data, config.model, list(prompts.train), cache_dir)
    table = PromptTable(prompts)
    device = str(default_device(config.training.accelerator))
    encoder = PromptEncoder(config.model.text_encoder_name, device=device, cache_dir=cache_dir / "embeddings")
    embeddings_nD = encoder.encode(table.texts)
    condition: FrozenCondition | TrainedCondition
    if config.model.freeze_text_encoder:
        condition = FrozenCondition(embeddings_nD)
    else:
        condition = TrainedCondition(encoder, table.texts)
    generator = _make_generator(config, zoo, encoder.embedding_dim)
    generator.center_on(embeddings_nD[: table.num_train])
    module = GeneratorModule(generator, condition, zoo.layout, zoo.stats, config.training)
    data = ZooDataModule(
        zoo,
        train=table.train,
        val=table.val,
        config=config.data,
        seed=config.training.seed,
        num_workers=config.training.num_workers,
    )
    return Parts(zoo=zoo, prompts=prompts, table=table, encoder=encoder, module=module, data=data)


def _make_generator(config: FitConfig, zoo: Zoo, condition_dim: int) -> HyperConvGenerator:
    num_layers, tokens_per_layer, token_dim = zoo.layout.grid
    return HyperConvGenerator(
        GeneratorConfig(
            condition_dim=condition_dim,
            hidden_dim=config.model.hidden_dim,
            grid=(num_layers, tokens_per_layer),
            output_dim=token_dim,
            num_hyperconv_blocks=config.model.num_hyperconv_blocks,
            kernel_size=config.model.kernel_size,
        )
    )
