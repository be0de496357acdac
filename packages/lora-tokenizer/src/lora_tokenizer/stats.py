"""Statistics of every token position over many checkpoints, and the z-scores made with them.

Mean and variance come from Welford's running update in float64 (B. P. Welford, Technometrics 4(3), 1962; as in Knuth,
The Art of Computer Programming 2, 4.2.2), so any number of checkpoints takes the memory of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_tokenizer.errors import LoraTokenizerError, writing
from lora_tokenizer.io.atomic import atomic_file


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStats:
    """Mean and standard deviation per token position.

    >>> stats = TokenStats.from_tokens([torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])])
    >>> stats.mean.tolist(), stats.normalize(torch.tensor([[3.0, 0.0]])).tolist()
    ([[1.0, 0.0]], [[2.0, 0.0]])
    """

    mean: Tensor
    """float32 `[N, W]`."""
    std: Tensor
    """float32 `[N, W]`, population standard deviation, not below `floor`."""
    count: int
    """Number of checkpoints seen."""
    floor: float
    """Least standard deviation, for positions that are (nearly) constant, padding among them."""

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.dim() != 2 or self.mean.numel() == 0:
            raise LoraTokenizerError(
                f"mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} are not both [N, W]"
            )
        if self.mean.dtype != torch.float32 or self.std.dtype != torch.float32:
            raise LoraTokenizerError(f"mean and std must be float32 and are {self.mean.dtype} and {self.std.dtype}")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise LoraTokenizerError(
                f"the floor of the standard deviation is {self.floor}, where a number above 0 belongs"
            )
        if not torch.isfinite(self.mean).all() or not torch.isfinite(self.std).all() or not (self.std > 0).all():
            raise LoraTokenizerError(
                "mean or std holds NaN, Inf or a std that is not above 0: make the statistics again"
            )

    @classmethod
    def from_tokens(cls, tokens: Iterable[Tensor], floor: float = 1e-6) -> TokenStats:
        """Statistics of the tokens `[N, W]` of several checkpoints, one at a time.

        Raises:
            LoraTokenizerError: no tokens, tokens of different shapes, or NaN or Inf among them.
        """
        count = 0
        mean_NW = m2_NW = torch.empty(0)
        for tokens_NW in tokens:
            value_NW = tokens_NW.detach().to(torch.float64)
            if count == 0:
                mean_NW, m2_NW = torch.zeros_like(value_NW), torch.zeros_like(value_NW)
            if value_NW.shape != mean_NW.shape:
                raise LoraTokenizerError(
                    f"checkpoint {count} has tokens {tuple(value_NW.shape)} and those before it {tuple(mean_NW.shape)}"
                )
            count += 1
            delta_NW = value_NW - mean_NW
            mean_NW += delta_NW / count
            m2_NW += delta_NW.mul_(value_NW - mean_NW)
        if count == 0:
            raise LoraTokenizerError("there are no tokens to make statistics of")
        std_NW = (m2_NW / count).sqrt().float()
        return cls(mean=mean_NW.float(), std=std_NW.clamp(min=floor), count=count, floor=floor)

    def normalize(self, tokens_NW: Tensor) -> Tensor:
        """z-scores, float32, of tokens `[..., N, W]`."""
        self._check_shape(tokens_NW)
        return (tokens_NW.float() - self.mean.to(tokens_NW.device)) / self.std.to(tokens_NW.device)

    def denormalize(self, z_NW: Tensor) -> Tensor:
        """Tokens, float32, from z-scores `[..., N, W]`; the inverse of `normalize` to float32 round-off."""
        self._check_shape(z_NW)
        return z_NW.float() * self.std.to(z_NW.device) + self.mean.to(z_NW.device)

    def importance(self) -> Tensor:
        """Weight per token, float32 `[N]` with mean 1: the root mean square of its positions' standard deviations.

        Constant positions (padding among them) count as 0; where all are constant, every weight is 1.
        """
        std_NW = torch.where(self.std > self.floor, self.std, 0.0).double()
        weight_N = std_NW.square().mean(dim=1).sqrt()
        mean = weight_N.mean()
        return (weight_N / mean).float() if mean > 0 else torch.ones_like(weight_N, dtype=torch.float32)

    def _check_shape(self, tokens_NW: Tensor) -> None:
        if tokens_NW.shape[-2:] != self.mean.shape:
            raise LoraTokenizerError(
                f"tokens of shape {tuple(tokens_NW.shape)} do not fit the statistics of {tuple(self.mean.shape)}"
            )

    def to_tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, to put into another safetensors file."""
        return {
            "mean": self.mean.contiguous(),
            "std": self.std.contiguous(),
            "count": torch.tensor(self.count),
            "floor": torch.tensor(self.floor, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> TokenStats:
        """The inverse of `to_tensors`; other names in the mapping are left alone.

        Raises:
            LoraTokenizerError: one is missing or makes no sense.
        """
        missing = sorted({"mean", "std", "count", "floor"} - tensors.keys())
        if missing:
            raise LoraTokenizerError(f"the token statistics lack the tensor {missing[0]!r}")
        if tensors["count"].numel() != 1 or tensors["floor"].numel() != 1:
            raise LoraTokenizerError("count and floor of the token statistics must be single numbers")
        if tensors["count"].dtype != torch.int64 or tensors["count"].item() < 1:
            raise LoraTokenizerError("count of the token statistics is not a whole number from 1")
        return cls(
            mean=tensors["mean"],
            std=tensors["std"],
            count=int(tensors["count"].item()),
            floor=float(tensors["floor"].item()),
        )

    def save(self, path: str | Path) -> Path:
        """Write a .safetensors file, whole or not at all."""
        target = Path(path)
        with writing(target), atomic_file(target) as temporary:
            save_file(self.to_tensors(), temporary)
        return target

    @classmethod
    def load(cls, path: str | Path) -> TokenStats:
        """Read what `save` wrote.

        Raises:
            LoraTokenizerError: not such a file.
        """
        try:
            return cls.from_tensors(load_file(path))
        except (OSError, SafetensorError, LoraTokenizerError) as error:
            raise LoraTokenizerError(f"{path} does not hold token statistics: {error}") from error
