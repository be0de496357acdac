"""Puts an adapter on a model in memory, through PEFT and without touching the disk: for a while, or in the place of
the one that is there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_tokenizer import LoraAdapter

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["adapter_attached", "swap_adapter"]


@contextmanager
def adapter_attached(model: "PreTrainedModel", adapter: LoraAdapter) -> "Iterator[PeftModel]":
    """Yield ``model`` with ``adapter`` on it, in eval mode; afterwards ``model`` is as it was.

    Raises:
        LoragenInferError: The adapter has a tensor that the model has no place for, or lacks one.
    """
    from peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict

    fields = {key: value for key, value in adapter.config.to_peft().items() if key != "peft_type"}
    # PEFT freezes the model that it wraps, and does not thaw it when it unloads.
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Pipelines know the causal class by name and warn of the general one; that class asks for this method of the model.
    kind = PeftModelForCausalLM if hasattr(model, "prepare_inputs_for_generation") else PeftModel
    try:
        wrapped = kind(model, LoraConfig(**fields))
    except ValueError as error:
        raise LoragenInferError(f"The adapter does not fit the model: {' '.join(str(error).split())}") from error
    try:
        _check_same_tensors(get_peft_model_state_dict(wrapped), adapter)
        set_peft_model_state_dict(wrapped, dict(adapter.tensors))
        yield wrapped.eval()
    finally:
        wrapped.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)


def swap_adapter(model: "PeftModel", adapter: LoraAdapter, *, adapter_name: str | None = None) -> None:
    """Give the adapter called ``adapter_name`` of ``model`` (default: the active one) the values of ``adapter``.

    The tensors of the model are written to in place, so nothing is allocated, no module is exchanged, and compiled
    models, optimizers and other adapters stay as they are. ``r`` must be the same; ``lora_alpha`` and rsLoRA may
    differ, since the scaling of every module is set too. It is all or nothing.

    Raises:
        LoragenInferError: There is no such adapter, the two differ in a tensor or in DoRA, or the adapter is merged
            into the base weights.

    Example:
        .. code-block:: python

            model = PeftModel.from_pretrained(base_model, "my-adapter")
            swap_adapter(model, generator.generate(["Name the capital of France."]))
    """
    import torch
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    name = adapter_name if adapter_name is not None else model.active_adapter
    if name not in model.peft_config:
        known = ", ".join(model.peft_config)
        raise LoragenInferError(f"The model has no adapter called {name!r}; it has {known}.")
    layers = {key: layer for key, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    layers = {key: layer for key, layer in layers.items() if name in layer.scaling}
    if any(layer.merged for layer in layers.values()):
        raise LoragenInferError(f"The adapter {name!r} is merged into the base weights; call unmerge_adapter() first.")
    if bool(getattr(model.peft_config[name], "use_dora", False)) != adapter.config.use_dora:
        raise LoragenInferError(f"Of the adapter {name!r} and the new one only one is a DoRA; attach the new one anew.")
    own = get_peft_model_state_dict(model, adapter_name=name)
    _check_same_tensors(own, adapter)
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(adapter.tensors[key])
    for key, layer in layers.items():
        layer.scaling[name] = adapter.config.scaling(key)


def _check_same_tensors(own: "Mapping[str, torch.Tensor]", adapter: LoraAdapter) -> None:
    expected = {name: tuple(value.shape) for name, value in own.items()}
    given = {name: tuple(value.shape) for name, value in adapter.tensors.items()}
    if expected != given:
        name = min(name for name in {**expected, **given} if expected.get(name) != given.get(name))
        raise LoragenInferError(
            f"The adapter does not fit the model: {name} is {given.get(name, 'missing')}, but the model takes "
            f"{expected.get(name, 'no such tensor')}; use the base model it was trained on."
        )
