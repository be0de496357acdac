"""What an evaluation finds: the rows, the scores of each task, and how they are shown."""

from dataclasses import asdict, dataclass
from typing import Any

from loragen_infer.evaluate_config import EvaluateConfig
from loragen_infer.scoring import Score

__all__ = ["ROWS", "TaskResult", "format_table", "to_json"]

ROWS = ("base", "mean", "generated", "wrong prompts", "own")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The scores of one task."""

    task: str
    """Name of the task."""
    wrong_task: str
    """The task whose prompts the control was given."""
    scores: dict[str, Score]
    """Score of each row of ``ROWS``; ``own`` is missing where the task has no adapter of its own."""

    @property
    def recovered(self) -> float | None:
        """Share of the NLL that the task's own adapter gains over the base which the generated one gains too."""
        if "own" not in self.scores:
            return None
        gain = self.scores["base"].nll - self.scores["own"].nll
        return (self.scores["base"].nll - self.scores["generated"].nll) / gain if gain > 0 else None


def to_json(config: EvaluateConfig, results: list[TaskResult]) -> dict[str, Any]:
    """Return the results as plain JSON values, with the configuration that gave them."""
    return {
        "config": asdict(config),
        "tasks": [{**asdict(result), "recovered": result.recovered} for result in results],
    }


def format_table(results: list[TaskResult]) -> str:
    """Return the scores as a table of plain text: NLL per answer token and, in percent, exact match."""
    width = max(len("task"), *(len(result.task) for result in results))
    head = f"{'task':<{width}}" + "".join(f"  {row:>14}" for row in ROWS) + f"  {'recovered':>9}"
    lines = ["NLL per answer token (lower is better) | exact match in %", head, "-" * len(head)]
    for result in results:
        cells = ""
        for row in ROWS:
            score = result.scores.get(row)
            cells += f"  {'–':>14}" if score is None else f"  {score.nll:>8.3f} |{100 * score.exact_match:>4.0f}"
        recovered = "–" if result.recovered is None else f"{100 * result.recovered:.1f} %"
        lines.append(f"{result.task:<{width}}{cells}  {recovered:>9}")
    lines.append("recovered: share of the NLL gained by the task's own adapter over the base that generation gains too")
    return "\n".join(lines)
