"""One LoRA adapter in memory: its config and its tensors under PEFT's names, checked once so that the rest can trust
it.

Axes: r rank, out and in the features of the adapted layer (for an embedding: the width and the number of rows).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lora_tokenizer.config import AdapterConfig
from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.names import join_name, packing_key, split_name
from lora_tokenizer.patterns import check_patterns

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""The dtypes of LoRA tensors, by the name that layouts and reports use."""


def dtype_name(dtype: torch.dtype | str) -> str:
    """`torch.float32`, or its name, as `float32`."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraAdapter:
    """LoRA tensors plus the config that gives them meaning.

    Every module has A `[r, in]` and B `[out, r]` (`lora_A.weight`/`lora_B.weight`, or `lora_embedding_A`/`_B`), with
    `use_dora` a magnitude `[out]`, with `lora_bias` a bias `[out]` on linear layers. Nothing is copied.

    Raises:
        LoraTokenizerError: a tensor is misnamed, empty, of a wrong shape or dtype, or its partner is missing.

    >>> config = AdapterConfig(r=2, lora_alpha=4, target_modules=("q_proj",))
    >>> name = "base_model.model.layers.0.q_proj.lora_{}.weight"
    >>> tensors = {name.format("A"): torch.ones(2, 3), name.format("B"): torch.ones(5, 2)}
    >>> adapter = LoraAdapter(config=config, tensors=tensors)
    >>> adapter.modules, adapter.num_parameters, adapter.delta_weight("layers.0.q_proj")[0, 0].item()
    (('layers.0.q_proj',), 16, 4.0)
    """

    config: AdapterConfig
    """The settings under which the tensors act."""
    tensors: Mapping[str, Tensor]
    """Tensors under the names that PEFT writes to adapter_model.safetensors; kept in packing order."""

    def __post_init__(self) -> None:
        if not self.tensors:
            raise LoraTokenizerError("the adapter holds no tensors")
        ordered = {name: self.tensors[name] for name in sorted(self.tensors, key=packing_key)}
        object.__setattr__(self, "tensors", ordered)
        for patterns in (self.config.rank_pattern, self.config.alpha_pattern):
            check_patterns(patterns, self._parts)
        for module, parts in self._parts.items():
            _check_module(module, parts, self.config)

    @functools.cached_property
    def _parts(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            module, part = split_name(name)
            parts.setdefault(module, {})[part] = tensor
        return parts

    @property
    def modules(self) -> tuple[str, ...]:
        """Full names of the adapted modules, without `base_model.model.`, in natural order."""
        return tuple(self._parts)

    @property
    def num_parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """A `[r, in]` and B `[out, r]` of one module."""
        if module not in self._parts:
            raise LoraTokenizerError(
                f"module {module!r} is not in the adapter, whose first module is {self.modules[0]!r}"
            )
        parts = self._parts[module]
        if "lora_A.weight" in parts:
            return parts["lora_A.weight"], parts["lora_B.weight"]
        return parts["lora_embedding_A"], parts["lora_embedding_B"]

    def scaling(self, module: str) -> float:
        """The factor on B @ A of one module."""
        self.factors(module)
        return self.config.scaling(module)

    def delta_weight(self, module: str) -> Tensor:
        """`scaling * B @ A`, `[out, in]`, float32 (float64 for float64 factors).

        This is the linear part: a DoRA magnitude or a lora_bias comes on top, and layers that store their weight as
        `[in, out]` (Conv1D, Embedding) add its transpose.
        """
        a_ri, b_or = self.factors(module)
        dtype = torch.promote_types(torch.promote_types(a_ri.dtype, b_or.dtype), torch.float32)
        return self.scaling(module) * (b_or.to(dtype) @ a_ri.to(dtype))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the adapter as the folder that `PeftModel.from_pretrained` loads; as `write_adapter`."""
        from lora_tokenizer.io.writing import write_adapter

        return write_adapter(self, folder)

    def to(self, dtype: torch.dtype | str) -> LoraAdapter:
        """The adapter with every tensor in `dtype` (or of that name); tensors already in it are shared."""
        wanted = DTYPES.get(dtype_name(dtype))
        if wanted is None:
            raise LoraTokenizerError(
                f"{dtype_name(dtype)} is not a dtype for LoRA tensors: use one of {', '.join(DTYPES)}"
            )
        return replace(self, tensors={name: tensor.to(wanted) for name, tensor in self.tensors.items()})


def _check_module(module: str, parts: Mapping[str, Tensor], config: AdapterConfig) -> None:
    for part, tensor in parts.items():
        wanted_dim = 1 if part in ("lora_magnitude_vector", "lora_B.bias") else 2
        if tensor.dim() != wanted_dim or tensor.numel() == 0:
            raise LoraTokenizerError(
                f"tensor {join_name(module, part)!r} has the shape {tuple(tensor.shape)}, where {wanted_dim} axes, "
                f"none of them empty, belong (LoRA of convolutions is not supported)"
            )
        if tensor.dtype not in _DTYPE_SET:
            raise LoraTokenizerError(
                f"tensor {join_name(module, part)!r} is {dtype_name(tensor.dtype)}: use one of {', '.join(DTYPES)}"
            )
    is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    name_a, name_b = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
    wanted = {name_a, name_b}
    if config.use_dora:
        wanted.add("lora_magnitude_vector")
    if config.lora_bias and not is_embedding:
        wanted.add("lora_B.bias")
    if parts.keys() != wanted:
        _raise_wrong_parts(module, parts, wanted)
    (rank_a, _), (num_out, rank_b) = parts[name_a].shape, parts[name_b].shape
    rank = config.rank(module)
    if not rank_a == rank_b == rank:
        raise LoraTokenizerError(
            f"module {module!r} has A {tuple(parts[name_a].shape)} and B {tuple(parts[name_b].shape)}, which do "
            f"not fit the rank r={rank} of its config"
        )
    for part in ("lora_magnitude_vector", "lora_B.bias"):
        if part in parts and parts[part].shape[0] != num_out:
            raise LoraTokenizerError(
                f"tensor {join_name(module, part)!r} has {parts[part].shape[0]} values where B has {num_out} rows"
            )


_DTYPE_SET = frozenset(DTYPES.values())


def _raise_wrong_parts(module: str, parts: Mapping[str, Tensor], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - parts.keys()), sorted(parts.keys() - wanted)
    if missing:
        raise LoraTokenizerError(f"module {module!r} has no {missing[0]} (it has {', '.join(sorted(parts))})")
    raise LoraTokenizerError(
        f"tensor {join_name(module, extra[0])!r} does not fit the config: set use_dora for magnitudes, lora_bias "
        f"for biases"
    )
