"""Bootstrap intervals over examples: how far a score may be off because other examples could have been drawn.

Percentile bootstrap (B. Efron, Annals of Statistics 7(1), 1979): examples are drawn with replacement, the score is
computed of each draw, and the middle 95 % of these is the interval. All rows of a task are computed of the same draws,
so that a difference between two rows is a paired one. Where all examples agree, the interval has no width.

Legend: n examples, K columns, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampled", "mean_of", "resample_sums"]

_CHUNK_VALUES = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """A number with its bootstrap distribution; arithmetic on both keeps pairs together.

    Example:
        >>> a = Sampled(value=3.0, resamples=np.array([2.0, 4.0]))
        >>> b = Sampled(value=1.0, resamples=np.array([1.0, 1.0]))
        >>> (a - b).value, (a - b).resamples.tolist()
        (2.0, [1.0, 3.0])
    """

    value: float
    """The score of the examples as they are."""
    resamples: NDArray[np.float64]
    """Its value in each resample, float64 ``[R]``."""

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the resamples."""
        low, high = np.quantile(self.resamples, [0.025, 0.975])
        return float(low), float(high)

    def __sub__(self, other: "Sampled") -> "Sampled":
        return Sampled(value=self.value - other.value, resamples=self.resamples - other.resamples)

    def __truediv__(self, other: "Sampled") -> "Sampled":
        return Sampled(value=self.value / other.value, resamples=self.resamples / other.resamples)


def mean_of(parts: Sequence[Sampled]) -> Sampled:
    """Return the mean of scores of different tasks, each resampled within itself."""
    return Sampled(
        value=sum(part.value for part in parts) / len(parts),
        resamples=np.mean([part.resamples for part in parts], axis=0),
    )


def resample_sums(values_nK: NDArray[Any], *, num_resamples: int, seed: Sequence[int]) -> NDArray[np.float64]:
    """Return the sums over the examples of each resample, float64 ``[R, K]``; the same draws for all columns.

    Memory does not grow with ``num_resamples`` times n: the draws are made in chunks, which does not change them.

    Example:
        >>> resample_sums(np.array([[1.0, 5.0]]), num_resamples=2, seed=[0]).tolist()
        [[1.0, 5.0], [1.0, 5.0]]
    """
    random = np.random.default_rng(list(seed))
    num_examples = len(values_nK)
    chunk = max(1, _CHUNK_VALUES // num_examples)
    sums = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn = random.integers(num_examples, size=(size, num_examples))
        # How often each example is drawn; a product with it is far faster than gathering every column.
        places = drawn + num_examples * np.arange(size)[:, None]
        counts = np.bincount(places.ravel(), minlength=size * num_examples).reshape(size, num_examples)
        sums.append(counts.astype(np.float64) @ values_nK)
    return np.concatenate(sums)
