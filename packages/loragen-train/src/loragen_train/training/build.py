"""Builds what a training needs from its configuration: zoo, prompts, condition, generator, objectives, visits."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hyperconv import HyperConvGenerator
from hyperconv.linear import LeftOut
from loragen_infer.encoder import ConditionEncoder, PromptEncoder, load_encoder
from loragen_infer.models.locate import is_same_model
from loragen_infer.zoo import ZooManifest
from torch import Tensor

from loragen_train.configs.fit import DataConfig, FitConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.folder import describe_versions
from loragen_train.prompts.table import TaskPrompts, read_prompts
from loragen_train.training.base_model import load_base
from loragen_train.training.condition import FrozenCondition, PromptTable, TrainedCondition
from loragen_train.training.data import TrainingDataModule
from loragen_train.training.joint import JointAdapter, read_joint, tasks_trained_on
from loragen_train.training.module import GeneratorModule
from loragen_train.training.provenance import check_same_adapters, hash_tasks
from loragen_train.training.start import start_from_ridge
from loragen_train.training.tasks import objectives_of
from loragen_train.training.unseen import UnseenTasks, find_watched, load_watching_model
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.held_out import HeldOutTask
from loragen_train.zoo.tokens import Zoo, read_zoo
from loragen_train.zoo.training_data import TrainingData, read_training_data

__all__ = ["HALF_WEIGHTS", "TrainingSetup", "build_setup"]

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
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
    """Generator, condition and objectives."""
    data: TrainingDataModule
    """What the steps of every phase see, and the validations."""
    joint: JointAdapter | None = None
    """What tasks never seen start from, where that is the zoo's joint adapter."""
    frozen: FrozenModel | None = None
    """The base model, where it is trained through or held-out tasks are watched with it."""
    unseen: UnseenTasks | None = None
    """The held-out tasks that are watched."""
    sample_hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By task, the hashes of the samples that adapters were trained on: its own, and the joint one."""

    def provenance(self) -> dict[str, Any]:
        """Versions, git commit, and hashes of the data: what decides the result besides the configuration."""
        is_through_lm = self.module.config.is_through_lm
        held_out = {"held_out": self.held_out} if self.held_out else {}
        watched = {} if self.unseen is None else {"watched": self.unseen.digest}
        precision = {"lm_precision": self.frozen.precision} if self.frozen is not None and is_through_lm else {}
        joint = {} if self.joint is None else {"joint": self.joint.digest}
        data = _describe_data(self.zoo, self.prompts, is_through_lm=is_through_lm)
        return {"versions": describe_versions(), **data, **joint, **held_out, **watched, **precision}


def build_setup(
    config: FitConfig,
    cache_dir: Path,
    *,
    before: Mapping[str, Any] | None = None,
    device: torch.device = _CPU,
) -> TrainingSetup:
    """Read the data and make the network that ``config`` describes.

    Args:
        config: The training.
        cache_dir: Where tokens and embeddings are kept.
        before: The provenance of the training that is resumed: what was measured then is not measured again.
        device: Where this process trains, so that the base model and the encoder go there.

    Raises:
        LoragenTrainError: Prompts and checkpoints do not belong together, an objective lacks what it needs, or the
            training that is resumed was of other tasks or adapters.
        LoragenInferError: ``zoo.json``, a prompt file, the text encoder or the base model cannot be read.
        LoraTokenizerError: A folder holds no checkpoints.
    """
    training = config.training
    training_data = read_training_data(config.data, need_adapter=not training.can_do_without_adapters)
    data = training_data.data
    prompts = read_prompts(data, training.seed, leave_out=training_data.test_hashes)
    zoo = _named_as_in(training_data.manifest, read_zoo(data, config.model, list(prompts.train), cache_dir))
    if before is not None:
        check_same_adapters(before, _describe_data(zoo, prompts, is_through_lm=training.is_through_lm))
    joint = _joint_adapter(config, training_data.manifest, zoo, list(prompts.train), before)
    _warn_of_little_to_learn(zoo)
    sample_hashes = _sample_hashes(training_data, joint)
    seen = frozenset().union(*prompts.train_hashes.values(), *sample_hashes.values())
    watched = find_watched(config, training_data.test_hashes, seen)
    frozen = _base_model(config, training_data, zoo, watched, device, before)
    table = PromptTable(prompts, {task.name: task.prompts for task in watched})
    encoder = load_encoder(
        config.model.parsed_condition,
        text_encoder=config.model.text_encoder_name,
        condition_model=config.model.condition_model or zoo.layout.config.base_model_name_or_path,
        device=str(device),
        cache_dir=cache_dir / "embeddings",
    )
    module, batches = _make_module(config, data, zoo, prompts, table, encoder, joint, frozen)
    unseen = None
    if frozen is not None and watched:
        unseen = UnseenTasks(watched, table.held_out, frozen, zoo, config)
    if joint is not None and not joint.has_folds and unseen is None and config.export.weights == "best":
        logger.warning(
            "The joint adapter has seen the answers that val_loss is of; hold tasks out to choose the weights by, "
            "collect it with joint_folds, or set export.weights to last."
        )
    return TrainingSetup(
        zoo=zoo,
        prompts=prompts,
        held_out=training_data.held_out,
        table=table,
        encoder=encoder,
        module=module,
        data=batches,
        joint=joint,
        frozen=frozen,
        unseen=unseen,
        sample_hashes=sample_hashes,
    )


def _named_as_in(manifest: ZooManifest | None, zoo: Zoo) -> Zoo:
    """``zoo`` with the base model that its ``zoo.json`` names, since adapters may name none, or one each."""
    known_as = zoo.layout.config.base_model_name_or_path
    if manifest is None or not manifest.base_model or (known_as and is_same_model(known_as, manifest.base_model)):
        return zoo
    config = replace(zoo.layout.config, base_model_name_or_path=manifest.base_model)
    return replace(zoo, layout=replace(zoo.layout, config=config))


def _sample_hashes(training_data: TrainingData, joint: JointAdapter | None) -> dict[str, frozenset[str]]:
    """By task, the hashes of the samples that its own adapters and the joint one were trained on."""
    own, of_joint = training_data.adapter_hashes(), {} if joint is None else joint.sample_hashes
    nothing = frozenset[str]()
    return {task: own.get(task, nothing) | of_joint.get(task, nothing) for task in {**own, **of_joint}}


def _describe_data(zoo: Zoo, prompts: TaskPrompts, *, is_through_lm: bool) -> dict[str, Any]:
    return {"layout": zoo.layout.fingerprint, "tasks": hash_tasks(zoo, prompts, with_samples=is_through_lm)}


def _joint_adapter(
    config: FitConfig, manifest: ZooManifest | None, zoo: Zoo, tasks: Sequence[str], before: Mapping[str, Any] | None
) -> JointAdapter | None:
    """What tasks never seen start from, where that is the zoo's joint adapter; a resumed training keeps to it."""
    if manifest is None:
        return None
    begun_with = None if before is None else before.get("joint")
    is_wanted = begun_with is not None
    has_one = manifest.joint is not None
    if before is None and has_one and config.model.unseen_from == "auto" and not config.remembers_tasks:
        logger.info(
            "The zoo's joint adapter is not used: tasks never seen start from it where all of the training is by lm "
            "and the generator remembers its tasks (training.objective, model.remember_tasks)."
        )
    if before is None and config.remembers_tasks:
        # The zoo may have grown since, or this training leave some out.
        num_tasks = len(tasks_trained_on(manifest)) or len(tasks)
        is_wanted = config.model.wants_joint(num_tasks) and (has_one or config.model.unseen_from == "joint")
        if has_one and config.model.unseen_from == "auto" and not is_wanted:
            logger.info(
                "Of %d training tasks a joint adapter is no start for tasks never seen; they start from the "
                "regression (model.unseen_from).",
                num_tasks,
            )
    if not is_wanted:
        return None
    scale = config.model.scale_of_joint(has_folds=bool(manifest.joint_folds))
    joint = read_joint(manifest, zoo, tasks, scale=scale, lora_alpha=config.data.lora_alpha)
    if begun_with is not None and joint.digest != begun_with:
        raise LoragenTrainError(
            f"The joint adapter of {manifest.folder} is not the one that the training was begun with; train anew with "
            "no --resume, or put it back."
        )
    return joint


