"""The frozen base model of a training: which one it is, what it computes in, and whether the adapters are its."""

import logging
from typing import Literal

import torch
from lora_tokenizer import TokenLayout
from loragen_infer import LoragenInferError

from loragen_train.configs.collect import Precision
from loragen_train.configs.training import TrainingConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.training.through_lm import AdapterTokens
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.records import faster_precision
from loragen_train.zoo.training_data import TrainingData

__all__ = ["load_base"]

logger = logging.getLogger(__name__)


def load_base(
    training: TrainingConfig,
    data: TrainingData,
    layout: TokenLayout,
    device: torch.device,
    *,
    known_precision: Precision | None = None,
) -> FrozenModel | None:
    """Load the base model where it is trained through, or where held-out tasks of the zoo can be judged with it.

    Args:
        training: Says whether it is needed, and how it is loaded.
        data: The zoo, which names it.
        layout: The layout of the adapters.
        device: Where it goes.
        known_precision: What it has computed in so far, of a training that is resumed.

    Raises:
        LoragenTrainError: A phase needs it and nothing names it, or it has other shapes than the adapters.
        LoragenInferError: A phase needs it, and it cannot be loaded.
    """
    is_needed = training.is_through_lm
    if not is_needed and not data.can_judge_held_out:
        return None
    name = training.lm.base_model or data.base_model or layout.config.base_model_name_or_path
    if name is None:
        if not is_needed:
            return None
        raise LoragenTrainError(
            "The training goes through the base model, which neither a zoo.json nor the adapters name; give it as "
            "training.lm.base_model."
        )
    try:
        adapters = AdapterTokens(layout)
        frozen = FrozenModel.load(
            name,
            layout.empty_adapter().modules,
            device=device,
            precision=_precision(training.lm.precision, known_precision),
            tokens_per_pass=training.lm.tokens_per_pass,
            gradient_checkpointing=training.lm.gradient_checkpointing,
        )
        adapters.check_fits(frozen.model, name)
    except (LoragenInferError, LoragenTrainError) as error:
        if is_needed:
            raise
        logger.info("Held-out tasks are not judged: %s", error)
        return None
    return frozen


def _precision(chosen: Literal["auto"] | Precision, known: Precision | None) -> Precision:
    if chosen != "auto":
        return chosen
    return known or faster_precision()
