"""Puts an adapter on a model in memory, through PEFT and without touching the disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_tokenizer import LoraAdapter

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["adapter_attached"]


@contextmanager
def adapter_attached(model: "PreTrainedModel", adapter: LoraAdapter) -> "Iterator[PeftModel]":
    """Yield ``model`` with ``adapter`` on it, in eval mode; afterwards ``model`` is as it was.

    Raises:
        LoragenInferError: The adapter has a tensor that the model has no place for, or lacks one.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    fields = {key: value for key, value in adapter.config.to_peft().items() if key != "peft_type"}
    # PEFT freezes the model that it wraps, and does not thaw it when it unloads.
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        wrapped = PeftModel(model, LoraConfig(**fields))
    except ValueError as error:
        raise LoragenInferError(f"The adapter does not fit the model: {' '.join(str(error).split())}") from error
    try:
        expected = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(wrapped).items()}
        given = {name: tuple(value.shape) for name, value in adapter.tensors.items()}
        if expected != given:
            name = min(name for name in {**expected, **given} if expected.get(name) != given.get(name))
            raise LoragenInferError(
                f"The adapter does not fit the model: {name} is {given.get(name, 'missing')}, but the model takes "
                f"{expected.get(name, 'no such tensor')}; use the base model it was trained on."
            )
        set_peft_model_state_dict(wrapped, dict(adapter.tensors))
        yield wrapped.eval()
    finally:
        wrapped.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)
