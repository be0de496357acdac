"""Many LoRA adapters on one frozen language model at once: every sample of a batch sees its own.

The samples of an adapter stand together in the batch, so one batched product per factor serves all adapters and nothing
is repeated per sample or per token. Forward hooks on the adapted layers add the adapters; the model itself, its module
names and its weights stay as they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from lora_tokenizer import LoraAdapter
from torch import Tensor, nn

from loragen_infer.adapters.applied import Applied, add_adapters, check_layout, find_misfit
from loragen_infer.adapters.stack import AdapterStack
from loragen_infer.errors import LoragenInferError
from loragen_infer.words import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BatchedLora"]


class _Frozen:
    """The parameters of a model that are frozen for as long as anything uses them so."""

    def __init__(self) -> None:
        self.num_users = 0
        self.parameters: list[nn.Parameter] = []

    def enter(self, model: nn.Module) -> None:
        self.num_users += 1
        self.parameters += [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def leave(self) -> None:
        self.num_users -= 1
        if not self.num_users:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            self.parameters = []


# Several BatchedLora may be on one model and go in any order, so what was frozen is kept per model.
_FROZEN: WeakKeyDictionary[nn.Module, _Frozen] = WeakKeyDictionary()


class BatchedLora:
    """Applies K adapters at once to a causal language model, whose weights it freezes; ``remove`` undoes all.

    Works on any model whose adapted layers are ``nn.Linear`` that see the samples of a batch in order, with gradient
    checkpointing and under ``torch.compile`` too (attach first, then compile). Under reentrant checkpointing, factors
    that one network computes together cannot be trained: that is a limit of PyTorch, ``use_reentrant=False`` has none.

    Args:
        model: The language model, without adapters.
        modules: Full names of the layers to adapt, as ``LoraAdapter.modules`` has them.

    Raises:
        LoragenInferError: The model has no such layer, it is no ``nn.Linear``, or a forward pass does not reach it or
            shows it something else than the samples.

    Example:
        .. code-block:: python

            batched = BatchedLora(model, adapters[0].modules)
            with batched.applied(AdapterStack.of(adapters), num_samples=[4, 4]):
                logits = model(input_ids).logits  # of 8 samples, the first 4 with the first adapter
    """

    def __init__(self, model: "PreTrainedModel", modules: Iterable[str]) -> None:
        self._layers = {name: _find_linear(model, name) for name in modules}
        if not self._layers:
            raise LoragenInferError("There is no module to adapt; name one at least.")
        self._block: Applied | None = None
        # Other than the block's only in a backward pass, which computes checkpoints again.
        self._applied: Applied | None = None
        self._backward = -1
        self._shape: tuple[int, int] | None = None
        self._is_reached = dict.fromkeys(self._layers, False)
        self._frozen = _FROZEN.setdefault(model, _Frozen())
        self._frozen.enter(model)
        self._hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        self._hooks.append(model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._hooks.append(model.register_forward_hook(self._end, always_call=True))
        try:
            self._check_reached(model)
        except BaseException:
            self.remove()
            raise

    def fits(self, adapter: LoraAdapter) -> bool:
        """Whether ``adapter`` is of the layers that were named and of their shapes."""
        if set(adapter.modules) != set(self._layers):
            return False
        factors = {name: adapter.factors(name) for name in adapter.modules}
        features = {name: (a_ri.shape[1], b_or.shape[0]) for name, (a_ri, b_or) in factors.items()}
        return features == {name: (layer.in_features, layer.out_features) for name, layer in self._layers.items()}

    def remove(self) -> None:
        """Take the hooks off the model and thaw what was not frozen before."""
        if self._hooks:
            self._frozen.leave()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def applied(
        self,
        adapters: AdapterStack,
        *,
        num_samples: Sequence[int] | None = None,
        num_tokens: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> Iterator[None]:
        """Apply ``adapters`` to all forward passes in the block; their backward passes may come later.

        Args:
            adapters: The adapters, of all modules that were named.
            num_samples: How many samples of the batch each adapter has, one adapter's after another's; by default all
                have as many.
            num_tokens: For sequences packed into one row: how many of its tokens each adapter has.
            dropout: Probability of zeroing an input of A, as ``lora_dropout``; in eval mode too.

        Raises:
            LoragenInferError: The stack does not fit the layers that were named, or the counts are not of its adapters;
                in a forward pass: the batch is not of those counts; at the end: no forward pass reached a layer.
        """
        if not self._hooks:
            raise LoragenInferError("The adapters' hooks were removed from the model; make a new BatchedLora.")
        if self._block is not None:
            raise LoragenInferError("Adapters are applied already; leave that block first.")
        self._block = self._applied = self._place(adapters, num_samples, num_tokens, dropout)
        self._is_reached = dict.fromkeys(self._layers, False)
        try:
            yield
        finally:
            self._block = self._applied = self._shape = None
        if missed := [name for name, is_reached in self._is_reached.items() if not is_reached]:
            raise LoragenInferError(
                f"No forward pass reached {missed[0]!r} (of {len(missed)} modules) while adapters were applied, so "
                "they did nothing there; call the model itself in the block, and attach before torch.compile."
            )

    def _place(
        self,
        adapters: AdapterStack,
        num_samples: Sequence[int] | None,
        num_tokens: Sequence[int] | None,
        dropout: float,
    ) -> Applied:
        if differing := sorted(set(adapters.a_Kri) ^ set(self._layers)):
            raise LoragenInferError(f"The adapters and the layers that were named differ in {differing[0]!r}.")
        for name, layer in self._layers.items():
            features = adapters.a_Kri[name].shape[-1], adapters.b_Kor[name].shape[1]
            if features != (layer.in_features, layer.out_features):
                raise LoragenInferError(
                    f"The adapters are for a {name!r} of {features[0]} to {features[1]} features, but the model's has "
                    f"{layer.in_features} to {layer.out_features}; they are of another model."
                )
        if num_samples is not None and num_tokens is not None:
            raise LoragenInferError("num_samples and num_tokens exclude each other; a packed row has num_tokens.")
        if not 0 <= dropout < 1:
            raise LoragenInferError(f"dropout is {dropout}, but a probability below 1 is needed.")
        counts = num_samples if num_samples is not None else num_tokens
        sizes = None if counts is None else tuple(int(count) for count in counts)
        number = adapters.num_adapters
        if not number:
            raise LoragenInferError("There are no adapters to apply; give one at least.")
        if sizes is not None and (len(sizes) != number or min(sizes) < 0 or not any(sizes)):
            raise LoragenInferError(
                f"There are {number} adapters, but the counts {list(sizes)}; give each how many it has, 0 or more."
            )
        devices = {name: layer.weight.device for name, layer in self._layers.items()}
        return Applied(
            a_Kri={name: adapters.a_Kri[name].to(device) for name, device in devices.items()},
            b_Kor={name: adapters.b_Kor[name].to(device) for name, device in devices.items()},
            scaling_K11={name: adapters.scaling_K[name].to(device)[:, None, None] for name, device in devices.items()},
            num_adapters=number,
            sizes=sizes,
            is_packed=num_tokens is not None,
            dropout=dropout,
        )

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.compiler.is_compiling() and not _is_in_backward():
            self._applied = self._block  # which a backward pass that failed did not put back
        inputs = next(
            (value for value in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if value is not None),
            None,
        )
        if self._applied is None or inputs is None:
            return
        num_samples, num_tokens = inputs.shape[:2]
        if not torch.compiler.is_compiling():  # a compiler would compile anew for every shape that it finds there
            self._shape = num_samples, num_tokens
        num_rows = num_samples * num_tokens if self._applied.is_packed else num_samples
        if misfit := find_misfit(num_rows, self._applied):
            raise LoragenInferError(f"The batch has the shape {list(inputs.shape[:2])}, but {misfit}")

    def _end(self, _: nn.Module, __: tuple[Any, ...], outputs: Any) -> None:
        self._shape = None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for tensor in _tensors(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(self._replay(self._applied))  # type: ignore[no-untyped-call]

    def _replay(self, applied: Applied | None) -> Callable[[Tensor], None]:
        """Return a hook that starts the backward pass of a forward pass with the adapters that it had."""

        def start(_: Tensor) -> None:
            backward = torch._C._current_graph_task_id()
            if self._backward != backward:
                self._backward, self._applied = backward, applied
                torch.autograd.Variable._execution_engine.queue_callback(self._finish)
            elif self._applied is not applied:
                # Checkpoints of both would be computed again in an order that is autograd's business.
                raise LoragenInferError(
                    "One backward pass is of forward passes with different adapters; call backward() for each."
                )

        return start

    def _finish(self) -> None:
        self._applied = self._block

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if _is_in_backward() and torch._C._current_graph_task_id() != self._backward:
                raise LoragenInferError(
                    f"A backward pass computes the checkpoint with {name!r} again without coming from the model's "
                    "output, so which adapters it had is unknown; take the loss from the output."
                )
            applied, x = self._applied, args[0]
            if applied is None:
                return output
            self._is_reached[name] = True
            if not torch.compiler.is_compiling() and self._shape is not None:
                check_layout(name, x, self._shape)
            return add_adapters(x, output, name, applied)

        return add

    def _check_reached(self, model: "PreTrainedModel") -> None:
        """Run one forward pass and look whether every layer took part in it and saw the samples in order."""
        shape = (2, 3)
        reached: set[str] = set()

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def look(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
                reached.add(name)
                check_layout(name, args[0], shape)

            return look

        watches = [layer.register_forward_hook(watch(name)) for name, layer in self._layers.items()]
        # Neither dropout, which would draw random numbers, nor checkpointing, which would warn.
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():  # under inference mode the buffers that a model makes could never be trained through
                model(input_ids=torch.zeros(shape, dtype=torch.long, device=model.device), use_cache=False)
        finally:
            for hook in watches:
                hook.remove()
            for module in training:
                module.training = True
        if missed := [name for name in self._layers if name not in reached]:
            raise LoragenInferError(
                f"A forward pass of the model does not reach {missed[0]!r} (of {len(missed)} modules), so an adapter "
                "there would do nothing; leave it out."
            )


def _is_in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | tuple | list):
        for value in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(value)


def _find_linear(model: "PreTrainedModel", name: str) -> nn.Linear:
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        known = nearest(name, [other for other, module in model.named_modules() if isinstance(module, nn.Linear)])
        raise LoragenInferError(f"The model has no module {name!r}{known}; use the base model it is for.") from error
    if not isinstance(layer, nn.Linear):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"  # PEFT's own is called Linear as well
        raise LoragenInferError(f"{name!r} is a {kind}; only torch.nn.Linear can be adapted in a batch.")
    return layer