def _base_model(
    config: FitConfig,
    training_data: TrainingData,
    zoo: Zoo,
    watched: Sequence[HeldOutTask],
    device: torch.device,
    before: Mapping[str, Any] | None,
) -> FrozenModel | None:
    """The model of the adapters, where it is trained through or held-out tasks are watched with it."""
    if config.training.is_through_lm:
        known = (before or {}).get("lm_precision")
        return load_base(config.training.lm, training_data, zoo.layout, device, known_precision=known)
    return load_watching_model(config, zoo, watched, device) if watched else None


def _make_module(
    config: FitConfig,
    data: DataConfig,
    zoo: Zoo,
    prompts: TaskPrompts,
    table: PromptTable,
    encoder: ConditionEncoder,
    joint: JointAdapter | None,
    frozen: FrozenModel | None,
) -> tuple[GeneratorModule, TrainingDataModule]:
    """Generator, condition and objectives as they are before the first step, and what each step sees."""
    is_frozen = config.model.freeze_text_encoder
    # The training prompts come first. With a trained encoder the network is centred on how it begins.
    embeddings_nD = encoder.encode(table.texts if is_frozen else table.texts[: table.num_train])
    if is_frozen:
        encoder.to("cpu")  # the device's memory is for what is trained
    generator, left_out = _make_generator(config, zoo, table, embeddings_nD, joint)
    fold_of = {} if joint is None else joint.fold_of
    objectives, visits = objectives_of(config.training, data, zoo, prompts, table, frozen, fold_of)
    module = GeneratorModule(
        generator,
        TrainedCondition(encoder, table.texts)
        if isinstance(encoder, PromptEncoder) and not is_frozen
        else FrozenCondition(embeddings_nD),
        objectives,
        config.training,
        left_out=left_out,
        fold_shift_FNW=joint.shift_FNW if joint is not None and joint.has_folds else None,
        log_every_n_steps=config.logging.every_n_steps,
    )
    return module, TrainingDataModule(visits, config.training)


