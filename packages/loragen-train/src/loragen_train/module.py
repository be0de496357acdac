"""The training step: loss, optimizer, schedule.

Legend: B batch, P prompts, D embedding size, N tokens, W values per token.
"""

from typing import Any

import torch
from hyperconv import HyperConvGenerator
from lightning.pytorch import LightningModule

from loragen_train.config import TrainingConfig

__all__ = ["GeneratorModule", "token_errors"]


def token_errors(
    predicted_BNW: torch.Tensor, target_BNW: torch.Tensor, mask_NW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean squared and mean absolute error over the real (not padded) positions, two scalars in float32.

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> mse, mae = token_errors(torch.tensor([[[2.0, 9.0]]]), torch.tensor([[[0.0, 0.0]]]), mask)
        >>> mse.item(), mae.item()
        (4.0, 2.0)
    """
    difference = (predicted_BNW.float() - target_BNW.float())[:, mask_NW]
    return difference.square().mean(), difference.abs().mean()


class GeneratorModule(LightningModule):
    """Trains a generator on pairs of condition ``[B, P, D]`` and z-scored target tokens ``[B, N, W]``.

    Args:
        generator: The network.
        mask_NW: True where a token position holds a value, False where it is padding.
        config: Loss weights, optimizer and schedule.
    """

    def __init__(self, generator: HyperConvGenerator, mask_NW: torch.Tensor, config: TrainingConfig) -> None:
        super().__init__()
        self.generator = generator
        self.config = config
        self.register_buffer("mask_NW", mask_NW, persistent=False)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Log the loss of one batch of validation prompts."""
        self._loss(batch, "val")

    def _loss(self, batch: tuple[torch.Tensor, torch.Tensor], stage: str) -> torch.Tensor:
        condition_BPD, target_BNW = batch
        mse, l1 = token_errors(self.generator(condition_BPD), target_BNW, self.get_buffer("mask_NW"))
        loss = self.config.mse_weight * mse + self.config.l1_weight * l1
        values = {f"{stage}_loss": loss, f"{stage}_mse": mse, f"{stage}_l1": l1}
        # Epochs can be a step or two short, so every metric is an epoch's mean.
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(target_BNW))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, and a learning rate that falls along a cosine to zero at the last step, or stays."""
        optimizer = torch.optim.AdamW(
            self.generator.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        if self.config.scheduler_type == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
