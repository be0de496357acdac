"""The base model that a generator is trained through: which one it is, and whether the adapters are its."""

from typing import Literal

import torch
from lora_tokenizer import TokenLayout

from loragen_train.configs.collect import Precision
from loragen_train.configs.objectives import LmConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.training.through_lm import AdapterTokens
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.records import faster_precision
from loragen_train.zoo.training_data import TrainingData

__all__ = ["load_base"]


def load_base(
    config: LmConfig,
    data: TrainingData,
    layout: TokenLayout,
    device: torch.device,
    *,
    known_precision: Precision | None = None,
) -> FrozenModel:
    """Load the base model.

    Args:
        config: How it is loaded.
        data: The zoo, which names it.
        layout: The layout of the adapters.
        device: Where it goes.
        known_precision: What it has computed in so far, of a training that is resumed.

    Raises:
        LoragenTrainError: Nothing names it, or it has other shapes than the adapters.
        LoragenInferError: It cannot be loaded.
    """
    name = config.base_model or data.base_model or layout.config.base_model_name_or_path
    if name is None:
        raise LoragenTrainError(
            "The training goes through the base model, which neither a zoo.json nor the adapters name; give it as "
            "training.lm.base_model."
        )
    adapters = AdapterTokens(layout)
    frozen = FrozenModel.load(
        name,
        layout.empty_adapter().modules,
        device=device,
        precision=_precision(config.precision, known_precision),
        tokens_per_pass=config.tokens_per_pass,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    adapters.check_fits(frozen.model, name)
    return frozen


def _precision(chosen: Literal["auto"] | Precision, known: Precision | None) -> Precision:
    if chosen != "auto":
        return chosen
    return known or faster_precision()
