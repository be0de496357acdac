"""Trains a generator: zoo and prompts in, an experiment folder (see experiments/folder.py) with the bundle out."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import locked

from loragen_train.configs.fit import FitConfig
from loragen_train.experiments.folder import (
    FINAL_MODEL,
    LAST_CHECKPOINT,
    START_CHECKPOINT,
    check_unchanged,
    differences,
    find_unfinished,
    make_experiment_folder,
    mark_failed,
    recorded_provenance,
    write_config,
)
from loragen_train.training.build import TrainingSetup, build_setup
from loragen_train.training.callbacks import (
    BestWeights,
    EpochProgress,
    MachineUse,
    StopEarlyInLastPhase,
    ValidateOnTime,
)
from loragen_train.training.environment import cache_folder, is_first_process
from loragen_train.training.provenance import check_same_prompts
from loragen_train.training.results import write_results
from loragen_train.training.resume import ResumeCheckpoint, TrainingDivergedError
from loragen_train.training.tracking import tracked, with_team_of_environment
from loragen_train.training.trainer import check_hardware, make_trainer, run_trainer
from loragen_train.training.unseen import UNSEEN_NLL

__all__ = ["fit"]

logger = logging.getLogger(__name__)


def fit(config: FitConfig, *, resume: str | None = None, callbacks: Sequence[Callback] = ()) -> Path | None:
    """Train the generator that ``config`` describes and return the experiment folder.

    Args:
        config: The training.
        resume: ``auto`` to continue the newest unfinished experiment of this name, if there is one and nothing of its
            configuration and data has changed, or the folder of the experiment to continue.
        callbacks: Lightning callbacks to run after the training's own.

    Returns:
        The experiment's folder; None in the processes of a distributed training that do not write.

    Raises:
        LoragenTrainError: Prompts and checkpoints do not belong together, the hardware is not what ``config`` asks for
            or runs out of memory, or the training diverged.
        LoragenInferError: A prompt file or the text encoder cannot be read, or another process trains in the folder.
        LoraTokenizerError: A folder holds no checkpoints.
        Interrupted: A signal stopped the training; the experiment can be resumed.
    """
    started = time.perf_counter()
    seed_everything(config.training.seed, workers=True, verbose=False)
    config = with_team_of_environment(config)
    device = check_hardware(config).device
    with ExitStack() as stack:
        folder = _to_continue(config, resume)
        checkpoint = folder / LAST_CHECKPOINT if folder is not None else None
        if folder is not None and is_first_process():
            stack.enter_context(_held(folder))
        before = None if folder is None else recorded_provenance(folder)
        setup = build_setup(config, stack.enter_context(cache_folder(config)), before=before, device=device)
        if folder is None:
            folder = _new_experiment(config, setup)
            if is_first_process():
                stack.enter_context(_held(folder))
        else:
            check_same_prompts(before or {}, setup.provenance(), folder, refuse=resume == "auto")
        trackers = stack.enter_context(tracked(config, folder, checkpoint))
        _log_start(setup, folder)
        best, saving, own = _own_callbacks(config, setup, folder)
        trainer = make_trainer(
            config, default_root_dir=folder, logger=list(trackers), callbacks=[*own, MachineUse(), *callbacks]
        )
        try:
            run_trainer(trainer, setup, config, checkpoint)
            val_loss = _check_converged(saving, setup, config)
        except TrainingDivergedError as error:
            try:
                kept = _keep_best(error, config, setup, folder, best, trainer) if trainer.is_global_zero else None
            finally:
                trainer.strategy.barrier()  # of several processes, one that ends with an error ends the others
            if kept is None:
                raise
            raise TrainingDivergedError(f"{error} {kept}") from error
        if not trainer.is_global_zero:
            return None
        chosen, said = _choose_weights(config, setup, folder, best) or (None, f"last val_loss {val_loss:.4f}")
        write_results(setup, config, folder, weights=chosen, device=trainer.strategy.root_device)
    seconds = time.perf_counter() - started
    logger.info("%s after %.0f s. Generator: %s", said, seconds, folder / FINAL_MODEL)
    return folder


def _own_callbacks(
    config: FitConfig, setup: TrainingSetup, folder: Path
) -> tuple[BestWeights, ResumeCheckpoint, list[Callback]]:
    """What keeps the best weights, what saves the state to resume from, and all that every training has, in order."""
    unseen = [] if setup.unseen is None else [setup.unseen]
    monitor = UNSEEN_NLL if unseen else "val_loss"
    best = BestWeights(
        folder / LAST_CHECKPOINT.parent,
        f"{{epoch}}-{{{monitor}:.4f}}",
        monitor=monitor,
        save_on_train_epoch_end=False,
    )
    saving = ResumeCheckpoint(folder / LAST_CHECKPOINT, config.training, monitor)
    own: list[Callback] = [ValidateOnTime(), EpochProgress(), *unseen]
    own.append(best)  # right after the validation, so that what is saved to resume from knows of it
    if patience := config.training.early_stopping_patience:
        own.append(StopEarlyInLastPhase(monitor, patience=patience, check_on_train_epoch_end=False))
    return best, saving, [*own, saving]


def _choose_weights(
    config: FitConfig, setup: TrainingSetup, folder: Path, best: BestWeights
) -> tuple[Path, str] | None:
    """The checkpoint whose weights are exported and what is said of them; None for those after the last step."""
    if config.export.weights != "best" or not best.best_model_path or best.best_model_score is None:
        return None
    chosen, score = Path(best.best_model_path), best.best_model_score.item()
    if setup.unseen is not None and setup.unseen.start_nll <= score:
        chosen, score = folder / START_CHECKPOINT, setup.unseen.start_nll
        logger.warning("No validation was better than the start, whose weights are the best.")
    return chosen, f"best {best.monitor} {score:.4f}"


def _keep_best(
    error: TrainingDivergedError,
    config: FitConfig,
    setup: TrainingSetup,
    folder: Path,
    best: BestWeights,
    trainer: Trainer,
) -> str | None:
    """Mark the experiment as failed, export what was best by then, and return what to say of it."""
    mark_failed(folder, str(error))
    if (chosen := _choose_weights(config, setup, folder, best)) is None:
        return None
    try:
        write_results(setup, config, folder, weights=chosen[0], device=trainer.strategy.root_device)
    except (LoragenInferError, OSError) as problem:
        return f"What was best by then ({chosen[1]}) is {chosen[0]}, and could not be exported: {problem}"
    return f"What was best by then ({chosen[1]}) is in {folder / FINAL_MODEL}."


def _held(folder: Path) -> AbstractContextManager[None]:
    return locked(folder, f"Another process is training {folder}; wait for it, or start a training without --resume.")


def _to_continue(config: FitConfig, resume: str | None) -> Path | None:
    """The folder of the experiment to go on with; None for a new one."""
    if resume is None:
        return None
    output_dir = Path(config.output_dir)
    folder = find_unfinished(resume, output_dir, config.name)
    if folder is None:
        logger.info("There is no unfinished experiment called %s in %s; starting one.", config.name, output_dir)
        return None
    check_unchanged(config, folder, refuse=resume == "auto")
    logger.info("Resuming %s.", folder)
    return folder


def _new_experiment(config: FitConfig, setup: TrainingSetup) -> Path:
    provenance = setup.provenance()
    if config.provenance is not None:
        for difference in differences(config.provenance, provenance):
            logger.warning("Not as when this configuration was recorded: %s.", difference)
    output_dir = Path(config.output_dir)
    if not is_first_process():
        # Only the first process writes; the others need a path, but never make it.
        return output_dir / config.name
    folder = make_experiment_folder(output_dir, config.name)
    write_config(folder, config, provenance)
    return folder


def _log_start(setup: TrainingSetup, folder: Path) -> None:
    layout = setup.zoo.layout
    num_parameters = setup.module.generator.num_parameters()
    if setup.frozen is not None:
        logger.info("The base model computes in %s.", str(setup.frozen.model.dtype).removeprefix("torch."))
    logger.info(
        "%d checkpoints of %d tasks, %d tokens of %d values; the generator has %.1f M parameters. Experiment: %s",
        *(len(setup.zoo.tasks), len(setup.zoo.names), layout.num_tokens, layout.token_dim),
        *(num_parameters / 1e6, folder),
    )


def _check_converged(saving: ResumeCheckpoint, setup: TrainingSetup, config: FitConfig) -> float:
    """Return the last val_loss, which is of the final weights."""
    val_loss = math.nan if saving.val_loss is None else saving.val_loss
    is_finite = math.isfinite(val_loss) and all(value.isfinite().all() for value in setup.module.parameters())
    if not is_finite:
        raise TrainingDivergedError(
            f"The training diverged (its weights or val_loss, {val_loss}, are not finite); lower "
            f"{config.training.rate_key}, which is {config.training.schedule[-1].learning_rate}."
        )
    return val_loss
