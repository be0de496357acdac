"""Tries a configuration: everything is built, the trainer takes two steps, and nothing is written."""

import time
from typing import Any

import psutil
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from loragen_train.configs.fit import FitConfig
from loragen_train.training.build import build_setup
from loragen_train.training.environment import cache_folder
from loragen_train.training.trainer import check_hardware, make_trainer, run_trainer

__all__ = ["dry_run"]

_MEBIBYTE = 2**20


class _Watch(Callback):
    """Notes how long the last step took, and the memory while the trainer has it."""

    def __init__(self) -> None:
        self.seconds = self.memory_mib = 0.0
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        if pl_module.device.type == "cuda":
            self.memory_mib = torch.cuda.max_memory_allocated(pl_module.device) / _MEBIBYTE
        else:
            self.memory_mib = psutil.Process().memory_info().rss / _MEBIBYTE


def dry_run(config: FitConfig) -> str:
    """Build everything that ``config`` describes, take two steps of its training on one device, and say what it takes.

    Raises:
        LoragenTrainError, LoragenInferError, LoraTokenizerError: As :func:`loragen_train.training.fit.fit`.
    """
    seed_everything(config.training.seed, workers=True, verbose=False)
    num_processes = check_hardware(config)
    watch = _Watch()
    with cache_folder(config, keep=False) as cache_dir:
        setup = build_setup(config, cache_dir)
        trainer = make_trainer(
            config,
            **{"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "enable_checkpointing": False},
            **{"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 0, "callbacks": [watch]},
        )
        run_trainer(trainer, setup, config)
        num_batches = -(-len(setup.pairs.train_dataloader()) // num_processes)
    num_epochs = config.training.max_epochs
    num_steps = -(-num_batches // config.training.accumulate_grad_batches) * num_epochs
    num_trained = sum(value.numel() for value in setup.module.parameters() if value.requires_grad)
    num_parameters = setup.module.generator.num_parameters()
    hours, rest = divmod(round(watch.seconds * num_batches * num_epochs), 3600)
    return (
        f"{len(setup.zoo.tasks)} checkpoints, {num_parameters:,} parameters in the generator "
        f"({num_trained:,} are trained)\n"
        f"loss {trainer.callback_metrics['train_loss']:.4f}, {watch.memory_mib:,.0f} MiB of memory\n"
        f"{num_steps:,} steps, about {hours} h {rest // 60} min {rest % 60} s without validation"
    )
