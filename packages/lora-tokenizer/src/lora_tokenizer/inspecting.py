"""What is in a checkpoint, as numbers: modules, shapes, norms, NaN and Inf, token counts; for people and for scripts.

`inspect_adapter` looks at a checkpoint, `check_round_trip` proves on it that nothing is lost between tensors, tokens
and the files that PEFT loads.

Norms are Frobenius norms; that of `B @ A` comes from `delta_inner`.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter, dtype_name
from lora_tokenizer.delta import delta_inner
from lora_tokenizer.io.reading import read_adapter
from lora_tokenizer.io.writing import write_adapter
from lora_tokenizer.layout.layout import TokenLayout


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """One adapted module: its shapes, the factor on B @ A, Frobenius norms (`norm_delta` of scaling * B @ A)."""

    module: str
    r: int
    scaling: float
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    dtype: str
    """Of A and, if another, of B."""
    norm_a: float
    norm_b: float
    norm_delta: float
    num_nonfinite: int


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """One adapter: its settings as PEFT has them, its sizes, its layout, and its modules in natural order."""

    path: str
    config: dict[str, Any]
    num_parameters: int
    dtypes: tuple[str, ...]
    token_dim: int
    num_tokens: int
    grid: tuple[int, int, int]
    padding: float
    """Share of token values that hold nothing."""
    fingerprint: str
    """Of its layout."""
    num_nonfinite: int
    modules: tuple[ModuleReport, ...]


@dataclass(frozen=True, kw_only=True)
class RoundTripReport:
    """Proof that a checkpoint survives tokenizing."""

    report: AdapterReport
    tokens_equal: bool
    """decode(encode(adapter)) has the same names, dtypes and bits."""
    files_equal: bool
    """So has the folder written from it and read back."""
    layout_equal: bool
    """The layout's JSON gives the same layout."""

    @property
    def ok(self) -> bool:
        """All of it holds."""
        return self.tokens_equal and self.files_equal and self.layout_equal


def inspect_adapter(
    path: str | Path, *, token_dim: int | str = 384, transpose_b: bool = False, **read_options: Any
) -> AdapterReport:
    """Report on one checkpoint; NaN and Inf are counted, not refused.

    Raises:
        LoraTokenizerError: it cannot be read.
    """
    adapter = read_adapter(path, check_values=False, **read_options)
    return report_on(adapter, str(path), token_dim=token_dim, transpose_b=transpose_b)


def report_on(
    adapter: LoraAdapter, path: str = "", *, token_dim: int | str = 384, transpose_b: bool = False
) -> AdapterReport:
    """Report on an adapter in memory."""
    layout = TokenLayout.from_adapter(adapter, token_dim=token_dim, max_tokens="auto", transpose_b=transpose_b)
    modules = tuple(_module_report(adapter, module) for module in adapter.modules)
    return AdapterReport(
        path=path,
        config=adapter.config.to_peft(),
        num_parameters=adapter.num_parameters,
        dtypes=tuple(sorted({dtype_name(tensor.dtype) for tensor in adapter.tensors.values()})),
        token_dim=layout.token_dim,
        num_tokens=layout.num_tokens,
        grid=layout.grid,
        padding=layout.padding,
        fingerprint=layout.fingerprint,
        num_nonfinite=sum(_count_nonfinite(tensor) for tensor in adapter.tensors.values()),
        modules=modules,
    )


def _count_nonfinite(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())


def _module_report(adapter: LoraAdapter, module: str) -> ModuleReport:
    a_ri, b_or = adapter.factors(module)
    a64_ri, b64_or = a_ri.double(), b_or.double()
    squared = float(delta_inner(a64_ri, b64_or, a64_ri, b64_or))
    scaling = adapter.scaling(module)
    return ModuleReport(
        module=module,
        r=a_ri.shape[0],
        scaling=scaling,
        shape_a=tuple(a_ri.shape),
        shape_b=tuple(b_or.shape),
        dtype="/".join(dict.fromkeys((dtype_name(a_ri.dtype), dtype_name(b_or.dtype)))),
        norm_a=float(a64_ri.norm()),
        norm_b=float(b64_or.norm()),
        norm_delta=abs(scaling) * math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else math.nan,
        num_nonfinite=_count_nonfinite(a_ri) + _count_nonfinite(b_or),
    )


def check_round_trip(
    path: str | Path,
    *,
    token_dim: int | str = 384,
    max_tokens: int | str = 512,
    transpose_b: bool = False,
    **read_options: Any,
) -> RoundTripReport:
    """Encode and decode one checkpoint, through the files too, and compare to the bit.

    Raises:
        LoraTokenizerError: it cannot be read, or needs more than `max_tokens`.
    """
    adapter = read_adapter(path, **read_options)
    layout = TokenLayout.from_adapter(adapter, token_dim=token_dim, max_tokens=max_tokens, transpose_b=transpose_b)
    again = TokenLayout.from_json(layout.to_json())
    decoded = again.decode(layout.encode(adapter))
    with tempfile.TemporaryDirectory() as folder:
        reread = read_adapter(write_adapter(decoded, Path(folder) / "adapter"))
    return RoundTripReport(
        report=report_on(adapter, str(path), token_dim=token_dim, transpose_b=transpose_b),
        tokens_equal=same_bits(adapter, decoded),
        files_equal=same_bits(adapter, reread) and reread.config == adapter.config,
        layout_equal=again == layout and again.fingerprint == layout.fingerprint,
    )


def same_bits(left: LoraAdapter, right: LoraAdapter) -> bool:
    """Whether two adapters hold the same names, shapes, dtypes and bits."""
    if list(left.tensors) != list(right.tensors):
        return False
    pairs = zip(left.tensors.values(), right.tensors.values(), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(torch.uint8)
