"""Watches how good the adapters are that a generator in training writes for tasks that it has never seen.

Before the first step and at every validation an adapter is generated for every held-out task, and the base model scores
the task's test samples with it, and with adapters generated from other tasks' prompts. Training itself sees neither.

Legend: T tasks, P prompts, N tokens, W values per token, V variants: with a task's own prompts, and with others'.
"""

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lora_tokenizer import LoraAdapter
from loragen_infer import LoragenInferError
from loragen_infer.adapters import AdapterStack
from loragen_infer.models.locate import locate_model
from loragen_infer.samples import tokenize_example
from loragen_infer.zoo import ZooManifest
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from loragen_train.configs.collect import Precision
from loragen_train.configs.fit import FitConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.folder import START_CHECKPOINT
from loragen_train.training.module import GeneratorModule
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.held_out import HeldOutTask, base_model_of, read_held_out
from loragen_train.zoo.tokens import Zoo

__all__ = ["UNSEEN_NLL", "UnseenTasks", "find_watched", "load_watching_model"]

logger = logging.getLogger(__name__)

UNSEEN_NLL = "val_unseen_nll"
"""NLL per response token with the task's own prompts, mean over the held-out tasks."""
_MARGIN = "val_steering_margin"
_OFF = "set training.unseen.enabled to false to train without it"


def find_watched(config: FitConfig, test_hashes: Collection[str], seen: Collection[str]) -> list[HeldOutTask]:
    """Return the held-out tasks to watch, none where that is not wanted or there are none.

    Args:
        config: The training.
        test_hashes: Hashes of the test examples of all tasks, which are in no prompt.
        seen: Hashes of the samples of the training tasks, which no task is scored on.

    Raises:
        LoragenTrainError: There is none, but they are asked for.
        LoragenInferError: A file of samples cannot be read.
    """
    unseen = config.training.unseen
    if not unseen.enabled:
        return []
    tasks = []
    if config.data.zoo is not None:
        manifest = ZooManifest.read(config.data.zoo)
        most = unseen.max_samples
        tasks = read_held_out(manifest, config.data, max_samples=most, test_hashes=test_hashes, seen=seen)
    if not tasks:
        lack = "data.zoo names no zoo" if config.data.zoo is None else f"{config.data.zoo} has no held-out task"
        if unseen.enabled is True:
            raise LoragenTrainError(
                f"training.unseen.enabled is true, but {lack} with test samples; hold tasks out, or {_OFF}."
            )
        logger.info("val_loss decides which weights are best, as %s with test samples.", lack)
    return tasks


def load_watching_model(
    config: FitConfig, zoo: Zoo, tasks: Sequence[HeldOutTask], device: torch.device
) -> FrozenModel | None:
    """Return the base model of the zoo, on ``device``, to score ``tasks`` with.

    None, and a warning, where it cannot be had, or does not fit the adapters, and is not asked for.

    Raises:
        LoragenTrainError: It is asked for.
    """
    assert config.data.zoo is not None, "held-out tasks are those of a zoo"  # noqa: S101
    name, is_asked_for = base_model_of(ZooManifest.read(config.data.zoo)), config.training.unseen.enabled is True
    try:
        if not is_asked_for and not Path(locate_model(name, kind="base model")).exists():
            raise LoragenInferError(
                f"The base model {name!r} is not on this machine; training.unseen.enabled true downloads it."
            )
        precision: Precision = "fp32" if device.type == "cpu" else "bf16"
        frozen = FrozenModel.load(name, zoo.layout.empty_adapter().modules, device=device, precision=precision)
        # What does not fit shall come to light before a training begins.
        rehearsed = AdapterStack.of([zoo.layout.decode(torch.zeros(zoo.layout.num_tokens, zoo.layout.token_dim))])
        frozen.mean_nll(rehearsed, [[tokenize_example(frozen.tokenizer, tasks[0].tests[0])]])
    except LoragenInferError as error:
        if is_asked_for:
            reason = str(error).rstrip(".")
            raise LoragenTrainError(f"The held-out tasks cannot be watched: {reason}; or {_OFF}.") from error
        logger.warning("The held-out tasks are not watched, and val_loss decides which weights are best: %s", error)
        return None
    return frozen


