"""Saves what ``--resume`` goes on from: every so many steps, after validations, and when a signal stops a training."""

import logging
import math
import os
import signal
import threading
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from loragen_train.configs.training import TrainingConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["Interrupted", "ResumeCheckpoint", "TrainingDivergedError", "step_of"]

logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The training was stopped from outside, after a step, and can be resumed.

    Args:
        signal_number: The signal that stopped it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class TrainingDivergedError(LoragenTrainError):
    """The loss is not finite any more; going on from a checkpoint of this training leads nowhere."""


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps that a checkpoint is after.

    Raises:
        LoragenTrainError: It cannot be read.
    """
    try:
        return int(torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")["global_step"])
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise LoragenTrainError(
            f"{checkpoint} cannot be read ({reason}); resume from another experiment, or copy one of the other files "
            "beside it over it."
        ) from error


class ResumeCheckpoint(Callback):
    """Saves after steps, never within one, and turns Ctrl+C, SIGTERM and SLURM's notice into a stop after a step.

    A signal in the middle of an optimizer step would leave weights that no undisturbed run ever has. After the last
    batch of an epoch it waits for the validation: Lightning 2.6 does not make up for one when it resumes.

    Args:
        file: The checkpoint, replaced as a whole each time.
        config: Says how many steps lie between checkpoints.
        monitor: The metric that chooses the best weights; resuming with another one is a warning.
    """

    def __init__(self, file: Path, config: TrainingConfig, monitor: str = "val_loss") -> None:
        self._file, self._every_n_steps = file, config.checkpoint_every_n_steps
        self._config, self._monitor = config, monitor
        self._received = 0
        self._to_stop = 0  # the signal that some process has received, once all know
        self._before: dict[int, Any] = {}
        self._is_due = False
        self.val_loss: float | None = None
        """The last validation's loss, also that of an earlier run which this one resumes."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; a second one of a kind acts at once."""
        if threading.current_thread() is threading.main_thread():
            # SLURM gives notice of its time limit with SIGUSR1 (sbatch --signal=SIGUSR1@90).
            notice = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
            for number in (signal.SIGINT, signal.SIGTERM, *notice):
                self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, self._before[number])
        logger.info("Stopping after this step; once more to stop at once.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, unless the epoch's end is about to do so."""
        has_stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not has_stepped:
            return
        if self._every_n_steps and trainer.global_step % self._every_n_steps == 0:
            self._is_due = True
        if not trainer.is_last_batch:
            self._save(trainer, pl_module)
            self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the loss; what was validated is saved at the end of the epoch.

        Raises:
            TrainingDivergedError: The loss is not finite.
        """
        self.val_loss = float(trainer.callback_metrics["val_loss"])
        if not math.isfinite(self.val_loss):
            raise TrainingDivergedError(
                f"The training diverged (in epoch {trainer.current_epoch} the val_loss is {self.val_loss}); lower "
                f"{self._config.rate_key}, which is {self._config.phase_of(trainer.current_epoch).learning_rate}."
            )
        self._is_due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the epoch's last step or its validation made due; Lightning logs the epoch after this."""
        self._save(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, if that was to be after the last step of the epoch before."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, if that was to be after the last step of all."""
        self._stop()

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._to_stop = self._received
        if trainer.world_size > 1:
            received = torch.tensor(self._received, device=pl_module.device)
            self._to_stop = int(trainer.strategy.reduce(received, reduce_op="max"))
        if self._to_stop or self._is_due:
            trainer.save_checkpoint(self._file, weights_only=False)
            self._is_due = False

    def _stop(self) -> None:
        if self._to_stop:
            raise Interrupted(self._to_stop)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def state_dict(self) -> dict[str, Any]:
        """The loss that a run which has nothing left to do reports, and what chooses the best weights."""
        return {"val_loss": self.val_loss, "monitor": self._monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.val_loss = state_dict["val_loss"]
        if state_dict["monitor"] != self._monitor:
            logger.warning(
                "%s chose the best weights until now, and from here on %s does, which knows of no earlier validation.",
                *(state_dict["monitor"], self._monitor),
            )
