"""Trains a generator: zoo and prompts in, an experiment folder (see experiment.py) with the bundle out."""

import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from loragen_infer.bundle import BUNDLE_NAME, TORCH_BUNDLE_NAME, GeneratorBundle, TrainingTasks
from loragen_infer.files import atomic_folder, write_json

from loragen_train.configs.fit import FitConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.folder import (
    FINAL_MODEL,
    LAST_CHECKPOINT,
    differences,
    find_last,
    make_experiment_folder,
    write_config,
)
from loragen_train.training.build import Parts, build_parts, cache_folder, is_first_process
from loragen_train.training.callbacks import EpochProgress, MachineUse, Plateau, ValidateLastEpoch
from loragen_train.training.resume import Interrupted, ResumeCheckpoint
from loragen_train.training.tracking import Outcome, Tracker, make_trackers
from loragen_train.training.validate import task_means, validate

__all__ = ["fit"]

logger = logging.getLogger(__name__)


def fit(config: FitConfig, *, resume: str | None = None, callbacks: Sequence[Callback] = ()) -> Path | None:
    """Train the generator that ``config`` describes and return the experiment folder.

    Args:
        config: The training.
        resume: ``auto`` to continue the newest unfinished experiment of this name, if there is one, or the folder of
            the experiment to continue.
        callbacks: Lightning callbacks to run after the training's own.

    Returns:
        The experiment's folder; None in the processes of a distributed training that do not write.

    Raises:
        LoragenTrainError: Prompts and checkpoints do not belong together, the hardware is not what ``config`` asks for
            or runs out of memory, or the training diverged.
        LoragenInferError: A prompt file or the text encoder cannot be read.
        LoraTokenizerError: A folder holds no checkpoints.
        Interrupted: A signal stopped the training; the experiment can be resumed.
    """
    started = time.perf_counter()
    seed_everything(config.training.seed, workers=True, verbose=False)
    with cache_folder(config) as cache_dir:
        parts = build_parts(config, cache_dir)
        provenance = parts.provenance()
        if config.provenance is not None:
            for difference in differences(config.provenance, provenance):
                logger.warning("Not as when this configuration was recorded: %s.", difference)
        folder, checkpoint = _experiment(config, resume, provenance)
        saving = ResumeCheckpoint(folder / LAST_CHECKPOINT, config.training.checkpoint_every_n_steps)
        with _tracked(config, folder, checkpoint) as trackers:
            trainer = _trainer(config, folder, trackers, [*_callbacks(config, saving, folder), *callbacks])
            _log_start(parts, folder)
            _train(trainer, parts, config, checkpoint)
            val_loss = _check_converged(saving, parts, config)
            if not trainer.is_global_zero:
                return None
            _write_results(parts, config, folder)
    seconds = time.perf_counter() - started
    logger.info("val_loss %.4f after %.0f s. Generator: %s", val_loss, seconds, folder / FINAL_MODEL)
    return folder


def _experiment(config: FitConfig, resume: str | None, provenance: dict[str, Any]) -> tuple[Path, Path | None]:
    """The experiment's folder, and the checkpoint to go on from."""
    output_dir = Path(config.output_dir)
    found = find_last(resume, output_dir, config.name) if resume is not None else None
    if found is not None:
        _warn_of_changes(config, found)
        logger.info("Resuming %s.", found)
        return found, found / LAST_CHECKPOINT
    if resume is not None:
        logger.info("There is no unfinished experiment called %s in %s; starting one.", config.name, output_dir)
    if not is_first_process():
        # Only the first process writes; the others need a path, but never make it.
        return output_dir / config.name, None
    folder = make_experiment_folder(output_dir, config.name)
    write_config(folder, config, provenance)
    return folder, None


def _warn_of_changes(config: FitConfig, folder: Path) -> None:
    try:
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise LoragenTrainError(f"{folder / 'config.yaml'} cannot be read ({error}); resume needs it.") from error
    for section in ("data", "model", "training"):
        for difference in differences(before.get(section, {}), asdict(config)[section], f"{section}."):
            logger.warning("Resuming with a changed configuration: %s.", difference)


@contextmanager
def _tracked(config: FitConfig, folder: Path, checkpoint: Path | None) -> Iterator[list[Tracker]]:
    """Yield the trackers, none in processes that do not write, and close them with the right state."""
    if not is_first_process():
        yield []
        return
    trackers = make_trackers(config, folder, _step_of(checkpoint) if checkpoint is not None else 0)
    for tracker in trackers:
        tracker.log_hyperparams(asdict(replace(config, provenance=None)))
    outcome: tuple[Outcome, str | None] = ("success", None)
    try:
        yield trackers
    except (Interrupted, KeyboardInterrupt) as stop:
        outcome = ("aborted", str(stop) or "stopped by SIGINT")
        logger.info("Go on with: --resume %s.", folder)
        raise
    except BaseException as error:
        outcome = ("crashed", str(error) or type(error).__name__)
        raise
    finally:
        for tracker in trackers:
            tracker.close(*outcome)


