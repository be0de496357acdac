"""Bootstrap intervals: how far a score may be off because other tasks and examples could have been drawn.

The score of one task is resampled over its examples, with the middle 95 % as interval (percentile bootstrap; B. Efron,
Annals of Statistics 7(1), 1979). The mean over tasks is resampled over the tasks first, and then over the examples of
each. Resamples of few tasks scatter too little; they are widened as a t interval is against a normal one (T. C.
Hesterberg, The American Statistician 69(4), 2015), and under five tasks there is no interval at all.

All rows of a task are computed of the same draws, so that a difference between two rows is a paired one. Where all
examples and tasks agree, the interval has no width.

Legend: n examples, K columns, R resamples, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_TASKS", "Interval", "Sampled", "mean_of", "resample_sums"]

MIN_TASKS = 5
"""Fewest tasks that an interval is given for."""
Interval = tuple[float, float]
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
    """The score of tasks and examples as they are."""
    resamples: NDArray[np.float64]
    """Its value in each resample, float64 ``[R]``."""
    num_tasks: int = 1
    """Number of tasks that it is the mean of."""

    @property
    def interval(self) -> Interval | None:
        """The middle 95 % of the resamples; None for a mean over several tasks that are too few for it."""
        if 1 < self.num_tasks < MIN_TASKS:
            return None
        low, high = np.quantile(self.resamples, [0.025, 0.975])
        return float(low), float(high)

    def __sub__(self, other: "Sampled") -> "Sampled":
        return replace(self, value=self.value - other.value, resamples=self.resamples - other.resamples)

    def __truediv__(self, other: "Sampled") -> "Sampled":
        return replace(self, value=self.value / other.value, resamples=self.resamples / other.resamples)


def mean_of(parts: Sequence[Sampled], *, seed: Sequence[int]) -> Sampled:
    """Return the mean of scores of different tasks: tasks are drawn with replacement, and of each draw a resample."""
    if len(parts) == 1:
        return parts[0]
    from scipy.stats import norm, t

    samples_TR = np.stack([part.resamples for part in parts])
    num_tasks, num_resamples = samples_TR.shape
    drawn_RT = np.random.default_rng(list(seed)).integers(num_tasks, size=(num_resamples, num_tasks))
    # A task that is drawn twice is drawn with two resamples of its examples.
    resample_RT = (np.arange(num_resamples)[:, None] + np.arange(num_tasks)) % num_resamples
    value = sum(part.value for part in parts) / num_tasks
    widening = np.sqrt(num_tasks / (num_tasks - 1)) * t.ppf(0.975, num_tasks - 1) / norm.ppf(0.975)
    means_R = samples_TR[drawn_RT, resample_RT].mean(axis=1)
    return Sampled(value=value, resamples=value + widening * (means_R - value), num_tasks=num_tasks)


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
