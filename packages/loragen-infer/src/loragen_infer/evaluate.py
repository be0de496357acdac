"""Measures whether generated adapters work, beside the baselines and the control that a claim needs.

Rows per task: the base model, the mean of the training adapters, the generated adapter, the same generator given
the prompts of a wrong task, and the task's own trained adapter where there is one.
"""

from importlib.util import find_spec
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
from loragen_infer.results import ROWS, TaskResult, to_json
from loragen_infer.scoring import Score, Scorer

__all__ = ["evaluate"]


def evaluate(config: EvaluateConfig) -> list[TaskResult]:
    """Score every row on every task, write ``evaluation.json`` and ``evaluation.png``, and return the results.

    Raises:
        LoragenInferError: A file cannot be read, or an adapter does not fit the language model.
    """
    output_dir = Path(config.output_dir)
    _check_before_long_work(output_dir)
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
    draw_chart(results, output_dir / "evaluation.png")
    write_json(output_dir / "evaluation.json", to_json(config, results))
    return results


def _check_before_long_work(output_dir: Path) -> None:
    for module in ("matplotlib", "peft"):
        if find_spec(module) is None:
            raise LoragenInferError(f"Evaluating needs {module}; install it with: pip install 'loragen-infer[eval]'.")
    if output_dir.exists() and not output_dir.is_dir():
        raise LoragenInferError(f"output_dir {output_dir} is a file; give the folder to write the results to.")


def _score(scorer: Scorer, model: Any, adapter: LoraAdapter | None) -> Score:
    if adapter is None:
        return scorer.score(model)
    with adapter_attached(model, adapter) as adapted:
        return scorer.score(adapted)


def _task_prompts(task: EvaluateTask) -> list[str]:
    path = Path(task.prompts)
    rows = read_jsonl(path)
    prompts = [example.prompt for example in read_examples(path, need_response=False)]
    if not any("task" in row for row in rows):
        return prompts
    prompts = [prompt for prompt, row in zip(prompts, rows, strict=True) if row.get("task") == task.name]
    if not prompts:
        raise LoragenInferError(f"{path} has no prompts of the task {task.name!r}; name another file for it.")
    return prompts


def _own_adapter(folder: Path) -> LoraAdapter:
    return read_adapter(find_adapters(folder)[-1])