def _step_of(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")["global_step"])
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise LoragenTrainError(
            f"{checkpoint} cannot be read ({reason}); resume from another experiment, or copy one of the other files "
            "beside it over it."
        ) from error


def _log_start(parts: Parts, folder: Path) -> None:
    layout = parts.zoo.layout
    logger.info(
        "%d checkpoints of %d tasks, %d tokens of %d values; the generator has %.1f M parameters. Experiment: %s",
        *(len(parts.zoo.tasks), len(parts.zoo.names), layout.num_tokens, layout.token_dim),
        *(parts.module.generator.num_parameters() / 1e6, folder),
    )


def _trainer(config: FitConfig, folder: Path, trackers: list[Tracker], callbacks: list[Callback]) -> Trainer:
    training = config.training
    strategy = training.strategy
    if not config.model.freeze_text_encoder and strategy in ("ddp", "auto") and str(training.devices) != "1":
        # Encoders have parameters, such as those of an unused pooler, that get no gradient.
        strategy = "ddp_find_unused_parameters_true"
    try:
        return Trainer(
            default_root_dir=folder,
            accelerator=training.accelerator,
            devices=training.devices,
            num_nodes=training.num_nodes,
            strategy=strategy,
            precision=training.precision,  # type: ignore[arg-type]  # Lightning refuses a wrong one by name
            max_epochs=training.max_epochs,
            accumulate_grad_batches=training.accumulate_grad_batches,
            gradient_clip_val=training.gradient_clip_val or None,
            check_val_every_n_epoch=training.epochs_between_validations,
            deterministic=True,
            num_sanity_val_steps=0,
            log_every_n_steps=config.logging.every_n_steps,
            use_distributed_sampler=False,
            logger=list(trackers),
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LoragenTrainError(
            f"training.accelerator={training.accelerator!r}, devices={training.devices!r}, strategy="
            f"{training.strategy!r} or precision={training.precision!r} is nothing that Lightning can use here: "
            f"{reason}"
        ) from error


def _callbacks(config: FitConfig, resume: ResumeCheckpoint, folder: Path) -> list[Callback]:
    training = config.training
    best = ModelCheckpoint(folder / LAST_CHECKPOINT.parent, "{epoch}-{val_loss:.4f}", monitor="val_loss")
    callbacks: list[Callback] = [ValidateLastEpoch(), EpochProgress(), best]
    if training.scheduler_type == "plateau":
        callbacks.append(Plateau())
    if training.early_stopping_patience:
        callbacks.append(EarlyStopping("val_loss", patience=training.early_stopping_patience))
    return [*callbacks, resume, MachineUse()]


def _train(trainer: Trainer, parts: Parts, config: FitConfig, checkpoint: Path | None) -> None:
    try:
        with warnings.catch_warnings():
            # What they advise (more workers, a logging interval) is not the user's to change or does not matter.
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            trainer.fit(parts.module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError as error:
        half = config.data.batch_size // 2
        hint = f"try data.batch_size {half}" if half else "lower model.hidden_dim or use a GPU with more memory"
        raise LoragenTrainError(
            f"The GPU's memory does not hold a step with data.batch_size {config.data.batch_size}; {hint}, and "
            f"training.accumulate_grad_batches {2 * config.training.accumulate_grad_batches} for the same result."
        ) from error
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise


def _check_converged(saving: ResumeCheckpoint, parts: Parts, config: FitConfig) -> float:
    """Return the last val_loss, which is of the final weights."""
    val_loss = math.nan if saving.val_loss is None else saving.val_loss
    is_finite = math.isfinite(val_loss) and all(value.isfinite().all() for value in parts.module.parameters())
    if not is_finite:
        raise LoragenTrainError(
            f"The training diverged (its weights or val_loss, {val_loss}, are not finite); lower "
            f"training.learning_rate, which is {config.training.learning_rate}."
        )
    return val_loss


def _write_results(parts: Parts, config: FitConfig, folder: Path) -> None:
    module = parts.module.cpu().eval()
    means = task_means(parts)
    write_json(folder / "results" / "validation.json", validate(parts, means))
    state = None
    if not config.model.freeze_text_encoder:
        state = {name: value.cpu() for name, value in parts.encoder.module.state_dict().items()}
    bundle = GeneratorBundle(
        generator=module.generator,
        layout=parts.zoo.layout,
        stats=parts.zoo.stats,
        text_encoder_name=parts.encoder.name,
        text_encoder_revision=parts.encoder.revision,
        text_encoder_fingerprint=parts.encoder.fingerprint,
        text_encoder_state=state,
        training_tasks=TrainingTasks(names=means.names),
    )
    with atomic_folder(folder / FINAL_MODEL) as part:
        bundle.save(part / BUNDLE_NAME)
        bundle.save(part / TORCH_BUNDLE_NAME)
