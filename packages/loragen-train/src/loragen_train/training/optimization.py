"""The optimizers and learning-rate schedules that a configuration can name: torch's and transformers' own."""

from collections.abc import Iterable
from typing import Any

import torch

from loragen_train.configs.training import TrainingConfig

__all__ = ["make_optimizer", "make_schedule"]

_SGD_MOMENTUM = 0.9


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer that ``config.optimizer_type`` names."""
    values = list(parameters)
    if config.optimizer_type == "sgd":
        return torch.optim.SGD(
            values, lr=config.learning_rate, weight_decay=config.weight_decay, momentum=_SGD_MOMENTUM
        )
    kind = torch.optim.AdamW if config.optimizer_type == "adamw" else torch.optim.Adam
    return kind(values, lr=config.learning_rate, weight_decay=config.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, num_steps: int) -> dict[str, Any]:
    """Return the schedule of the learning rate in Lightning's form: cosine, linear or constant, after the warm-up.

    Args:
        optimizer: The optimizer.
        config: The kind of schedule, and the steps of warm-up.
        num_steps: Number of optimizer steps of the whole training.
    """
    from transformers import get_scheduler

    name = "constant_with_warmup" if config.scheduler_type == "constant" else config.scheduler_type
    schedule = get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_steps)
    return {"scheduler": schedule, "interval": "step"}
