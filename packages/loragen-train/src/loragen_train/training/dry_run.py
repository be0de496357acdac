"""Tries a configuration: everything is built, one batch goes forward and backward, and nothing is written."""

import time
from dataclasses import dataclass

import psutil
import torch
from lightning.pytorch import seed_everything

from loragen_train.configs.fit import FitConfig
from loragen_train.training.build import build_parts, cache_folder, default_device
from loragen_train.training.module import GeneratorModule, token_losses
from loragen_train.training.optimization import make_optimizer
from loragen_train.training.pairs import Batch

__all__ = ["DryRun", "dry_run"]

_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a training would take."""

    num_checkpoints: int
    """Number of checkpoints in the zoo."""
    num_parameters: int
    """Parameters of the generator."""
    num_trained: int
    """Parameters that are trained, those of a trained text encoder among them."""
    num_steps: int
    """Optimizer steps of the whole training."""
    memory_mib: float
    """Most memory that the batch took: the GPU's, or that of the process on the CPU."""
    loss: float
    """Loss of the batch."""
    seconds: float
    """Estimated time of the training, without validation."""

    def __str__(self) -> str:
        hours, rest = divmod(round(self.seconds), 3600)
        return (
            f"{self.num_checkpoints} checkpoints, {self.num_parameters:,} parameters in the generator "
            f"({self.num_trained:,} are trained)\n"
            f"loss {self.loss:.4f}, {self.memory_mib:,.0f} MiB of memory\n"
            f"{self.num_steps:,} steps, about {hours} h {rest // 60} min {rest % 60} s without validation"
        )


def dry_run(config: FitConfig) -> DryRun:
    """Build everything that ``config`` describes and run one batch forward and backward.

    Raises:
        LoragenTrainError, LoragenInferError, LoraTokenizerError: As :func:`loragen_train.training.fit.fit`.
    """
    seed_everything(config.training.seed, workers=True, verbose=False)
    device = default_device(config.training.accelerator)
    with cache_folder(config, keep=False) as cache_dir:
        parts = build_parts(config, cache_dir)
        module = parts.module.to(device).train()
        loader = parts.data.train_dataloader()
        batch = Batch(*(part.to(device) for part in next(iter(loader))))
        optimizer = make_optimizer([value for value in module.parameters() if value.requires_grad], config.training)
        _step(module, batch, optimizer)
        started = time.perf_counter()
        loss = _step(module, batch, optimizer)
        seconds = time.perf_counter() - started
        num_batches = len(loader) * config.training.max_epochs
        return DryRun(
            num_checkpoints=len(parts.zoo.tasks),
            num_parameters=module.generator.num_parameters(),
            num_trained=sum(value.numel() for value in module.parameters() if value.requires_grad),
            num_steps=-(-num_batches // config.training.accumulate_grad_batches),
            memory_mib=_memory(device),
            loss=loss,
            seconds=seconds * num_batches,
        )


def _step(module: GeneratorModule, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    predicted_BNW = module.generator(module.condition(batch.prompts)).float()
    target_BNW = torch.addcmul(module.shift, batch.tokens.float(), module.scale)
    mse, l1 = token_losses(predicted_BNW - target_BNW, module.loss_weights)
    loss = module.config.mse_weight * mse + module.config.l1_weight * l1
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.item())


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEBIBYTE
    return psutil.Process().memory_info().rss / _MEBIBYTE