class UnseenTasks(Callback):
    """Logs ``val_unseen_nll`` and ``val_steering_margin`` (NLL with other tasks' prompts minus NLL with its own).

    Several processes score a part of the tasks each. The weights before the first step are kept too, since a generator
    that starts as a regression may not become better.

    Args:
        tasks: The tasks.
        numbers: The numbers of each task's prompts in the module's condition.
        frozen: The base model.
        zoo: Says what the generator's tokens stand for.
        config: The training.
    """

    def __init__(
        self,
        tasks: Sequence[HeldOutTask],
        numbers: dict[str, range],
        frozen: FrozenModel,
        zoo: Zoo,
        config: FitConfig,
    ) -> None:
        self._names = [task.name for task in tasks]
        prompts = [torch.tensor(numbers[name]) for name in self._names]
        self._prompts_TP = pad_sequence(prompts, batch_first=True)
        self._mask_TP = pad_sequence([torch.ones_like(own, dtype=torch.bool) for own in prompts], batch_first=True)
        self._tests = [[tokenize_example(frozen.tokenizer, test) for test in task.tests] for task in tasks]
        self._frozen, self._zoo = frozen, zoo
        self._batch_size, self._training = config.data.batch_size, config.training
        self._num_wrong = min(config.training.unseen.num_wrong_tasks, len(tasks) - 1)
        self._nll_T = torch.zeros(len(tasks))
        self.start_nll = math.inf
        """``val_unseen_nll`` before the first step, also that of an earlier run which this one resumes."""
        content = json.dumps([asdict(task) for task in tasks])
        self.digest = hashlib.sha256(content.encode()).hexdigest()
        """SHA-256 of the tasks' prompts and test samples: only scores of the same ones can be compared."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and keep what the training starts from.

        Raises:
            LoragenTrainError: A score is not finite.
        """
        if trainer.global_step:
            return  # resumed
        scores = self._score(trainer, pl_module)
        self._check_finite("before the first step, so the base model cannot judge here")
        self.start_nll = scores[UNSEEN_NLL]
        for tracker in trainer.loggers:
            tracker.log_metrics({"epoch": 0, **scores}, step=0)
            tracker.save()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / START_CHECKPOINT, weights_only=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and log."""
        pl_module.log_dict(self._score(trainer, pl_module), on_step=False, on_epoch=True, batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the scores mean nothing; of a val_loss that is not finite others say what is wrong.

        Raises:
            LoragenTrainError: A score is not finite.
        """
        if math.isfinite(trainer.callback_metrics["val_loss"]):
            where = f"in epoch {trainer.current_epoch}, although val_loss is finite"
            rate = self._training.phase_of(trainer.current_epoch).learning_rate
            self._check_finite(f"{where}; lower {self._training.rate_key}, which is {rate}")

    def state_dict(self) -> dict[str, Any]:
        """What the training started from."""
        return {"start_nll": self.start_nll}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.start_nll = state_dict["start_nll"]

    def _score(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, GeneratorModule), "fit trains no other"  # noqa: S101
        num_tasks = len(self._names)
        stack = AdapterStack.of(self._generate(pl_module))
        # Adapter and task: first each task's own, then the next task's, and so on.
        pairs = [((task + step) % num_tasks, task) for step in range(1 + self._num_wrong) for task in range(num_tasks)]
        part = slice(trainer.global_rank, None, trainer.world_size)
        nll = torch.zeros(len(pairs), device=pl_module.device)
        if own := pairs[part]:
            found = self._frozen.mean_nll(
                stack.select([adapter for adapter, _ in own]), [self._tests[task] for _, task in own]
            )
            nll[part] = torch.tensor(found, device=nll.device)
        if trainer.world_size > 1:
            nll = trainer.strategy.reduce(nll, reduce_op="sum")
        nll_VT = nll.cpu().view(-1, num_tasks)
        self._nll_T = nll_VT[0]
        scores = {UNSEEN_NLL: float(self._nll_T.mean())}
        if self._num_wrong:
            scores[_MARGIN] = float(nll_VT[1:].mean() - self._nll_T.mean())
        return scores

    @torch.no_grad()
    def _generate(self, module: GeneratorModule) -> list[LoraAdapter]:
        prompts_TP, mask_TP = self._prompts_TP.to(module.device), self._mask_TP.to(module.device)
        with _in_eval_mode(module):
            # No more at once than a step of training has the memory for.
            parts = zip(*(torch.split(of_all, self._batch_size) for of_all in (prompts_TP, mask_TP)), strict=True)
            tokens = [module.generator(module.condition(prompts), mask).float().cpu() for prompts, mask in parts]
        tokens_TNW = self._zoo.stats.denormalize(torch.cat(tokens))
        return [self._zoo.layout.decode(tokens_NW) for tokens_NW in tokens_TNW]

    def _check_finite(self, when: str) -> None:
        for name, nll in zip(self._names, self._nll_T.tolist(), strict=True):
            if not math.isfinite(nll):
                raise LoragenTrainError(f"The NLL of the held-out task {name!r} is {nll} {when}; {_OFF}.")


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
