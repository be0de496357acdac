"""The token layout: the fixed, JSON-serialisable agreement between an adapter and its tokens, and the way there and
back.

Axes: N tokens = L rows (transformer layers) * H tokens per row, W values per token.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lora_tokenizer.adapter import DTYPES, LoraAdapter, dtype_name
from lora_tokenizer.canonical import canonical_form
from lora_tokenizer.config import AdapterConfig
from lora_tokenizer.errors import LoraTokenizerError
from lora_tokenizer.layout.copying import Span, are_plain, concatenate, copy_bytes, transpose_in_place
from lora_tokenizer.layout.matching import check_same, fits
from lora_tokenizer.layout.packing import AUTO, Packing, Slot, auto_token_dim, check_budget, pack
from lora_tokenizer.names import split_name

FORMAT = 1
"""Version of the packing rules and of the JSON; it is part of every fingerprint."""
FORMAT_TRANSPOSED = 2
"""That of layouts with `transpose_b`, so that a version that does not know it refuses them."""

MAX_TOKEN_DIM = 1 << 20
_CONFIG_FIELDS = frozenset(field.name for field in fields(AdapterConfig))


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Which values of which tensor each token holds, and the config that makes an adapter of them again.

    Made by `from_adapter` or `from_json`; it depends on names, shapes, dtypes and settings, never on values or file
    order.

    >>> config = AdapterConfig(r=2, lora_alpha=4, target_modules=("q_proj",))
    >>> name = "base_model.model.layers.0.q_proj.lora_{}.weight"
    >>> tensors = {name.format("A"): torch.randn(2, 6), name.format("B"): torch.randn(5, 2)}
    >>> adapter = LoraAdapter(config=config, tensors=tensors)
    >>> layout = TokenLayout.from_adapter(adapter, token_dim=4)
    >>> layout.grid, layout.num_tokens, round(layout.padding, 3)
    ((1, 6, 4), 6, 0.083)
    >>> back = layout.decode(layout.encode(adapter))
    >>> all(torch.equal(back.tensors[name], tensor) for name, tensor in adapter.tensors.items())
    True
    """

    config: AdapterConfig
    """Settings of the adapters that this layout encodes and decodes."""
    token_dim: int
    """W, values per token."""
    packing: Packing
    """Place of each tensor."""
    canonical: str | None = None
    """None, or "svd": factors are brought to canonical form before they are encoded."""
    transpose_b: bool = False
    """B is laid out as `[r, out]`: its rows, as those of A, are rank components."""

    @classmethod
    def from_adapter(
        cls,
        adapter: LoraAdapter,
        *,
        token_dim: int | str = 384,
        max_tokens: int | str = 512,
        canonical: str | None = None,
        transpose_b: bool = False,
    ) -> TokenLayout:
        """Lay out the tensors of `adapter`.

        Args:
            adapter: an adapter such as those to be encoded.
            token_dim: W, values per token; "auto" for the widest, up to 1024, that divides all rows of all matrices, so
                that no token holds pieces of two rows. Where all that divides them is below 16, it is 384, with a
                warning.
            max_tokens: budget for N, or "auto" for as many as it takes.
            canonical: "svd" to encode canonical factors instead of the stored ones (`canonical_form`).
            transpose_b: lay B `[out, r]` (of embeddings too) out as `[r, out]`, so that H is ordered by module, factor
                and rank component.

        Raises:
            LoraTokenizerError: the adapter needs more tokens than `max_tokens` (the message says what would fit).
        """
        _check_canonical(canonical)
        tensors = {name: (tuple(t.shape), dtype_name(t.dtype)) for name, t in adapter.tensors.items()}
        width = auto_token_dim(tensors, transpose_b=transpose_b) if token_dim == AUTO else _checked_width(token_dim)
        packing = pack(tensors, width, transpose_b=transpose_b)
        check_budget(packing, width, max_tokens)
        return cls(
            config=adapter.config, token_dim=width, packing=packing, canonical=canonical, transpose_b=transpose_b
        )

    @property
    def grid(self) -> tuple[int, int, int]:
        """`(L, H, W)`."""
        return self.packing.num_rows, self.packing.row_tokens, self.token_dim

    @property
    def num_tokens(self) -> int:
        """N = L * H."""
        return self.packing.num_rows * self.packing.row_tokens

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Place of each tensor, in token order."""
        return self.packing.slots

    @property
    def num_values(self) -> int:
        """Number of real values in the tokens."""
        return sum(slot.num_values for slot in self.slots)

    @property
    def padding(self) -> float:
        """Share of the token values that hold nothing."""
        return 1 - self.num_values / (self.num_tokens * self.token_dim)

    def mask(self) -> Tensor:
        """bool `[N, W]`, True where a token holds a real value."""
        mask_NW = torch.zeros(self.num_tokens * self.token_dim, dtype=torch.bool)
        for slot in self.slots:
            start = slot.start * self.token_dim
            mask_NW[start : start + slot.num_values] = True
        return mask_NW.view(self.num_tokens, self.token_dim)

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits over what tokens mean: tensors, places, and what the settings do to each module.

        However these are spelt (8 or 8.0, patterns or none), what acts alike has one fingerprint; the base model's name
        and what only helps PEFT to find the modules are left out.
        """
        modules = dict.fromkeys(split_name(slot.name)[0] for slot in self.slots)
        content = self._content() | {
            "config": [self.config.fan_in_fan_out, *(list(map(float, self.config.effect(m))) for m in modules)]
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def _content(self) -> dict[str, Any]:
        version = {"format": FORMAT_TRANSPOSED, "transpose_b": True} if self.transpose_b else {"format": FORMAT}
        return version | {
            "token_dim": self.token_dim,
            "canonical": self.canonical,
            "grid": list(self.grid),
            "config": {name: value for name, value in self.config.to_peft().items() if name in _CONFIG_FIELDS},
            "tensors": [[slot.name, list(slot.shape), slot.dtype] for slot in self.slots],
        }

    def to_json(self) -> str:
        """The layout as JSON, enough for `from_json` and so for `decode`."""
        return json.dumps(self._content())

    @classmethod
    def from_json(cls, text: str) -> TokenLayout:
        """Read what `to_json` wrote.

        Raises:
            LoraTokenizerError: not a layout, of another format, or inconsistent.
        """
        try:
            content = json.loads(text)
            if content["format"] not in (FORMAT, FORMAT_TRANSPOSED):
                raise LoraTokenizerError(
                    f"the token layout has format {content['format']!r} and this version reads {FORMAT} and "
                    f"{FORMAT_TRANSPOSED}: make it again"
                )
            transpose_b = content["format"] == FORMAT_TRANSPOSED
            if content.get("transpose_b", False) is not transpose_b:
                raise LoraTokenizerError(
                    f"the token layout has format {content['format']} and transpose_b "
                    f"{content.get('transpose_b')!r}, which do not go together: make it again"
                )
            token_dim = _checked_width(content["token_dim"])
            _check_canonical(content["canonical"])
            layout = cls(
                config=AdapterConfig(**content["config"]),
                token_dim=token_dim,
                packing=pack(
                    {name: (tuple(shape), dtype) for name, shape, dtype in content["tensors"]},
                    token_dim,
                    transpose_b=transpose_b,
                ),
                canonical=content["canonical"],
                transpose_b=transpose_b,
            )
            if layout.grid != tuple(content["grid"]):
                raise LoraTokenizerError(f"the token layout claims another grid than its tensors make, {layout.grid}")
            layout.empty_adapter()  # which checks names, shapes and dtypes
        except LoraTokenizerError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise LoraTokenizerError(f"the text is not a token layout ({type(error).__name__}: {error})") from error
        return layout

    def empty_adapter(self) -> LoraAdapter:
        """An adapter of this layout without values (meta tensors), for its names, shapes and config."""
        return LoraAdapter(
            config=self.config,
            tensors={s.name: torch.empty(s.shape, dtype=DTYPES[s.dtype], device="meta") for s in self.slots},
        )

    def encode(self, adapter: LoraAdapter) -> Tensor:
        """The tokens `[N, W]` of an adapter, in its dtype (in the widest one needed where tensors differ).

        Raises:
            LoraTokenizerError: the adapter differs from the layout; the message names the first difference.
        """
        if adapter.config != self.config or adapter.tensors.keys() != self._names:
            check_same(adapter, self.config, self.slots)
        if self.canonical == "svd":
            adapter = canonical_form(adapter)
        for slot in self.slots:
            tensor = adapter.tensors[slot.name]
            if tensor.shape != slot.shape or not fits(tensor.dtype, slot.dtype):
                check_same(adapter, self.config, self.slots)
        dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in adapter.tensors.values()})
        copy = copy_bytes if are_plain(adapter.tensors) else concatenate
        return copy(adapter.tensors, self._spans, dtype).view(self.num_tokens, self.token_dim)

    def decode(self, tokens_NW: Tensor) -> LoraAdapter:
        """The adapter that tokens stand for; each tensor in the dtype stored for it, padding is ignored.

        The tensors are row-major and in new memory, which those on the CPU share; gradients flow.

        Raises:
            LoraTokenizerError: the tokens have another shape or are not floats.
        """
        self._check_tokens(tokens_NW, tokens_NW.shape)
        buffers = {name: tokens_NW.to(DTYPES[name], copy=True).contiguous() for name in self._dtypes}
        if tokens_NW.is_cpu and not tokens_NW.requires_grad:
            if self.transpose_b:
                for buffer in buffers.values():
                    transpose_in_place(buffer, self._spans, self._shapes)
            tensors = {name: buffers[dtype].as_strided(*view) for name, dtype, view in self._views}
        else:
            batches = {dtype: self.tensors(buffer[None]) for dtype, buffer in buffers.items()}
            tensors = {slot.name: batches[slot.dtype][slot.name][0].contiguous() for slot in self.slots}
        return LoraAdapter(config=self.config, tensors=tensors)

    def tensors(self, tokens_BNW: Tensor) -> dict[str, Tensor]:
        """The tensors `[B, *shape]` that a batch of tokens stands for, by name: views in the tokens' own dtype.

        Where B is transposed in the tokens, it is a view with the axes turned back.

        Gradients flow, through one concatenation for all tensors together. Apart from dtypes, `tensors(t[None])` holds
        what `decode(t)` does.

        Raises:
            LoraTokenizerError: the tokens have another shape or are not floats.
        """
        self._check_tokens(tokens_BNW, tokens_BNW.shape[1:])
        pieces = torch.split(tokens_BNW.flatten(1), self._piece_sizes, dim=1)
        return {slot.name: slot.shaped(values) for slot, values in zip(self.slots, pieces[::2], strict=True)}

    def _check_tokens(self, tokens: Tensor, shape_NW: torch.Size) -> None:
        if tuple(shape_NW) != (self.num_tokens, self.token_dim) or not tokens.is_floating_point():
            raise LoraTokenizerError(
                f"tokens of shape {tuple(tokens.shape)} and dtype {dtype_name(tokens.dtype)} do not fit the layout, "
                f"which needs floats of shape {(self.num_tokens, self.token_dim)}"
            )

    @functools.cached_property
    def _piece_sizes(self) -> list[int]:
        """Of each slot the number of its values and of the padding behind them, one after the other."""
        return [size for span in self._spans for size in (span.end - span.start, span.padded_end - span.end)]

    @functools.cached_property
    def _dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({slot.dtype for slot in self.slots}))

    @functools.cached_property
    def _spans(self) -> tuple[Span, ...]:
        """Each slot's place in the flat tokens; its padding goes on to the next slot or to the end."""
        starts = [slot.start * self.token_dim for slot in self.slots]
        ends = [*starts[1:], self.num_tokens * self.token_dim]
        return tuple(
            Span(slot.name, start, start + slot.num_values, end, slot.transposed)
            for slot, start, end in zip(self.slots, starts, ends, strict=True)
        )

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {slot.name: slot.shape for slot in self.slots}

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(slot.name for slot in self.slots)

    @functools.cached_property
    def _views(self) -> tuple[tuple[str, str, tuple[tuple[int, ...], tuple[int, ...], int]], ...]:
        """Name, dtype, and shape, strides and offset of each tensor, row-major, in a buffer of `[N, W]`."""
        return tuple(
            (slot.name, slot.dtype, (slot.shape, _row_major(slot.shape), slot.start * self.token_dim))
            for slot in self.slots
        )


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) if len(shape) == 1 else (shape[1], 1)


def _checked_width(token_dim: object) -> int:
    if not isinstance(token_dim, int) or isinstance(token_dim, bool) or not 0 < token_dim <= MAX_TOKEN_DIM:
        raise LoraTokenizerError(f"token_dim is {token_dim!r}, where a number from 1 to {MAX_TOKEN_DIM} belongs")
    return token_dim


def _check_canonical(canonical: object) -> None:
    if canonical not in (None, "svd"):
        raise LoraTokenizerError(f"canonical is {canonical!r}, where None or 'svd' belongs")