def _make_generator(
    config: FitConfig, zoo: Zoo, table: PromptTable, embeddings_nD: Tensor, joint: JointAdapter | None
) -> tuple[HyperConvGenerator, LeftOut | None]:
    """The network as it is before the first step, and what leaves a task out of its own regression."""
    network = config.model.network(
        condition_dim=embeddings_nD.shape[1],
        grid=zoo.layout.grid,
        num_tasks=len(zoo.names),
        num_prompted=len(table.train),
        leaves_own_out=config.training.leaves_own_out,
    )
    generator = HyperConvGenerator(network)
    generator.center_on(embeddings_nD[: table.num_train])
    num_prompts = config.data.prompts_per_condition
    left_out = start_from_ridge(generator, zoo, table, embeddings_nD, num_prompts=num_prompts, joint=joint)
    if joint is not None and not joint.has_folds and not network.num_corrections + network.num_hyperconv_blocks:
        logger.warning(
            "Of %d training tasks nothing is learned for tasks never seen but how much of the regression is added to "
            "the joint adapter; train on more, or set model.unseen_from to ridge.",
            len(table.train),
        )
    if (dtype := HALF_WEIGHTS.get(config.training.precision)) is not None:
        for parameter in generator.parameters():
            parameter.data = parameter.data.to(dtype)
    return generator, left_out


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
