"""What a generator is trained for, one class each: the weights of checkpoints, responses through the frozen language
model, or what a teacher answers there.

Legend: B tasks or checkpoints, N tokens, W values per token.
"""

from abc import abstractmethod
from typing import Any

import torch
from lora_tokenizer import TokenLayout, TokenStats
from torch import Tensor, nn
from torchmetrics import Metric

from loragen_train.configs.training import TrainingConfig
from loragen_train.training.epoch_metrics import EpochMetrics, TaskMean, token_losses
from loragen_train.training.pairs import Batch
from loragen_train.training.samples import NONE, SampleTable, TaskBatch
from loragen_train.training.teachers import Teacher, TeacherLoss
from loragen_train.training.through_lm import PositionLoss, ResponseNll, ThroughLm

__all__ = ["DistillObjective", "LmObjective", "Objective", "ReconstructionObjective"]


class Objective(nn.Module):
    """A loss of generated tokens, and the metrics that go with it: of an epoch's steps, and of a validation."""

    train_metrics: Metric
    val_metrics: Metric

    @abstractmethod
    def forward(self, predicted_BNW: Tensor, batch: Any, *, is_training: bool, is_measured: bool) -> Tensor:
        """Return the loss of a batch, and count it in its metrics.

        Args:
            predicted_BNW: Generated tokens, z-scored, float32.
            batch: What the objective's visits give.
            is_training: Whether it is of a step, or else of a validation.
            is_measured: Whether to take also the metrics that cost time.
        """


class ReconstructionObjective(Objective):
    """The weights of the checkpoints: mean squared and mean absolute error of z-scored tokens.

    Args:
        layout: The layout of the tokens.
        stats: Makes z-scores of tokens.
        config: Loss weights and noise.
    """

    train_metrics: EpochMetrics
    val_metrics: EpochMetrics
    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor
    mask: Tensor
    loss_weights: Tensor

    def __init__(self, layout: TokenLayout, stats: TokenStats, config: TrainingConfig) -> None:
        weights = {"mse_weight": config.mse_weight, "l1_weight": config.l1_weight}
        super().__init__()
        self.train_metrics, self.val_metrics = EpochMetrics(layout, **weights), EpochMetrics(layout, **weights)
        self._config = config
        mask_NW = layout.mask()
        # They belong to the bundle, not to Lightning's checkpoints.
        self.register_buffer("mean", stats.mean, persistent=False)
        self.register_buffer("scale", 1 / stats.std, persistent=False)
        self.register_buffer("shift", -stats.mean / stats.std, persistent=False)
        self.register_buffer("std", stats.std, persistent=False)
        self.register_buffer("mask", mask_NW, persistent=False)
        weight_NW = mask_NW * stats.importance()[:, None] if config.importance_weights else mask_NW.float()
        self.register_buffer("loss_weights", weight_NW / weight_NW.sum(), persistent=False)

    def forward(self, predicted_BNW: Tensor, batch: Batch, *, is_training: bool, is_measured: bool) -> Tensor:
        """Return the loss of a batch of checkpoints."""
        metrics = self.train_metrics if is_training else self.val_metrics
        # The z-score in one pass over memory.
        target_BNW = torch.addcmul(self.shift, batch.tokens.float(), self.scale)
        if is_training and self._config.target_noise:
            target_BNW = target_BNW + self._config.target_noise * torch.randn_like(target_BNW)
        difference_BNW = predicted_BNW - target_BNW
        mse_B, l1_B = token_losses(difference_BNW, self.loss_weights)
        with torch.no_grad():
            metrics.update(mse_B, l1_B, batch.counts)
            if is_measured:
                places = {"std_NW": self.std, "mean_NW": self.mean, "mask_NW": self.mask}
                metrics.measure(difference_BNW, target_BNW, batch.counts, **places)
        return self._config.mse_weight * mse_B.mean() + self._config.l1_weight * l1_B.mean()


class LmObjective(Objective):
    """The responses of samples: cross-entropy through the frozen language model with the generated adapters on it.

    The mean over a sample's response tokens, then over a task's samples, then over tasks.

    Args:
        through: The way through the language model.
        table: The samples.
        stats: Makes tokens of z-scores.
    """

    mean: Tensor
    std: Tensor
    unit = "nll"
    """What the loss is called among the metrics, in nats per response token."""

    def __init__(self, through: ThroughLm, table: SampleTable, stats: TokenStats) -> None:
        super().__init__()
        self.train_metrics, self.val_metrics = TaskMean(self.unit), TaskMean(self.unit)
        self._through, self._table = through, table
        self.register_buffer("mean", stats.mean, persistent=False)
        self.register_buffer("std", stats.std, persistent=False)

    def forward(self, predicted_BNW: Tensor, batch: TaskBatch, *, is_training: bool, is_measured: bool) -> Tensor:
        """Return the loss of a batch of tasks; what it costs in time is the same either way."""
        samples = [[number for number in of_task if number != NONE] for of_task in batch.samples.tolist()]
        loss, loss_B = self._through(predicted_BNW, self._denormalize, samples, self._position_loss(batch))
        (self.train_metrics if is_training else self.val_metrics).update(loss_B, batch.counts)
        return loss

    def _denormalize(self, z_BNW: Tensor) -> Tensor:
        return torch.addcmul(self.mean, z_BNW, self.std)

    def _position_loss(self, batch: TaskBatch) -> PositionLoss:
        return ResponseNll(self._table.items)


class DistillObjective(LmObjective):
    """What a teacher answers: its most likely tokens at every position of the response.

    Args:
        through: The way through the language model.
        table: The samples.
        stats: Makes tokens of z-scores.
        teacher: Answers the samples of a batch.
        temperature: What logits are divided by.
    """

    unit = "kl"

    def __init__(
        self, through: ThroughLm, table: SampleTable, stats: TokenStats, teacher: Teacher, temperature: float
    ) -> None:
        super().__init__(through, table, stats)
        self._teacher, self._temperature = teacher, temperature

    def _position_loss(self, batch: TaskBatch) -> PositionLoss:
        return TeacherLoss(self._teacher(batch), self._temperature)
