"""The training step: condition, loss, metrics, and what makes a step repeatable.

Legend: B batch, P prompts, D embedding size, N tokens, W values per token.
"""

from typing import Any

import torch
from hyperconv import HyperConvGenerator
from lightning.pytorch import LightningModule
from lora_tokenizer import TokenLayout, TokenStats
from torch import nn

from loragen_train.configs.training import TrainingConfig
from loragen_train.training.epoch_metrics import EpochMetrics, token_losses
from loragen_train.training.optimization import make_optimizer, make_schedule
from loragen_train.training.pairs import Batch

__all__ = ["GeneratorModule"]


class GeneratorModule(LightningModule):
    """Trains a generator, and with it the text encoder where the condition is a trained one.

    Args:
        generator: The network.
        condition: Turns numbers of prompts ``[B, P]`` into embeddings ``[B, P, D]``.
        layout: The layout of the tokens.
        stats: Makes z-scores of tokens.
        config: Loss weights, noise, optimizer and schedule.
        log_every_n_steps: Steps between logged losses of single steps; 0: none.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    mask: torch.Tensor
    loss_weights: torch.Tensor

    def __init__(
        self,
        generator: HyperConvGenerator,
        condition: nn.Module,
        layout: TokenLayout,
        stats: TokenStats,
        config: TrainingConfig,
        log_every_n_steps: int = 0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.condition = condition
        self.config = config
        self._log_every_n_steps = log_every_n_steps
        mask_NW = layout.mask()
        # They belong to the bundle, not to Lightning's checkpoints.
        self.register_buffer("mean", stats.mean, persistent=False)
        self.register_buffer("scale", 1 / stats.std, persistent=False)
        self.register_buffer("shift", -stats.mean / stats.std, persistent=False)
        self.register_buffer("std", stats.std, persistent=False)
        self.register_buffer("mask", mask_NW, persistent=False)
        weight_NW = mask_NW * stats.importance()[:, None] if config.importance_weights else mask_NW.float()
        self.register_buffer("loss_weights", weight_NW / weight_NW.sum(), persistent=False)
        weights = {"mse_weight": config.mse_weight, "l1_weight": config.l1_weight}
        self.train_metrics, self.val_metrics = EpochMetrics(layout, **weights), EpochMetrics(layout, **weights)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make what is random in a step (noise, dropout) a function of its number, so that a resumed run repeats it."""
        torch.manual_seed(hash((self.config.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch; other metrics are taken of the first batch of epochs that are validated."""
        number = self.current_epoch + 1
        is_validated = number % self.config.epochs_between_validations == 0 or number == self.config.max_epochs
        # A batch that is filled up with repeats is trained as it is, and counted so.
        batch = batch._replace(counts=torch.ones_like(batch.counts))
        loss = self._step(batch, self.train_metrics, is_measured=is_validated and batch_idx == 0)
        if self._log_every_n_steps and (self.global_step + 1) % self._log_every_n_steps == 0:
            self.log("train_loss_step", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the epoch's means after its last step, before anybody looks for them."""
        if self.trainer.is_last_batch:
            self._log_epoch("train_", self.train_metrics)

    def on_validation_epoch_start(self) -> None:
        """Begin to count; an interrupted validation may have left something."""
        self.val_metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of validation prompts."""
        self._step(batch, self.val_metrics, is_measured=True)

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        self._log_epoch("val_", self.val_metrics)

    def _log_epoch(self, prefix: str, metrics: EpochMetrics) -> None:
        # They are of all processes already.
        values = {prefix + name: value for name, value in metrics.compute().items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)
        metrics.reset()

    def _step(self, batch: Batch, metrics: EpochMetrics, *, is_measured: bool) -> torch.Tensor:
        condition_BPD = self.condition(batch.prompts)
        # The z-score in one pass over memory.
        target_BNW = torch.addcmul(self.shift, batch.tokens.float(), self.scale)
        if metrics is self.train_metrics:
            condition_BPD = _with_noise(condition_BPD, self.config.condition_noise)
            target_BNW = _with_noise(target_BNW, self.config.target_noise)
        predicted_BNW = self.generator(condition_BPD).float()
        with torch.autocast(self.device.type, enabled=False):
            difference_BNW = predicted_BNW - target_BNW
            mse_B, l1_B = token_losses(difference_BNW, self.loss_weights)
            with torch.no_grad():
                metrics.update(mse_B, l1_B, batch.counts)
                if is_measured:
                    places = {"std_NW": self.std, "mean_NW": self.mean, "mask_NW": self.mask}
                    metrics.measure(difference_BNW, target_BNW, batch.counts, **places)
            return self.config.mse_weight * mse_B.mean() + self.config.l1_weight * l1_B.mean()

    def configure_optimizers(self) -> Any:
        """The optimizer and the schedule that the configuration names."""
        parameters = [value for value in self.parameters() if value.requires_grad]
        optimizer = make_optimizer(parameters, self.config)
        num_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(optimizer, self.config, num_steps)}


def _with_noise(values: torch.Tensor, std: float) -> torch.Tensor:
    return values + std * torch.randn_like(values) if std else values
