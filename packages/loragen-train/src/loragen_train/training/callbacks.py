"""What happens around the training steps: progress, use of the machine, the last validation."""

import logging
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from loragen_infer.progress import ProgressBar

from loragen_train.configs.training import TrainingConfig
from loragen_train.training.module import GeneratorModule

__all__ = ["BestWeights", "EpochProgress", "MachineUse", "StopEarlyInLastPhase", "ValidateOnTime"]

logger = logging.getLogger(__name__)

_MEBIBYTE = 2**20


class EpochProgress(Callback):
    """One bar over all epochs, from where a resumed run goes on: epochs of a small zoo are too short for a bar each."""

    _bar: ProgressBar | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = ProgressBar("fit", total=trainer.max_epochs or 0, unit="epoch", done=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        shown = {
            name: f"{metrics[name]:.4f}" for name in ("train_loss", "val_loss", "val_unseen_nll") if name in metrics
        }
        if self._bar is not None:
            self._bar.advance(**shown)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()


class ValidateOnTime(Callback):
    """Validates after the epochs that the configuration says, the last of every phase among them.

    So the last val_loss is of the final weights.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the epoch's start: a resumed run may begin in the middle of an epoch.
        never = (trainer.max_epochs or 0) + 1
        trainer.check_val_every_n_epoch = 1 if _config_of(pl_module).is_validated(trainer.current_epoch) else never


class BestWeights(ModelCheckpoint):
    """Keeps the best weights: of the last phase where val_loss tells, of any phase where unseen tasks do.

    val_loss is another quantity under each objective, val_unseen_nll the same under all.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor != "val_loss" or _is_last_phase(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was best, also where the experiment's folder has been moved since: Lightning would forget."""

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        moved = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best_k = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best_k, "dirpath": self.dirpath})


class StopEarlyInLastPhase(EarlyStopping):
    """Stops early, whatever tells, but no phase in favour of the next: it counts validations of the last one alone."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that ended between its last step and its results has no more steps to take.
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_last_phase(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)


def _is_last_phase(trainer: Trainer, pl_module: LightningModule) -> bool:
    config = _config_of(pl_module)
    return config.place_of(trainer.current_epoch)[0] == len(config.schedule) - 1


def _config_of(pl_module: LightningModule) -> TrainingConfig:
    assert isinstance(pl_module, GeneratorModule), "no other is trained here"  # noqa: S101
    return pl_module.config


class MachineUse(Callback):
    """Logs, for every epoch: samples per second, the share of time spent waiting for data, and the machine's use.

    ``gpu_memory_mib`` where the training is on a GPU, with ``gpu_percent`` where the driver tells it, and
    ``cpu_percent`` (of one core) and ``rss_mib`` of this process always. It must be the last callback, so that what the
    others do is not taken for waiting.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._driver_tells = True
        self._started = self._batch_ended = 0.0
        self._waited = 0.0
        self._num_samples = self._num_batches = 0
        self.seconds_per_batch = 0.0
        """Of the last epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed run may begin in the midst of an epoch, whose start it is not told of.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._batch_ended = time.perf_counter()
        self._waited, self._num_samples, self._num_batches = 0.0, 0, 0
        self._process.cpu_percent()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._batch_ended
        self._num_samples += batch.num_samples * trainer.world_size
        self._num_batches += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch_ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Validation, where there was one, lies after the last batch.
        seconds = max(self._batch_ended - self._started, 1e-9)
        self.seconds_per_batch = seconds / max(self._num_batches, 1)
        values = {
            "samples_per_second": self._num_samples / seconds,
            "data_wait_share": self._waited / seconds,
            "cpu_percent": self._process.cpu_percent(),
            "rss_mib": self._process.memory_info().rss / _MEBIBYTE,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        if pl_module.device.type == "cuda":
            if (percent := self._gpu_percent(pl_module.device)) is not None:
                values["gpu_percent"] = percent
            values["gpu_memory_mib"] = torch.cuda.max_memory_allocated(pl_module.device) / _MEBIBYTE
        pl_module.log_dict(values, rank_zero_only=True)

    def _gpu_percent(self, device: torch.device) -> float | None:
        if not self._driver_tells:
            return None
        try:
            return float(torch.cuda.utilization(device))
        except Exception as error:  # noqa: BLE001 - NVML has errors of its own, and a curve is no reason to stop
            self._driver_tells = False
            logger.info("gpu_percent is left out, since the driver does not tell it here (%s).", error)
            return None
