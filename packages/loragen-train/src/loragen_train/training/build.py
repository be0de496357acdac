"""Builds what a training needs from its configuration: zoo, prompts, condition, generator, pairs."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hyperconv import HyperConvGenerator
from loragen_infer.encoder import ConditionEncoder, PromptEncoder, load_encoder

from loragen_train.configs.fit import FitConfig
from loragen_train.experiments.folder import describe_versions
from loragen_train.prompts.table import TaskPrompts, read_prompts
from loragen_train.training.condition import FrozenCondition, PromptTable, TrainedCondition
from loragen_train.training.environment import default_device
from loragen_train.training.module import GeneratorModule
from loragen_train.training.pairs import ZooDataModule
from loragen_train.training.unseen import UnseenTasks, find_watched, load_watching_model
from loragen_train.zoo.tokens import Zoo, read_zoo
from loragen_train.zoo.training_data import read_training_data

__all__ = ["HALF_WEIGHTS", "TrainingSetup", "build_setup"]

logger = logging.getLogger(__name__)

HALF_WEIGHTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Precisions in which the weights of the generator are kept and updated in that dtype; all else stays float32."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Everything of a training but the trainer."""

    zoo: Zoo
    """The tokenized checkpoints."""
    prompts: TaskPrompts
    """The prompts of every task."""
    held_out: list[str]
    """The tasks of which a ``zoo.json`` says that training must see nothing."""
    table: PromptTable
    """The same under one numbering."""
    encoder: ConditionEncoder
    """What makes the condition of prompts."""
    module: GeneratorModule
    """Generator, condition and loss."""
    pairs: ZooDataModule
    """The pairs of checkpoints and prompts to train and to validate with."""
    unseen: UnseenTasks | None = None
    """The held-out tasks that are watched."""

    def provenance(self) -> dict[str, Any]:
        """Versions, git commit, and hashes of the data: what decides the result besides the configuration."""
        tasks = {}
        for task in self.zoo.names:
            checkpoints = "\n".join(self.zoo.content_hashes(task)).encode()
            sha256 = hashlib.sha256(checkpoints).hexdigest()
            tasks[task] = {"prompts": self.prompts.sha256(task), "checkpoints": sha256}
        held_out = {"held_out": self.held_out} if self.held_out else {}
        return {"versions": describe_versions(), "layout": self.zoo.layout.fingerprint, "tasks": tasks, **held_out}


def build_setup(config: FitConfig, cache_dir: Path) -> TrainingSetup:
    """Read the data and make the network that ``config`` describes.

    Raises:
        LoragenTrainError: Prompts and checkpoints do not belong together.
        LoragenInferError: ``zoo.json``, a prompt file or the text encoder cannot be read.
        LoraTokenizerError: A folder holds no checkpoints.
    """
    training_data = read_training_data(config.data)
    data = training_data.data
    prompts = read_prompts(data, config.training.seed, leave_out=training_data.test_hashes)
    zoo = read_zoo(data, config.model, list(prompts.train), cache_dir)
    _warn_of_little_to_learn(zoo)
    watched = find_watched(config, training_data.test_hashes)
    frozen_model = load_watching_model(config, zoo, watched) if watched else None
    table = PromptTable(prompts, {task.name: task.prompts for task in watched})
    device = str(default_device(config.training.accelerator))
    encoder = load_encoder(
        config.model.parsed_condition,
        text_encoder=config.model.text_encoder_name,
        condition_model=config.model.condition_model or zoo.layout.config.base_model_name_or_path,
        device=device,
        cache_dir=cache_dir / "embeddings",
    )
    frozen = config.model.freeze_text_encoder
    # The training prompts come first. With a trained encoder the network is centred on how it begins.
    embeddings_nD = encoder.encode(table.texts if frozen else table.texts[: table.num_train])
    if frozen:
        encoder.to("cpu")  # the device's memory is for what is trained
    network = config.model.network(condition_dim=encoder.embedding_dim, grid=zoo.layout.grid)
    generator = HyperConvGenerator(network)
    generator.center_on(embeddings_nD[: table.num_train])
    if (dtype := HALF_WEIGHTS.get(config.training.precision)) is not None:
        for parameter in generator.parameters():
            parameter.data = parameter.data.to(dtype)
    module = GeneratorModule(
        generator,
        TrainedCondition(encoder, table.texts)
        if isinstance(encoder, PromptEncoder) and not frozen
        else FrozenCondition(embeddings_nD),
        zoo.layout,
        zoo.stats,
        config.training,
        log_every_n_steps=config.logging.every_n_steps,
    )
    training = config.training
    pairs = ZooDataModule(zoo, table, data, seed=training.seed, num_workers=training.num_workers)
    unseen = None if frozen_model is None else UnseenTasks(watched, table.held_out, frozen_model, zoo, config)
    return TrainingSetup(
        zoo=zoo,
        prompts=prompts,
        held_out=training_data.held_out,
        table=table,
        encoder=encoder,
        module=module,
        pairs=pairs,
        unseen=unseen,
    )


def _warn_of_little_to_learn(zoo: Zoo) -> None:
    num_checkpoints, num_tasks = len(zoo.tasks), len(zoo.names)
    contents = {content for task in zoo.names for content in zoo.content_hashes(task)}
    if num_checkpoints == 1:
        logger.warning(
            "The zoo has a single checkpoint, so the generator can only learn to repeat it; add checkpoints."
        )
    elif len(contents) == 1:
        logger.warning(
            "All %d checkpoints of the zoo are the same, so there is nothing to tell apart.", num_checkpoints
        )
    elif num_checkpoints == num_tasks:
        logger.warning(
            "Each task has a single checkpoint, so what is a task's own cannot be told from chance; keep several "
            "checkpoints of each training."
        )
