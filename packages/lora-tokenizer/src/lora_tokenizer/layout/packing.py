"""Where each tensor goes in the token grid: the pure arithmetic behind a layout.

Every tensor is flattened row-major and padded to whole tokens; where it is asked for, B is transposed first, so that
its rows are rank components, as those of A are. The tensors of one transformer layer (a stack and a number in the
module path) form one row of the grid `[L, H, W]`; H is what the largest row needs. Tensors outside the layers
(embeddings, lm_head) follow each other in further rows of the same H.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_tokenizer.errors import LoraTokenizerError, warn_once
from lora_tokenizer.names import layer_of, natural_key, packing_key, split_name

if TYPE_CHECKING:
    from torch import Tensor

AUTO = "auto"
DEFAULT_TOKEN_DIM = 384
MIN_AUTO_TOKEN_DIM = 16
"""Narrower tokens would be so many that no network could hold them."""
MAX_AUTO_TOKEN_DIM = 1024

_B_FACTORS = frozenset({"lora_B.weight", "lora_embedding_B"})


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place: tokens `start` to `start + num_tokens` (exclusive) of the flat `[N, W]`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    num_tokens: int
    num_values: int
    transposed: bool = False

    def shaped(self, values: Tensor) -> Tensor:
        """The tensor `[..., *shape]` of this slot's values `[..., num_values]`, as a view."""
        if not self.transposed:
            return values.view(*values.shape[:-1], *self.shape)
        return values.view(*values.shape[:-1], *self.shape[::-1]).mT


@dataclass(frozen=True, slots=True)
class Packing:
    """All slots, in token order, and the size of the grid."""

    slots: tuple[Slot, ...]
    num_rows: int
    row_tokens: int


def is_transposed(name: str) -> bool:
    """Whether a layout that transposes B turns this tensor: `[out, r]` becomes `[r, out]`."""
    return split_name(name)[1] in _B_FACTORS


def auto_token_dim(tensors: Mapping[str, tuple[tuple[int, ...], str]], *, transpose_b: bool) -> int:
    """The widest token, up to 1024 values, of which every row of every matrix is a whole number.

    Vectors (magnitudes, biases) begin a token of their own anyway and do not count. Where that is below 16, it is 384,
    with a warning.

    >>> q = {"base_model.model.q.lora_A.weight": ((4, 576), "float32")}
    >>> auto_token_dim(q | {"base_model.model.q.lora_B.weight": ((192, 4), "float32")}, transpose_b=True)
    192
    """
    rows = {
        shape[0] if transpose_b and is_transposed(name) else shape[-1]
        for name, (shape, _) in tensors.items()
        if len(shape) == 2
    }
    common = math.gcd(*rows)
    width = max((n for n in range(1, MAX_AUTO_TOKEN_DIM + 1) if common % n == 0), default=1)
    if width >= MIN_AUTO_TOKEN_DIM:
        return width
    lengths = ", ".join(map(str, sorted(rows)[:8])) + (", …" if len(rows) > 8 else "")
    advice = "" if transpose_b else "; with transpose_b the rows of B are as long as its outputs, not r"
    warn_once(
        f"token_dim is 'auto', but rows of {lengths} values share no width from {MIN_AUTO_TOKEN_DIM} to "
        f"{MAX_AUTO_TOKEN_DIM}, so tokens have {DEFAULT_TOKEN_DIM} values and may hold pieces of several rows{advice}"
    )
    return DEFAULT_TOKEN_DIM


def pack(tensors: Mapping[str, tuple[tuple[int, ...], str]], token_dim: int, *, transpose_b: bool = False) -> Packing:
    """Place tensors, given as name to (shape, dtype name); the order of the mapping does not matter.

    >>> pack({"base_model.model.layers.0.q.lora_A.weight": ((2, 3), "float32")}, token_dim=4).slots[0].num_tokens
    2
    """
    rows: dict[tuple[str, int], list[str]] = {}
    outside: list[str] = []
    for name in sorted(tensors, key=packing_key):
        layer = layer_of(split_name(name)[0])
        if layer is None:
            outside.append(name)
        else:
            rows.setdefault(layer, []).append(name)
    ordered = [rows[layer] for layer in sorted(rows, key=lambda layer: (natural_key(layer[0]), layer[1]))]
    need = {name: -(-math.prod(shape) // token_dim) for name, (shape, _) in tensors.items()}
    outside_tokens = sum(need[name] for name in outside)
    row_tokens = max((sum(need[name] for name in row) for row in ordered), default=outside_tokens)
    slots: list[Slot] = []
    for index, row in enumerate(ordered):
        slots += _place(row, index * row_tokens, tensors, need, transpose_b)
    slots += _place(outside, len(ordered) * row_tokens, tensors, need, transpose_b)
    return Packing(tuple(slots), len(ordered) + -(-outside_tokens // row_tokens), row_tokens)


def _place(
    names: Sequence[str],
    start: int,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    need: Mapping[str, int],
    transpose_b: bool,
) -> list[Slot]:
    slots = []
    for name in names:
        shape, dtype = tensors[name]
        transposed = transpose_b and is_transposed(name)
        slots.append(Slot(name, shape, dtype, start, need[name], math.prod(shape), transposed))
        start += need[name]
    return slots


def check_budget(packing: Packing, token_dim: int, max_tokens: int | str) -> None:
    """Refuse a packing over the budget, saying what would fit."""
    if max_tokens == AUTO:
        return
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise LoraTokenizerError(f"max_tokens is {max_tokens!r}, where a number from 1 or 'auto' belongs")
    needed = packing.num_rows * packing.row_tokens
    if needed <= max_tokens:
        return
    leave_out = _what_to_leave_out(packing.slots, token_dim, max_tokens)
    advice = f", or leave out the modules {', '.join(leave_out)}" if leave_out else ""
    raise LoraTokenizerError(
        f"the adapter needs {needed} tokens of {token_dim} values ({packing.num_rows} rows of "
        f"{packing.row_tokens}) and max_tokens is {max_tokens}: pass max_tokens={needed} or 'auto'{advice}"
    )


def _leaf(name: str) -> str:
    return split_name(name)[0].rpartition(".")[2]


def _what_to_leave_out(slots: Iterable[Slot], token_dim: int, max_tokens: int) -> list[str]:
    """The kinds of module (q_proj, …) whose absence would fit, the largest first, until the rest does; at best one."""
    kept = {slot.name: (slot.shape, slot.dtype) for slot in slots}
    left_out: list[str] = []
    while 1 < len(leaves := sorted({_leaf(name) for name in kept})) <= 64:
        rests = {leaf: {name: spec for name, spec in kept.items() if _leaf(name) != leaf} for leaf in leaves}
        packings = {leaf: pack(rest, token_dim) for leaf, rest in rests.items()}
        sizes = {leaf: packing.num_rows * packing.row_tokens for leaf, packing in packings.items()}
        fitting = [leaf for leaf in leaves if sizes[leaf] <= max_tokens]
        chosen = max(fitting, key=sizes.__getitem__) if fitting else min(leaves, key=sizes.__getitem__)
        left_out.append(chosen)
        if fitting:
            return left_out
        kept = rests[chosen]
    return []
