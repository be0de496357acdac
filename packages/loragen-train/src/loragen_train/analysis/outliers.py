"""Which checkpoints of a zoo stand out; a rule that a few odd ones cannot shift, since it uses medians only.

A checkpoint is an outlier if

1. its weight change is zero;
2. its norm is far from the median norm of its task;
3. it is far from the other checkpoints of its task: the median of its distances to them, in units of the task's median
   norm, is far above that of the zoo's checkpoints;
4. it is nearer to another task: the median of its distances to that task's checkpoints is below that to its own.

"Far" in 2 and 3 is a modified z-score over 3.5 (B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, 1993):
``0.6745 (x - median) / MAD`` of the logarithm x over the zoo, MAD being the median absolute deviation from the median,
but at least 0.1: what differs by less than 1.7 times is never far.
"""

from collections.abc import Sequence

import numpy as np

from loragen_train.analysis.similarity import Matrix

__all__ = ["find_outliers"]

_FAR = 3.5
_LEAST_MAD = 0.1


def find_outliers(gram_MM: Matrix, tasks: Sequence[str]) -> dict[int, list[str]]:
    """Return the reasons why checkpoints are outliers, by their indices.

    Args:
        gram_MM: Inner products of the weight changes of M checkpoints.
        tasks: The task of each.

    Example:
        >>> weights = np.array([[1.0, 0.0], [1.1, 0.0], [0.9, 0.0], [1.0, 0.1], [9.0, 0.0]])
        >>> find_outliers(weights @ weights.T, ["sums"] * 5)[4][0]
        'its norm is 8.96 times the median of its task'
    """
    squares_M = np.diag(gram_MM)
    norms_M = np.sqrt(squares_M)
    distances_MM = np.sqrt(np.clip(squares_M[:, None] + squares_M[None] - 2 * gram_MM, 0.0, None))
    members = {task: [index for index, other in enumerate(tasks) if other == task] for task in dict.fromkeys(tasks)}
    medians = {task: float(np.median(norms_M[who])) for task, who in members.items()}
    reasons: dict[int, list[str]] = {index: [] for index in range(len(tasks))}

    ratios = {index: norms_M[index] / medians[task] for index, task in enumerate(tasks) if medians[task] > 0}
    for index in np.flatnonzero(norms_M == 0).tolist():
        reasons[index].append("its weight change is zero")
    for index in _far({index: ratio for index, ratio in ratios.items() if ratio > 0}, both_sides=True):
        reasons[index].append(f"its norm is {ratios[index]:.3g} times the median of its task")

    own = {
        index: float(np.median([distances_MM[index, other] for other in who if other != index])) / medians[task]
        for task, who in members.items()
        for index in who
        if len(who) > 1 and medians[task] > 0
    }
    for index in _far({index: distance for index, distance in own.items() if distance > 0}, both_sides=False):
        reasons[index].append(f"its distance to the others of its task is {own[index]:.3g} times the task's norm")
    for index in own:
        far = {
            task: float(np.median(distances_MM[index, who])) / medians[tasks[index]]
            for task, who in members.items()
            if task != tasks[index]
        }
        nearest = min(far, key=far.__getitem__, default=None)
        if nearest is not None and far[nearest] < own[index]:
            reasons[index].append(f"it is nearer to the task {nearest!r} than to its own")
    return {index: why for index, why in reasons.items() if why}


def _far(values: dict[int, float], *, both_sides: bool) -> list[int]:
    """Indices of the values, all positive, whose logarithms are far from the median one."""
    if len(values) < 3:
        return []
    logs = np.log(np.array(list(values.values())))
    deviations = logs - np.median(logs)
    spread = max(float(np.median(np.abs(deviations))), _LEAST_MAD)
    scores = 0.6745 * deviations / spread
    far = np.abs(scores) > _FAR if both_sides else scores > _FAR
    return [index for index, is_far in zip(values, far, strict=True) if is_far]
