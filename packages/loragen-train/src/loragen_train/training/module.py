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
from loragen_train.training.metrics import DeltaComparison, EpochMeans, errors
from loragen_train.training.optimization import make_optimizer, make_schedule
from loragen_train.training.pairs import Batch

__all__ = ["GeneratorModule", "token_losses"]


def token_losses(difference_BNW: torch.Tensor, weight_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean squared and mean absolute difference, two float32 scalars, weighted by position.

    Args:
        difference_BNW: Predicted minus target values.
        weight_NW: Weight of each position, 0 where there is padding, 1 in sum.

    Example:
        >>> mse, l1 = token_losses(torch.tensor([[[2.0, 9.0]]]), torch.tensor([[1.0, 0.0]]))
        >>> mse.item(), l1.item()
        (4.0, 2.0)
    """
    flat_BV, weight_V = difference_BNW.flatten(1), weight_NW.flatten()
    return (flat_BV.square() @ weight_V).mean(), (flat_BV.abs() @ weight_V).mean()


class GeneratorModule(LightningModule):
    """Trains a generator, and with it the text encoder where the condition is a trained one.

    Args:
        generator: The network.
        condition: Turns numbers of prompts ``[B, P]`` into embeddings ``[B, P, D]``.
        layout: The layout of the tokens.
        stats: Makes z-scores of tokens.
        config: Loss weights, noise, optimizer and schedule.
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
    ) -> None:
        super().__init__()
        self.generator = generator
        self.condition = condition
        self.config = config
        self._deltas = DeltaComparison(layout)
        mask_NW = layout.mask()
        # They belong to the bundle, not to Lightning's checkpoints.
        self.register_buffer("mean", stats.mean, persistent=False)
        self.register_buffer("scale", 1 / stats.std, persistent=False)
        self.register_buffer("shift", -stats.mean / stats.std, persistent=False)
        self.register_buffer("std", stats.std, persistent=False)
        self.register_buffer("mask", mask_NW, persistent=False)
        weight_NW = mask_NW * stats.importance()[:, None] if config.importance_weights else mask_NW.float()
        self.register_buffer("loss_weights", weight_NW / weight_NW.sum(), persistent=False)
        self._means = EpochMeans()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make what is random in a step (noise, dropout) a function of its number, so that a resumed run repeats it."""
        torch.manual_seed(hash((self.config.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch; other metrics are taken of the first batch of epochs that are validated."""
        number = self.current_epoch + 1
        is_validated = number % self.config.epochs_between_validations == 0 or number == self.config.max_epochs
        return self._step(batch, "train", measured=is_validated and batch_idx == 0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the epoch's means after its last step, before anybody looks for them."""
        if self.trainer.is_last_batch:
            self._log_means("train_")

    def on_validation_epoch_start(self) -> None:
        """Begin to count; an interrupted epoch may have left something."""
        self._means.pop("")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of validation prompts."""
        self._step(batch, "val", measured=True)

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        self._log_means("val_")

    def _log_means(self, prefix: str) -> None:
        # All batches, of all processes, are of one size.
        self.log_dict(self._means.pop(prefix), on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _step(self, batch: Batch, stage: str, *, measured: bool) -> torch.Tensor:
        condition_BPD = self.condition(batch.prompts)
        # The z-score in one pass over memory.
        target_BNW = torch.addcmul(self.shift, batch.tokens.float(), self.scale)
        if stage == "train":
            condition_BPD = _with_noise(condition_BPD, self.config.condition_noise)
            target_BNW = _with_noise(target_BNW, self.config.target_noise)
        predicted_BNW = self.generator(condition_BPD).float()
        difference_BNW = predicted_BNW - target_BNW
        mse, l1 = token_losses(difference_BNW, self.loss_weights)
        loss = self.config.mse_weight * mse + self.config.l1_weight * l1
        self._means.add({"loss": loss, "mse": mse, "l1": l1})
        if measured:
            with torch.no_grad():
                self._means.add(self._in_z(difference_BNW, target_BNW))
                self._means.add(self._in_weights(difference_BNW, target_BNW))
        return loss

    def _in_z(self, difference_BNW: torch.Tensor, target_BNW: torch.Tensor) -> dict[str, torch.Tensor]:
        values = errors(difference_BNW[:, self.mask], target_BNW[:, self.mask])
        return {name: value for name, value in values.items() if name != "mse"}

    def _in_weights(self, difference_BNW: torch.Tensor, target_BNW: torch.Tensor) -> dict[str, torch.Tensor]:
        difference_BNW = difference_BNW * self.std
        target_BNW = target_BNW * self.std + self.mean
        values = errors(difference_BNW[:, self.mask], target_BNW[:, self.mask])
        cosines = self._deltas.cosines(target_BNW + difference_BNW, target_BNW)
        return {
            **{f"weight_{name}": value for name, value in values.items()},
            "weight_loss": self.config.mse_weight * values["mse"] + self.config.l1_weight * values["mae"],
            "weight_cosine": cosines.mean(),
            "weight_cosine_worst_module": cosines.mean(dim=0).min(),
        }

    def configure_optimizers(self) -> Any:
        """The optimizer and the schedule that the configuration names."""
        parameters = [value for value in self.parameters() if value.requires_grad]
        optimizer = make_optimizer(parameters, self.config)
        if self.config.scheduler_type == "plateau":  # a callback's
            return optimizer
        num_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(optimizer, self.config, num_steps)}


def _with_noise(values: torch.Tensor, std: float) -> torch.Tensor:
    return values + std * torch.randn_like(values) if std else values
