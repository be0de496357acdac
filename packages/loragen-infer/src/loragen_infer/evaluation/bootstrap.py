"""Bootstrap intervals: how far a score may be off because other tasks and examples could have been drawn.

The score of one task is resampled over its examples, with the middle 95 % as interval (B. Efron and R. Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). The mean over tasks is resampled over the tasks first, and then over
the examples of each (A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
Resamples of few tasks scatter too little; they are widened as a t interval is against a normal one (T. C. Hesterberg,
The American Statistician 69(4), 2015), and under five tasks there is no interval at all.

All rows of a task are computed of the same draws, so that a difference between two rows is a paired one. Where all
examples and tasks agree, the interval has no width.

Legend: n examples, K columns, R resamples, T tasks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_TASKS", "Interval", "Samples", "interval_of", "mean_of", "sums_of"]

MIN_TASKS = 5
"""Fewest tasks that an interval is given for."""
Interval = tuple[float, float]
Samples = NDArray[np.float64]
"""A score ``[1 + R]``: of tasks and examples as they are, and then of each resample, so that arithmetic keeps pairs."""
_CHUNK_VALUES = 1 << 22


def interval_of(score: Samples, *, num_tasks: int = 1) -> Interval | None:
    """Return the middle 95 % of the resamples; None for a mean over several tasks that are too few for it."""
    if 1 < num_tasks < MIN_TASKS:
        return None
    low, high = np.quantile(score[1:], [0.025, 0.975])
    return float(low), float(high)


def mean_of(scores: Sequence[Samples], *, seed: Sequence[int]) -> Samples:
    """Return the mean of scores of different tasks: tasks are drawn with replacement, and of each draw a resample."""
    if len(scores) == 1:
        return scores[0]
    from scipy.stats import norm, t

    value = np.mean([score[0] for score in scores])
    samples_TR = np.stack([score[1:] for score in scores])
    num_tasks, num_resamples = samples_TR.shape
    drawn_RT = np.random.default_rng(list(seed)).integers(num_tasks, size=(num_resamples, num_tasks))
    # A task that is drawn twice is drawn with two resamples of its examples.
    resample_RT = (np.arange(num_resamples)[:, None] + np.arange(num_tasks)) % num_resamples
    widening = np.sqrt(num_tasks / (num_tasks - 1)) * t.ppf(0.975, num_tasks - 1) / norm.ppf(0.975)
    means_R = samples_TR[drawn_RT, resample_RT].mean(axis=1)
    return np.append(value, value + widening * (means_R - value))


def sums_of(values_nK: NDArray[Any], *, num_resamples: int, seed: Sequence[int]) -> NDArray[np.float64]:
    """Return the sums over the examples ``[1 + R, K]``, as they are and of each resample, the same for all columns.

    SciPy's ``bootstrap`` needs two examples at least, and gathers every column anew.
    """
    random = np.random.default_rng(list(seed))
    num_examples = len(values_nK)
    # Memory does not grow with R times n; the size of a chunk does not change the draws.
    chunk = max(1, _CHUNK_VALUES // num_examples)
    sums = [values_nK.sum(axis=0, dtype=np.float64)[None]]
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn = random.integers(num_examples, size=(size, num_examples))
        # How often each example is drawn; a product with it is far faster than gathering every column.
        places = drawn + num_examples * np.arange(size)[:, None]
        counts = np.bincount(places.ravel(), minlength=size * num_examples).reshape(size, num_examples)
        sums.append(counts.astype(np.float64) @ values_nK)
    return np.concatenate(sums)
