"""Measures whether generated adapters work, beside the baselines and the control that a claim needs.

Rows per task: the base model, the mean of the training adapters, the generated adapter, the same generator given
the prompts of a wrong task, and the task's own trained adapter where there is one.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_tokenizer import LoraAdapter, find_adapters, read_adapter

from loragen_infer.attach import adapter_attached
from loragen_infer.base_model import load_base_model
from loragen_infer.chart import draw_chart
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluate_config import EvaluateConfig, EvaluateTask
from loragen_infer.examples import read_examples, read_jsonl
from loragen_infer.files import write_json
from loragen_infer.generator import LoraGenerator
from loragen_infer.progress import ProgressBar
from loragen_infer.scoring import Score, Scorer

__all__ = ["ROWS", "TaskResult", "evaluate", "format_table"]

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


def evaluate(config: EvaluateConfig) -> list[TaskResult]:
    """Score every row on every task, write ``evaluation.json`` and ``evaluation.png``, and return the results.

    Raises:
        LoragenInferError: A file cannot be read, or an adapter does not fit the language model.
    """
    prompts = {task.name: _task_prompts(task)[: config.num_prompts] for task in config.tasks}
    examples = {task.name: read_examples(Path(task.test))[: config.num_examples] for task in config.tasks}
    own = {task.name: _own_adapter(Path(task.adapter)) for task in config.tasks if task.adapter is not None}
    generator = LoraGenerator.from_pretrained(config.model, device=config.device)
    name = config.base_model or generator.bundle.layout.config.base_model_name_or_path
    if name is None:
        raise LoragenInferError("The generator does not know its language model; name it with --base-model.")
    model, tokenizer = load_base_model(name, device=config.device)

    results = []
    num_rows = len(ROWS) * len(config.tasks) - (len(config.tasks) - len(own))
    with ProgressBar("evaluate", total=num_rows, unit="row") as bar:
        for index, task in enumerate(config.tasks):
            wrong_task = config.tasks[(index + 1) % len(config.tasks)].name
            adapters: dict[str, LoraAdapter | None] = {
                "base": None,
                "mean": generator.mean_adapter(),
                "generated": generator.generate(prompts[task.name]),
                "wrong prompts": generator.generate(prompts[wrong_task]),
            }
            if task.name in own:
                adapters["own"] = own[task.name]
            scorer = Scorer(tokenizer, examples[task.name], batch_size=config.batch_size)
            scores = {}
            for row, adapter in adapters.items():
                scores[row] = _score(scorer, model, adapter)
                bar.advance(task=task.name, row=row, nll=f"{scores[row].nll:.3f}")
            results.append(TaskResult(task=task.name, wrong_task=wrong_task, scores=scores))
    output_dir = Path(config.output_dir)
    write_json(output_dir / "evaluation.json", to_json(config, results))
    draw_chart(results, output_dir / "evaluation.png")
    return results


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


def _score(scorer: Scorer, model: Any, adapter: LoraAdapter | None) -> Score:
    if adapter is None:
        return scorer.score(model)
    with adapter_attached(model, adapter) as adapted:
        return scorer.score(adapted)


def _task_prompts(task: EvaluateTask) -> list[str]:
    path = Path(task.prompts)
    if any("task" in row for row in read_jsonl(path)):
        prompts = [str(row["prompt"]) for row in read_jsonl(path) if row.get("task") == task.name]
        if not prompts:
            raise LoragenInferError(f"{path} has no prompts of the task {task.name!r}; name another file for it.")
        return prompts
    return [example.prompt for example in read_examples(path, need_response=False)]


def _own_adapter(folder: Path) -> LoraAdapter:
    return read_adapter(find_adapters(folder)[-1])
