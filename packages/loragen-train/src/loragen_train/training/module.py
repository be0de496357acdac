"""The training step: condition, generator, objective, and what makes a step repeatable.

Legend: B batch, F folds, P prompts, D embedding size, N tokens, W values per token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from hyperconv import HyperConvGenerator
from hyperconv.condition import mean_embedding
from hyperconv.linear import LeftOut
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric

from loragen_train.configs.objectives import ObjectiveName, PhaseConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.objectives import Objective
from loragen_train.training.optimization import make_optimizer, make_schedule
from loragen_train.training.pairs import Batch
from loragen_train.training.resume import TrainingDivergedError
from loragen_train.training.samples import TaskBatch

__all__ = ["GeneratorModule"]


class GeneratorModule(LightningModule):
    """Trains a generator, and with it the text encoder where the condition is a trained one.

    Args:
        generator: The network.
        condition: Turns numbers of prompts ``[B, P]`` into embeddings ``[B, P, D]``.
        objectives: Those of all phases, by name.
        config: Phases, noise, optimizer and schedule.
        left_out: Through the language model a task is trained and validated as one that was never seen: its features
            are then those of the regression without it.
        fold_shift_FNW: By fold of the joint adapter, what is added to the start of its tasks then, so that it is one
            that has not seen them.
        log_every_n_steps: Steps between logged losses of single steps; 0: none.
    """

    fold_shift: torch.Tensor | None

    def __init__(
        self,
        generator: HyperConvGenerator,
        condition: nn.Module,
        objectives: Mapping[ObjectiveName, Objective],
        config: TrainingConfig,
        *,
        left_out: LeftOut | None = None,
        fold_shift_FNW: torch.Tensor | None = None,
        log_every_n_steps: int = 0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.condition = condition
        self.objectives = nn.ModuleDict({str(name): objective for name, objective in objectives.items()})
        self.config = config
        self.left_out = left_out
        # One row more for tasks of no fold, which are number -1.
        shift_FNW = None if fold_shift_FNW is None else torch.nn.functional.pad(fold_shift_FNW, (0, 0, 0, 0, 0, 1))
        self.register_buffer("fold_shift", shift_FNW, persistent=False)
        self._log_every_n_steps = log_every_n_steps

    @property
    def phase(self) -> PhaseConfig:
        """The phase that the training is in."""
        return self.config.phase_of(self.current_epoch)

    @property
    def objective(self) -> Objective:
        """The objective of that phase."""
        objective = self.objectives[self.phase.objective]
        assert isinstance(objective, Objective), "nothing else is put there"  # noqa: S101
        return objective

    def on_train_batch_start(self, batch: Batch | TaskBatch, batch_idx: int) -> None:
        """Make what is random in a step (noise, dropout) a function of its number, so that a resumed run repeats it.

        What the optimizer remembers of another objective's gradients, of another size, is forgotten.
        """
        torch.manual_seed(hash((self.config.seed, self.global_step, batch_idx, self.global_rank)) % 2**63)
        if batch_idx == 0 and self.current_epoch > 0 and self.config.place_of(self.current_epoch)[1] == 0:
            self.trainer.optimizers[0].state.clear()

    def training_step(self, batch: Batch | TaskBatch, batch_idx: int) -> torch.Tensor:
        """Return the loss of one batch; other metrics are taken of the first batch of epochs that are validated.

        Raises:
            TrainingDivergedError: The loss of a language model is not finite.
        """
        is_measured = batch_idx == 0 and self.config.is_validated(self.current_epoch)
        # A batch that is filled up with repeats is trained as it is, and counted so.
        batch = batch._replace(counts=torch.ones_like(batch.counts))
        loss = self._loss(batch, is_training=True, is_measured=is_measured)
        if self.phase.objective != "reconstruction":
            self._check_finite(loss.detach())
        if self._log_every_n_steps and (self.global_step + 1) % self._log_every_n_steps == 0:
            self.log("train_loss_step", loss.detach(), on_step=True, on_epoch=False)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch | TaskBatch, batch_idx: int) -> None:
        """Log the epoch's means after its last step, before anybody looks for them."""
        if self.trainer.is_last_batch:
            self._log_epoch("train_", self.objective.train_metrics)

    def on_validation_epoch_start(self) -> None:
        """Begin to count; an interrupted validation may have left something."""
        self.objective.val_metrics.reset()

    def validation_step(self, batch: Batch | TaskBatch, batch_idx: int) -> None:
        """Count one batch of validation prompts."""
        self._loss(batch, is_training=False, is_measured=True)

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        self._log_epoch("val_", self.objective.val_metrics)

    def _log_epoch(self, prefix: str, metrics: Metric) -> None:
        # They are of all processes already.
        values = {prefix + name: value for name, value in metrics.compute().items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1)
        metrics.reset()

    def _loss(self, batch: Batch | TaskBatch, *, is_training: bool, is_measured: bool) -> torch.Tensor:
        condition_BPD = self.condition(batch.prompts)
        if is_training and self.config.condition_noise:
            condition_BPD = condition_BPD + self.config.condition_noise * torch.randn_like(condition_BPD)
        features_BK = shift_BNW = None
        if self.left_out is not None and isinstance(batch, TaskBatch):
            features_BK = self.left_out(mean_embedding(condition_BPD, batch.mask), batch.regression_tasks)
            shift_BNW = None if self.fold_shift is None else self.fold_shift[batch.folds]
        predicted_BNW = self.generator(condition_BPD, batch.mask, features=features_BK, shift=shift_BNW).float()
        with torch.autocast(self.device.type, enabled=False):
            loss: torch.Tensor = self.objective(predicted_BNW, batch, is_training=is_training, is_measured=is_measured)
        return loss

    def _check_finite(self, loss: torch.Tensor) -> None:
        """Look at the loss of all processes together, so that they stop together."""
        if self._trainer is not None and self.trainer.world_size > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        if not loss.isfinite():
            if self.global_step == 0:
                raise TrainingDivergedError(
                    f"The loss of {self.phase.objective} is {loss.item()} in the first step, before anything was "
                    "learned; check the base model and the adapters of the zoo for values that are not finite."
                )
            raise TrainingDivergedError(
                f"The training diverged (in step {self.global_step + 1} the loss of {self.phase.objective} is "
                f"{loss.item()}); lower {self.config.rate_key}, which is {self.phase.learning_rate}."
            )

    def configure_optimizers(self) -> Any:
        """The optimizer and the schedule that the configuration names."""
        parameters = [value for value in self.parameters() if value.requires_grad]
        optimizer = make_optimizer(parameters, self.config)
        num_batches: Mapping[ObjectiveName, int] = self.trainer.datamodule.num_batches  # type: ignore[attr-defined]
        num_steps = [
            -(-num_batches[phase.objective] // self.config.accumulate_grad_batches) * phase.max_epochs
            for phase in self.config.schedule
        ]
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(optimizer, self.config, num_steps)}
