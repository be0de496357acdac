"""The optimizers and learning-rate schedules that a configuration can name: torch's and transformers' own."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from loragen_train.configs.training import TrainingConfig

__all__ = ["make_optimizer", "make_schedule"]

_SGD_MOMENTUM = 0.9


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer that ``config.optimizer_type`` names, at the peak learning rate of the first phase."""
    values, learning_rate = list(parameters), config.schedule[0].learning_rate
    if config.optimizer_type == "sgd":
        return torch.optim.SGD(values, lr=learning_rate, weight_decay=config.weight_decay, momentum=_SGD_MOMENTUM)
    kind = torch.optim.AdamW if config.optimizer_type == "adamw" else torch.optim.Adam
    # Lightning clips no gradients of a fused optimizer in mixed precision.
    is_mixed = config.precision.endswith("mixed") or config.precision in ("16", "bf16")
    is_fused = not is_mixed and all(value.device.type in ("cpu", "cuda") for value in values)
    return kind(values, lr=learning_rate, weight_decay=config.weight_decay, fused=is_fused or None)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, num_steps: Sequence[int]) -> dict[str, Any]:
    """Return the schedule of the learning rate in Lightning's form: cosine, linear or constant, after the warm-up.

    Args:
        optimizer: The optimizer, at the peak learning rate of the first phase.
        config: The kind of schedule, the steps of warm-up, and the phases, each of which has it anew.
        num_steps: Number of optimizer steps of each phase.
    """
    from transformers import get_scheduler

    name = "constant_with_warmup" if config.scheduler_type == "constant" else config.scheduler_type
    # Only how it changes is taken from it; what it is attached to does not matter.
    stand_in = torch.optim.SGD([torch.zeros(1)])
    schedules = [
        get_scheduler(name, stand_in, num_warmup_steps=config.warmup_steps, num_training_steps=steps)
        for steps in num_steps
    ]
    factors = [schedule.lr_lambdas[0] for schedule in schedules]
    starts = list(itertools.accumulate(num_steps[:-1], initial=0))
    peaks = [phase.learning_rate for phase in config.schedule]

    def factor(step: int) -> float:
        place = bisect.bisect_right(starts, step) - 1
        return float(peaks[place] / peaks[0] * factors[place](step - starts[place]))

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
