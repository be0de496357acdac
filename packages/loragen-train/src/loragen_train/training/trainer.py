"""Lightning's trainer for a configuration, and its errors in the words of one."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from loragen_train.configs.fit import FitConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.training.build import HALF_WEIGHTS, TrainingSetup

__all__ = ["Hardware", "check_hardware", "make_trainer", "run_trainer"]


class Hardware(NamedTuple):
    """What a training runs on."""

    num_processes: int
    """Processes that train together, on all machines."""
    device: torch.device
    """The one that this process trains on."""


def check_hardware(config: FitConfig) -> Hardware:
    """Return the hardware that ``config`` asks for.

    Raises:
        LoragenTrainError: Hardware or precision are nothing that Lightning can use here.
    """
    training = config.training
    precision: Any = training.precision
    try:
        trainer = Trainer(**_hardware(config), precision=precision, logger=False, enable_checkpointing=False)
        return Hardware(trainer.world_size, trainer.strategy.root_device)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LoragenTrainError(
            f"training.accelerator={training.accelerator!r}, devices={training.devices!r}, strategy="
            f"{training.strategy!r} or precision={training.precision!r} is nothing that Lightning can use here: "
            f"{reason}"
        ) from error


def make_trainer(config: FitConfig, **options: Any) -> Trainer:
    """Return the trainer of a configuration whose hardware was checked.

    Args:
        config: The training.
        options: What ``lightning.pytorch.Trainer`` takes besides, or instead.
    """
    training = config.training
    given = {
        **_hardware(config),
        # Of weights that are half as wide Lightning would make all of it so, statistics and targets too.
        "precision": "32-true" if training.precision in HALF_WEIGHTS else training.precision,
        "max_epochs": training.num_epochs,
        "accumulate_grad_batches": training.accumulate_grad_batches,
        "gradient_clip_val": training.gradient_clip_val or None,
        # The batches of another phase are other ones.
        "reload_dataloaders_every_n_epochs": int(len(training.schedule) > 1),
        # Under it the buffers that a language model makes could not be trained through later.
        "inference_mode": not training.is_through_lm,
        "log_every_n_steps": config.logging.every_n_steps,
        "deterministic": True,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**given, **options})


def _hardware(config: FitConfig) -> dict[str, Any]:
    training = config.training
    strategy = training.strategy
    are_several = str(training.devices) != "1" or training.num_nodes > 1
    if not config.model.freeze_text_encoder and strategy in ("ddp", "auto") and are_several:
        # Encoders have parameters, such as those of an unused pooler, that get no gradient.
        strategy = "ddp_find_unused_parameters_true"
    return {
        "accelerator": training.accelerator,
        "devices": training.devices,
        "num_nodes": training.num_nodes,
        "strategy": strategy,
        "plugins": [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
    }


def run_trainer(trainer: Trainer, setup: TrainingSetup, config: FitConfig, checkpoint: Path | None = None) -> None:
    """Train, from ``checkpoint`` on if there is one.

    Raises:
        LoragenTrainError: The memory does not hold a step.
        KeyboardInterrupt: The user stops it.
    """
    try:
        with warnings.catch_warnings():
            # What they advise (more workers, a logging interval) is not the user's to change or does not matter.
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            trainer.fit(setup.module, datamodule=setup.data, ckpt_path=checkpoint, weights_only=True)
    except (MemoryError, RuntimeError) as error:
        is_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (is_gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        which = "GPU" if is_gpu else "machine"
        if setup.frozen is not None and setup.module.phase.objective != "reconstruction":
            budget = setup.frozen.tokens_per_pass
            raise LoragenTrainError(
                f"The {which}'s memory does not hold {budget} tokens at once in the language model; set "
                f"training.lm.tokens_per_pass to {max(1, budget // 2)}, or training.lm.gradient_checkpointing to true."
            ) from error
        half = config.data.batch_size // 2
        hint = f"try data.batch_size {half}" if half else "lower model.hidden_dim or use more memory"
        raise LoragenTrainError(
            f"The {which}'s memory does not hold a step with data.batch_size "
            f"{config.data.batch_size}; {hint}, and training.accumulate_grad_batches "
            f"{2 * config.training.accumulate_grad_batches} for the same result."
        ) from error
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
