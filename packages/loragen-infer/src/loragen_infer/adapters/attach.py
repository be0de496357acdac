"""Puts an adapter on a model in memory, through PEFT and without touching the disk: for a while, for good, or in the
place of the one that is there. A failure leaves the model as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_tokenizer import LoraAdapter

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = ["adapter_attached", "add_adapter", "swap_adapter"]


@contextmanager
def adapter_attached(model: "PreTrainedModel", adapter: LoraAdapter) -> "Iterator[PeftModel]":
    """Yield ``model`` with ``adapter`` on it, in eval mode; afterwards ``model`` is as it was.

    Raises:
        LoragenInferError: The adapter has a tensor that the model has no place for, or lacks one.
    """
    restore = _remember(model)
    try:
        yield add_adapter(model, adapter)
    finally:
        restore()


def add_adapter(
    model: "PreTrainedModel | PeftModel", adapter: LoraAdapter, *, adapter_name: str = "default"
) -> "PeftModel":
    """Add ``adapter`` to ``model`` in memory, as ``PeftModel.from_pretrained`` and ``load_adapter`` do from a folder.

    Returns:
        ``model`` itself if it is a PeftModel (which adapter is active stays; see ``set_adapter``), and otherwise a
        PeftModel around it.

    Raises:
        LoragenInferError: The adapter has a tensor that the model has no place for, or lacks one; or ``model`` has an
            adapter of that name (see :func:`swap_adapter`). The model is as it was.
    """
    from peft import PeftModel, PeftModelForCausalLM
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel) and adapter_name in model.peft_config:
        raise LoragenInferError(f"The model has an adapter called {adapter_name!r} already; swap it or use a new name.")
    restore = _remember(model)
    try:
        if isinstance(model, PeftModel):
            adapted = model
            model.add_adapter(adapter_name, _config(adapter))
        else:
            # Pipelines know the causal class by name and warn of the general one; it asks for this method of the model.
            kind = PeftModelForCausalLM if hasattr(model, "prepare_inputs_for_generation") else PeftModel
            adapted = kind(model, _config(adapter), adapter_name).eval()
        _fill(adapted, adapter, adapter_name)
    except BaseException as error:
        restore()
        if isinstance(model, PeftModel):
            for layer in model.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.delete_adapter(adapter_name)
            model.peft_config.pop(adapter_name, None)
        if isinstance(error, ValueError):  # how PEFT refuses
            reason = " ".join(str(error).split())
            raise LoragenInferError(f"The adapter does not fit the model: {reason}") from error
        raise
    return adapted


def swap_adapter(model: "PeftModel", adapter: LoraAdapter, *, adapter_name: str | None = None) -> None:
    """Give the adapter called ``adapter_name`` of ``model`` (default: the active one) the values of ``adapter``.

    The tensors of the model are written to in place, so compiled models, optimizers and other adapters stay as they
    are. ``r`` must be the same; ``lora_alpha`` and rsLoRA may differ, since the scaling of every module and the
    adapter's config are set too. It is all or nothing.

    Raises:
        LoragenInferError: There is no such adapter, the two differ in a tensor or in DoRA, or the adapter is merged
            into the base weights.

    Example:
        .. code-block:: python

            model = PeftModel.from_pretrained(base_model, "my-adapter")
            swap_adapter(model, generator.generate(["Name the capital of France."]))
    """
    from peft.tuners.lora import LoraLayer

    name = adapter_name if adapter_name is not None else model.active_adapter
    if name not in model.peft_config:
        known = ", ".join(model.peft_config)
        raise LoragenInferError(f"The model has no adapter called {name!r}; it has {known}.")
    layers = {key: layer for key, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    layers = {key: layer for key, layer in layers.items() if name in layer.scaling}
    if any(layer.merged for layer in layers.values()):
        raise LoragenInferError(f"The adapter {name!r} is merged into the base weights; call unmerge_adapter() first.")
    old = model.peft_config[name]
    if bool(getattr(old, "use_dora", False)) != adapter.config.use_dora:
        raise LoragenInferError(f"Of the adapter {name!r} and the new one only one is a DoRA; attach the new one anew.")
    # PEFT's hotswap_adapter_from_state_dict ignores rank_pattern and alpha_pattern and cannot find embeddings.
    _fill(model, adapter, name)
    for key, layer in layers.items():
        layer.lora_alpha[name] = adapter.config.alpha(key)
        layer.scaling[name] = adapter.config.scaling(key)
        if hasattr(layer, "use_rslora"):  # by which newer versions of PEFT scale anew
            layer.use_rslora[name] = adapter.config.use_rslora
    new = _config(adapter)
    new.inference_mode = old.inference_mode
    new.base_model_name_or_path = new.base_model_name_or_path or old.base_model_name_or_path
    model.peft_config[name] = new


def _config(adapter: LoraAdapter) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(**{key: value for key, value in adapter.config.to_peft().items() if key != "peft_type"})


def _fill(model: "PeftModel", adapter: LoraAdapter, adapter_name: str) -> None:
    """Copy the tensors into their places, if each has one of its shape and no place is left over."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    # Where LoRA adapts an embedding or the head, PEFT would count the layer under it as the adapter's too.
    own = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    expected = {name: tuple(value.shape) for name, value in own.items()}
    given = {name: tuple(value.shape) for name, value in adapter.tensors.items()}
    if expected != given:
        name = min(name for name in {**expected, **given} if expected.get(name) != given.get(name))
        raise LoragenInferError(
            f"The adapter does not fit the model: {name} is {given.get(name, 'missing')}, but the model takes "
            f"{expected.get(name, 'no such tensor')}; use the base model it was trained on."
        )
    set_peft_model_state_dict(model, dict(adapter.tensors), adapter_name=adapter_name)


def _remember(model: "PreTrainedModel | PeftModel") -> Callable[[], None]:
    """Return what puts every module back into its place, thawed or frozen, training or not, as it is now.

    PEFT freezes what it wraps, and where it fails midway it leaves the layers that it has put in until then.
    """
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    modes = [(module, module.training) for module in model.modules()]
    thawed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    had_config = "peft_config" in vars(model)
    # Of a model that keeps less of a forward pass PEFT makes the embeddings need gradients.
    hooks = [(module, set(module._forward_hooks)) for module in model.modules()]
    noted = {name: vars(model).get(name) for name in ("_require_grads_hook", "_require_grads_hooks")}

    def restore() -> None:
        for parent, name, child in children:
            if getattr(parent, name) is not child:
                setattr(parent, name, child)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in thawed:
            parameter.requires_grad_(requires_grad)
        for module, known in hooks:
            for new in set(module._forward_hooks) - known:
                del module._forward_hooks[new]
        for name, value in noted.items():
            if vars(model).get(name) is not value:
                setattr(model, name, value)
        if not had_config:
            vars(model).pop("peft_config", None)

    return restore
