"""Many LoRA adapters on one frozen language model at once: every sample of a batch sees its own.

The samples of an adapter stand together in the batch, so one batched product per factor serves all adapters and nothing
is repeated per sample or per token. Forward hooks on the adapted layers add the adapters; the model itself, its module
names and its weights stay as they are.

Legend: K adapters, B samples, S sequence length, r rank, i and o the features into and out of a layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lora_tokenizer import LoraAdapter
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from loragen_infer.errors import LoragenInferError
from loragen_infer.words import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterStack", "BatchedLora"]


@dataclass(frozen=True, kw_only=True)
class AdapterStack:
    """The factors of K adapters of the same modules, stacked."""

    a_Kri: Mapping[str, Tensor]
    """A ``[K, r, in]`` of every module, by its full name without ``base_model.model.``."""
    b_Kor: Mapping[str, Tensor]
    """B ``[K, out, r]`` of the same modules."""
    scaling_K: Mapping[str, Tensor]
    """``[K]``, the factors on B @ A."""

    @classmethod
    def of(cls, adapters: Sequence[LoraAdapter]) -> "AdapterStack":
        """Stack ``adapters``; lower ranks are filled up with zeros, which changes nothing.

        Raises:
            LoragenInferError: There is none, two differ in their modules or shapes, or one is more than two factors
                per linear layer (DoRA, lora_bias, an adapted embedding).
        """
        if not adapters:
            raise LoragenInferError("There are no adapters to apply; give one at least.")
        modules = adapters[0].modules
        for number, adapter in enumerate(adapters):
            _check_plain(adapter)
            if differing := sorted(set(modules) ^ set(adapter.modules)):
                raise LoragenInferError(
                    f"Adapter {number} and adapter 0 differ in the module {differing[0]!r}; apply them apart."
                )
        factors = {name: [adapter.factors(name) for adapter in adapters] for name in modules}
        for name, pairs in factors.items():
            if len({(a_ri.shape[1], b_or.shape[0]) for a_ri, b_or in pairs}) > 1:
                raise LoragenInferError(
                    f"The adapters have different shapes in {name!r}; they are of different models."
                )
        rank = {name: max(a_ri.shape[0] for a_ri, _ in pairs) for name, pairs in factors.items()}
        return cls(
            a_Kri={
                name: torch.stack([pad(a_ri, (0, 0, 0, rank[name] - len(a_ri))) for a_ri, _ in pairs])
                for name, pairs in factors.items()
            },
            b_Kor={
                name: torch.stack([pad(b_or, (0, rank[name] - b_or.shape[1])) for _, b_or in pairs])
                for name, pairs in factors.items()
            },
            scaling_K={name: torch.tensor([adapter.scaling(name) for adapter in adapters]) for name in modules},
        )

    @property
    def num_adapters(self) -> int:
        """K."""
        return len(next(iter(self.scaling_K.values())))

    def select(self, adapters: Sequence[int]) -> "AdapterStack":
        """Return the stack of those adapters, which gradients pass through."""
        places = torch.tensor(adapters)

        def chosen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[places.to(tensor.device)] for name, tensor in tensors.items()}

        return AdapterStack(a_Kri=chosen(self.a_Kri), b_Kor=chosen(self.b_Kor), scaling_K=chosen(self.scaling_K))


@dataclass(frozen=True, eq=False)
class _Applied:
    """What the hooks read while adapters are applied: factors in the dtype of their layer, B with the scaling in it."""

    a_Kir: dict[str, Tensor]
    b_Kro: dict[str, Tensor]
    sizes: list[int]
    is_packed: bool
    dropout: float


class BatchedLora:
    """Applies K adapters at once to a causal language model, whose weights it freezes; ``remove`` undoes all.

    Works on any model whose adapted layers are ``nn.Linear`` that see the samples of a batch in order, with gradient
    checkpointing and under ``torch.compile`` too (attach first, then compile).

    Args:
        model: The language model, without adapters.
        modules: Full names of the layers to adapt, as ``LoraAdapter.modules`` has them.

    Raises:
        LoragenInferError: The model has no such layer, it is no ``nn.Linear``, or a forward pass does not reach it.

    Example:
        .. code-block:: python

            batched = BatchedLora(model, adapters[0].modules)
            with batched.applied(AdapterStack.of(adapters), num_samples=[4, 4]):
                logits = model(input_ids).logits  # of 8 samples, the first 4 with the first adapter
    """

    def __init__(self, model: "PreTrainedModel", modules: Iterable[str]) -> None:
        self._applied: _Applied | None = None
        self._last: _Applied | None = None
        self._is_running = False
        self._layers = {name: _find_linear(model, name) for name in modules}
        if not self._layers:
            raise LoragenInferError("There is no module to adapt; name one at least.")
        self._thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._thawed:
            parameter.requires_grad_(False)
        self._hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        self._hooks.append(model.register_forward_pre_hook(self._begin))
        self._hooks.append(model.register_forward_hook(self._end, always_call=True))
        try:
            self._check_reached(model)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks off the model and thaw what was not frozen before."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._thawed:
            parameter.requires_grad_(True)

    @contextmanager
    def applied(
        self,
        adapters: AdapterStack,
        *,
        num_samples: Sequence[int] | None = None,
        num_tokens: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> Iterator[None]:
        """Apply ``adapters`` to all forward passes in the block; a backward pass belongs into the block too.

        Args:
            adapters: The adapters, of all modules that were named.
            num_samples: How many samples of the batch each adapter has, one adapter's after another's; by default all
                have as many.
            num_tokens: For sequences packed into one row: how many of its tokens each adapter has.
            dropout: Probability of zeroing an input of A, as ``lora_dropout``.

        Raises:
            LoragenInferError: The stack is not of the modules that were named, or the counts are not of its adapters;
                in a forward pass: the batch has another number of samples.
        """
        if self._applied is not None:
            raise LoragenInferError("Adapters are applied already; leave that block first.")
        if differing := sorted(set(adapters.a_Kri) ^ set(self._layers)):
            raise LoragenInferError(f"The adapters and the layers that were named differ in {differing[0]!r}.")
        sizes = list(num_samples or num_tokens or [1] * adapters.num_adapters)
        if len(sizes) != adapters.num_adapters:
            raise LoragenInferError(f"There are {adapters.num_adapters} adapters, but counts for {len(sizes)}.")
        a_Kir, b_Kro = {}, {}
        for name, layer in self._layers.items():
            weight, b_Kor = layer.weight, adapters.b_Kor[name]
            scaling_K11 = adapters.scaling_K[name].to(b_Kor)[:, None, None]
            a_Kir[name] = adapters.a_Kri[name].to(weight.device, weight.dtype).mT
            # Scaled while it is still in full precision.
            b_Kro[name] = (b_Kor * scaling_K11).to(weight.device, weight.dtype).mT
        is_packed = num_samples is None and num_tokens is not None
        self._applied = _Applied(a_Kir, b_Kro, sizes, is_packed, dropout)
        try:
            yield
        finally:
            self._applied = None

    def _begin(self, *_: Any) -> None:
        self._is_running = True
        self._last = self._applied

    def _end(self, *_: Any) -> None:
        self._is_running = False

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            applied, (x,) = self._applied, args
            if not self._is_running and x.requires_grad and applied is not self._last:
                raise LoragenInferError(
                    "A gradient checkpoint is computed again after its adapters were taken away; call backward() "
                    "within the block that applies them."
                )
            return output if applied is None else _add(x, output, name, applied)

        return add

    def _check_reached(self, model: "PreTrainedModel") -> None:
        """Run one forward pass and look whether every layer took part in it."""
        reached: set[str] = set()
        watches = [
            layer.register_forward_hook(lambda *_, name=name: reached.add(name)) for name, layer in self._layers.items()
        ]
        try:
            with torch.inference_mode():
                model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
        finally:
            for watch in watches:
                watch.remove()
        if missed := [name for name in self._layers if name not in reached]:
            raise LoragenInferError(
                f"A forward pass of the model does not reach {missed[0]!r} (of {len(missed)} modules), so an adapter "
                "there would do nothing; leave it out."
            )


def _add(x: Tensor, output: Tensor, name: str, applied: _Applied) -> Tensor:
    """Return ``output`` of a layer on ``x`` with the adapters' part."""
    a_Kir, b_Kro, sizes = applied.a_Kir[name], applied.b_Kro[name], applied.sizes
    if applied.dropout:
        x = dropout(x, applied.dropout)
    if not applied.is_packed and len(set(sizes)) == 1:
        num_adapters = len(sizes)
        if x.shape[0] % num_adapters:
            raise _wrong_batch(name, x, applied)
        h_Ktr = torch.bmm(x.reshape(num_adapters, -1, x.shape[-1]), a_Kir)
        output_Kto = output.reshape(num_adapters, -1, output.shape[-1])
        return torch.baddbmm(output_Kto, h_Ktr, b_Kro).view_as(output)
    x_ni, output_no = (x.flatten(0, -2), output.flatten(0, -2)) if applied.is_packed else (x, output)
    if sum(sizes) != x_ni.shape[0]:
        raise _wrong_batch(name, x, applied)
    parts = zip(torch.split(x_ni, sizes), torch.split(output_no, sizes), a_Kir, b_Kro, strict=True)
    return torch.cat([part + x_part @ a_ir @ b_ro for x_part, part, a_ir, b_ro in parts]).view_as(output)


