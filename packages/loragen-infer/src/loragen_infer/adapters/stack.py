"""The factors of K LoRA adapters of the same modules, stacked, so that one product per factor serves all.

Legend: K adapters, r rank, i and o the features into and out of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lora_tokenizer import LoraAdapter
from torch import Tensor
from torch.nn.functional import pad

from loragen_infer.errors import LoragenInferError

__all__ = ["AdapterStack", "find_not_plain"]

_OPTIONS = ("use_dora", "lora_bias")


@dataclass(frozen=True, kw_only=True)
class AdapterStack:
    """The factors of K adapters of the same modules, stacked.

    Raises:
        LoragenInferError: Factors and scaling are not of the same modules, or not K of rank r everywhere.
    """

    a_Kri: Mapping[str, Tensor]
    """A ``[K, r, in]`` of every module, by its full name without ``base_model.model.``."""
    b_Kor: Mapping[str, Tensor]
    """B ``[K, out, r]`` of the same modules."""
    scaling_K: Mapping[str, Tensor]
    """``[K]``, the factors on B @ A."""

    def __post_init__(self) -> None:
        if not self.a_Kri:
            raise LoragenInferError("The adapters have no modules; name one at least.")
        if differing := sorted(set(self.a_Kri) ^ set(self.b_Kor) | set(self.a_Kri) ^ set(self.scaling_K)):
            raise LoragenInferError(f"A, B and scaling are of different modules: not all have {differing[0]!r}.")
        number = self.num_adapters
        for name, a_Kri in self.a_Kri.items():
            a, b, scaling = tuple(a_Kri.shape), tuple(self.b_Kor[name].shape), tuple(self.scaling_K[name].shape)
            if len(a) != 3 or len(b) != 3 or a[1] != b[2] or not a[0] == b[0] == number or scaling != (number,):
                raise LoragenInferError(
                    f"A of {name!r} has the shape {a}, B {b} and the scaling {scaling}, where those of {number} "
                    f"adapters have ({number}, r, in), ({number}, out, r) and ({number},)."
                )

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
            _check_plain(adapter, number)
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
        places = torch.tensor(adapters, dtype=torch.long)

        def chosen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[places.to(tensor.device)] for name, tensor in tensors.items()}

        return AdapterStack(a_Kri=chosen(self.a_Kri), b_Kor=chosen(self.b_Kor), scaling_K=chosen(self.scaling_K))

    def to(self, device: "torch.device | str") -> "AdapterStack":
        """Return the stack on ``device``."""

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        return AdapterStack(a_Kri=moved(self.a_Kri), b_Kor=moved(self.b_Kor), scaling_K=moved(self.scaling_K))


def find_not_plain(adapter: LoraAdapter) -> str | None:
    """Return the option, or the tensor of an embedding, that makes ``adapter`` more than two factors per linear layer;
    None where nothing does."""
    option = next((option for option in _OPTIONS if getattr(adapter.config, option)), None)
    return option or next((name for name in adapter.tensors if "lora_embedding" in name), None)


def _check_plain(adapter: LoraAdapter, number: int) -> None:
    found = find_not_plain(adapter)
    if found in _OPTIONS:
        raise LoragenInferError(f"Adapter {number} has {found}, which cannot be applied in a batch; attach it alone.")
    if found is not None:
        raise LoragenInferError(
            f"{found} of adapter {number} adapts an embedding, which cannot be applied in a batch; attach it alone."
        )
