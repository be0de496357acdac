"""The training step: condition, loss, metrics, and what makes a step repeatable.

Legend: B batch, P prompts, D embedding size, N tokens, W values per token.
"""

from typing import Any

import torch
from hyperconv import HyperConvGenerator
from lightning.pytorch import LightningModule
from lora_tokenizer import TokenLayout, TokenStats
from torch import nn

from loragen_train.data import Batch
from loragen_train.metrics import DeltaComparison, errors
from loragen_train.optimization import make_optimizer, make_schedule
from loragen_train.training_config import TrainingConfig

__all__ = ["GeneratorModule", "token_losses"]


def token_losses(difference_BV: torch.Tensor, weight_V: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean squared and mean absolute difference, two float32 scalars, weighted by position where asked.

    Args:
        difference_BV: Predicted minus target values at the V real (not padded) positions.
        weight_V: Weight of each position, or None for 1.

    Example:
        >>> mse, l1 = token_losses(torch.tensor([[2.0, 0.0]]), torch.tensor([0.5, 1.5]))
        >>> mse.item(), l1.item()
        (1.0, 0.5)
    """
    square, absolute = difference_BV.square(), difference_BV.abs()
    if weight_V is not None:
        square, absolute = square * weight_V, absolute * weight_V
    return square.mean(), absolute.mean()


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
    mask: torch.Tensor

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
        self.register_buffer("std", stats.std, persistent=False)
        self.register_buffer("mask", mask_NW, persistent=False)
        weight_V = None
        if config.importance_weights:
            weight_V = stats.importance()[:, None].expand_as(mask_NW)[mask_NW]
            # Padding takes no part in the mean of 1.
            weight_V = weight_V / weight_V.mean()
        self.register_buffer("position_weights", weight_V, persistent=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make what is random in a step (noise, dropout) a function of its number, so that a resumed run repeats it."""
        torch.manual_seed(hash((self.config.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch; its metrics in weights are taken of an epoch's first batch only."""
        return self._step(batch, "train", in_weights=batch_idx == 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the metrics of one batch of validation prompts."""
        self._step(batch, "val", in_weights=True)

    def _step(self, batch: Batch, stage: str, *, in_weights: bool) -> torch.Tensor:
        condition_BPD = self.condition(batch.prompts)
        target_BNW = (batch.tokens.float() - self.mean) / self.std
        if stage == "train":
            condition_BPD = _with_noise(condition_BPD, self.config.condition_noise)
            target_BNW = _with_noise(target_BNW, self.config.target_noise)
        predicted_BNW = self.generator(condition_BPD).float()
        difference_BNW = predicted_BNW - target_BNW
        weight_V: torch.Tensor | None = self.get_buffer("position_weights") if self.config.importance_weights else None
        mse, l1 = token_losses(difference_BNW[:, self.mask], weight_V)
        loss = self.config.mse_weight * mse + self.config.l1_weight * l1
        values = {"loss": loss, "mse": mse, "l1": l1}
        with torch.no_grad():
            values |= self._metrics(difference_BNW.detach(), target_BNW, in_weights=in_weights)
        named = {f"{stage}_{name}": value for name, value in values.items()}
        # Epochs can be a step or two short, so every metric is an epoch's mean.
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(target_BNW), sync_dist=True)
        return loss

    def _metrics(
        self, difference_BNW: torch.Tensor, target_BNW: torch.Tensor, *, in_weights: bool
    ) -> dict[str, torch.Tensor]:
        in_z = errors(difference_BNW[:, self.mask], target_BNW[:, self.mask])
        values = {name: value for name, value in in_z.items() if name != "mse"}
        if not in_weights:
            return values
        difference_BNW = difference_BNW * self.std
        target_BNW = target_BNW * self.std + self.mean
        weights = errors(difference_BNW[:, self.mask], target_BNW[:, self.mask])
        cosines = self._deltas.cosines(target_BNW + difference_BNW, target_BNW)
        total = self.config.mse_weight * weights["mse"] + self.config.l1_weight * weights["mae"]
        values |= {f"weight_{name}": value for name, value in weights.items()}
        return values | {
            "weight_loss": total,
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
