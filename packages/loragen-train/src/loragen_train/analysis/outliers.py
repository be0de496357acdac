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
    """Return why checkpoints are outliers, by their indices, from the inner products and tasks of all M.

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
    reasons: dict[int, list[str]] = {
        index: ["its weight change is zero"] for index in np.flatnonzero(norms_M == 0).tolist()
    }

    ratios = {index: norms_M[index] / medians[task] for index, task in enumerate(tasks) if medians[task] > 0}
    for index in _far(ratios, both_sides=True):
        reasons.setdefault(index, []).append(f"its norm is {ratios[index]:.3g} times the median of its task")

    def distance(index: int, task: str) -> float:
        """The median of the distances to the other checkpoints of a task, in units of the norm of its own."""
        others = [other for other in members[task] if other != index]
        return float(np.median(distances_MM[index, others])) / medians[tasks[index]]

    own = {index: distance(index, tasks[index]) for index in ratios if len(members[tasks[index]]) > 1}
    for index in _far(own, both_sides=False):
        text = f"its distance to the others of its task is {own[index]:.3g} times the task's norm"
        reasons.setdefault(index, []).append(text)
    for index in own:
        far = {task: distance(index, task) for task in members if task != tasks[index]}
        nearest = min(far, key=far.__getitem__, default=None)
        if nearest is not None and far[nearest] < own[index]:
            reasons.setdefault(index, []).append(f"it is nearer to the task {nearest!r} than to its own")
    return reasons


def _far(values: dict[int, float], *, both_sides: bool) -> list[int]:
    """Indices of the values whose logarithms are far from the median one; zeros are left alone."""
    values = {index: value for index, value in values.items() if value > 0}
    if len(values) < 3:
        return []
    logs = np.log(list(values.values()))
    deviations = logs - np.median(logs)
    scores = 0.6745 * deviations / max(float(np.median(np.abs(deviations))), _LEAST_MAD)
    return [index for index, score in zip(values, scores, strict=True) if (abs(score) if both_sides else score) > _FAR]
