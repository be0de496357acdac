"""Tries a configuration: everything is built, the trainer takes two steps, and nothing is written."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import seed_everything

from loragen_train.configs.fit import FitConfig
from loragen_train.configs.objectives import PhaseConfig
from loragen_train.training.build import build_setup
from loragen_train.training.callbacks import MachineUse
from loragen_train.training.environment import cache_folder
from loragen_train.training.trainer import check_hardware, make_trainer, run_trainer

__all__ = ["dry_run"]


def dry_run(config: FitConfig) -> str:
    """Build everything that ``config`` describes, take two steps of each phase on one device, and say what it takes.

    Raises:
        LoragenTrainError, LoragenInferError, LoraTokenizerError: As :func:`loragen_train.training.fit.fit`.
    """
    seed_everything(config.training.seed, workers=True, verbose=False)
    num_processes = check_hardware(config).num_processes
    schedule = config.training.schedule
    with cache_folder(config, keep=False) as cache_dir:
        tries = [_try_phase(config, phase, cache_dir, num_processes) for phase in schedule]
    hours, rest = divmod(round(sum(tried.seconds for tried in tries)), 3600)
    losses = ", ".join(f"{tried.loss:.4f}" for tried in tries)
    return (
        f"{tries[0].described}\n"
        f"loss {losses}, {max(tried.memory_mib for tried in tries):,.0f} MiB of memory\n"
        f"{sum(tried.num_steps for tried in tries):,} steps, about {hours} h {rest // 60} min {rest % 60} s without "
        "validation"
    )


class _Tried(NamedTuple):
    """What two steps of one phase tell of all of it."""

    described: str
    loss: float
    memory_mib: float
    num_steps: int
    seconds: float


def _try_phase(config: FitConfig, phase: PhaseConfig, cache_dir: Path, num_processes: int) -> _Tried:
    # The network is the same in all phases, whatever each would have by itself.
    remembers = config.remembers_tasks
    config = replace(
        config,
        model=replace(config.model, remember_tasks=remembers),
        training=replace(config.training, phases=[phase]),
    )
    use = MachineUse()
    trainer = make_trainer(
        config,
        **{"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "enable_checkpointing": False},
        **{"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 0, "callbacks": [use]},
    )
    setup = build_setup(config, cache_dir, device=trainer.strategy.root_device)
    run_trainer(trainer, setup, config)
    num_batches = -(-setup.data.num_batches[phase.objective] // num_processes)
    # They are of the second epoch, whose only step needs no warming up.
    metrics = trainer.callback_metrics
    num_trained = sum(value.numel() for value in setup.module.parameters() if value.requires_grad)
    return _Tried(
        described=f"{len(setup.zoo.tasks)} checkpoints, {setup.module.generator.num_parameters():,} parameters in the "
        f"generator ({num_trained:,} are trained)",
        loss=metrics["train_loss"].item(),
        memory_mib=metrics.get("gpu_memory_mib", metrics["rss_mib"]).item(),
        num_steps=-(-num_batches // config.training.accumulate_grad_batches) * phase.max_epochs,
        seconds=use.seconds_per_batch * num_batches * phase.max_epochs,
    )