def _wrong_batch(name: str, x: Tensor, applied: _Applied) -> LoragenInferError:
    kind = "tokens" if applied.is_packed else "samples"
    return LoragenInferError(
        f"The batch that reaches {name!r} has the shape {list(x.shape)}, but the adapters have "
        f"{', '.join(map(str, applied.sizes))} {kind}; apply them with the counts of this batch."
    )


def _check_plain(adapter: LoraAdapter) -> None:
    for option in ("use_dora", "lora_bias"):
        if getattr(adapter.config, option):
            raise LoragenInferError(f"An adapter has {option}, which cannot be applied in a batch; attach it alone.")
    if embedding := next((name for name in adapter.tensors if "lora_embedding" in name), None):
        raise LoragenInferError(
            f"{embedding} adapts an embedding, which cannot be applied in a batch; attach it alone."
        )


def _find_linear(model: "PreTrainedModel", name: str) -> nn.Linear:
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        known = nearest(name, [other for other, module in model.named_modules() if isinstance(module, nn.Linear)])
        raise LoragenInferError(f"The model has no module {name!r}{known}; use the base model it is for.") from error
    if not isinstance(layer, nn.Linear):
        raise LoragenInferError(f"{name!r} is a {type(layer).__name__}; only nn.Linear can be adapted in a batch.")
    return layer
