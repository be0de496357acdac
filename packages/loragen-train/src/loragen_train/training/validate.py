"""Judges a trained generator: what it writes for each task's validation prompts, against the task's mean adapter.

Legend: K checkpoints of a task, N tokens, W values per token, r rank, i inputs, o outputs of a module.
"""

from typing import Any

import torch
from lora_tokenizer import delta_inner
from loragen_infer.evaluation.task_means import TaskMeans

from loragen_train.training.build import Parts
from loragen_train.training.metrics import DeltaComparison, errors
from loragen_train.training.module import GeneratorModule

__all__ = ["task_means", "validate"]

_MAX_PROMPTS = 64
_SAMPLE_SIZE = 5000


def task_means(parts: Parts) -> TaskMeans:
    """The mean condition and the mean tokens of every task, which an evaluation's baselines need."""
    tokens = dict(parts.zoo.task_means())
    conditions = torch.stack([_embeddings(parts.module, parts.table.train[task]).mean(dim=0) for task in tokens])
    return TaskMeans(names=tuple(tokens), condition_means=conditions, token_means=torch.stack(list(tokens.values())))


def validate(parts: Parts, means: TaskMeans) -> dict[str, Any]:
    """Compare generated adapters with the tasks' mean adapters.

    Returns:
        ``tasks``: for each, errors in weights over the whole adapter and ``cosine``, of the generated weight change
        (all modules as one vector) with the mean of the checkpoints' weight changes. ``modules``: the same for each
        module, averaged over the tasks. ``sample``: some single values, predicted and target.
    """
    layout = parts.zoo.layout
    deltas = _MeanDeltas(parts)
    tasks, per_task = [], []
    predictions = {task: _generate(parts, parts.table.val[task]) for task in means.names}
    for task, target_NW in zip(means.names, means.token_means, strict=True):
        predicted_NW = predictions[task]
        cosine, module_cosines = deltas.cosines(predicted_NW, task)
        mask_NW = layout.mask()
        whole = errors((predicted_NW - target_NW)[mask_NW], target_NW[mask_NW])
        tasks.append({"task": task, "cosine": cosine, **_rounded(whole)})
        per_task.append(_module_errors(parts, predicted_NW, target_NW, module_cosines))
    modules = []
    for rows in zip(*per_task, strict=True):
        names = [name for name in rows[0] if name != "module"]
        modules.append({"module": rows[0]["module"], **{n: sum(row[n] for row in rows) / len(rows) for n in names}})
    targets = dict(zip(means.names, means.token_means, strict=True))
    return {"tasks": tasks, "modules": modules, "sample": _sample(parts, predictions, targets)}


@torch.no_grad()
def _embeddings(module: GeneratorModule, numbers: range) -> torch.Tensor:
    chunks = torch.split(torch.tensor(numbers, device=module.device), _MAX_PROMPTS)
    return torch.cat([module.condition(chunk[None])[0].float().cpu() for chunk in chunks])


@torch.no_grad()
def _generate(parts: Parts, numbers: range) -> torch.Tensor:
    module = parts.module
    condition_BPD = _embeddings(module, numbers[:_MAX_PROMPTS])[None].to(module.device)
    return parts.zoo.stats.denormalize(module.generator(condition_BPD)[0].float().cpu())


class _MeanDeltas:
    """Cosines with the mean of a task's weight changes, B @ A averaged over K checkpoints.

    The mean is itself a product of stacked factors, [B_1 ... B_K] / K and [A_1; ...; A_K], so it is never formed; the
    factors of one module at a time are read from the token set.
    """

    def __init__(self, parts: Parts) -> None:
        self._zoo = parts.zoo
        self._comparison = DeltaComparison(parts.zoo.layout)

    def cosines(self, predicted_NW: torch.Tensor, task: str) -> tuple[float, dict[str, float]]:
        """The cosine over all modules, and that of each module."""
        members = [index for index, name in enumerate(self._zoo.tasks) if name == task]
        checkpoints = [self._zoo.tokens[index] for index in members]
        inner_sum = predicted_sum = mean_sum = 0.0
        by_module = {}
        for module, scale in zip(self._comparison.modules, self._comparison.scales.tolist(), strict=True):
            a_ri, b_or = self._comparison.factors(predicted_NW, module)
            factors = [self._comparison.factors(tokens_NW, module) for tokens_NW in checkpoints]
            stacked_a = torch.cat([a for a, _ in factors])
            stacked_b = torch.cat([b for _, b in factors], dim=1) / len(members)
            inner = float(delta_inner(a_ri, b_or, stacked_a, stacked_b))
            predicted = float(delta_inner(a_ri, b_or, a_ri, b_or))
            mean = float(delta_inner(stacked_a, stacked_b, stacked_a, stacked_b))
            by_module[module] = _cosine(inner, predicted, mean)
            inner_sum += scale**2 * inner
            predicted_sum += scale**2 * predicted
            mean_sum += scale**2 * mean
        return _cosine(inner_sum, predicted_sum, mean_sum), by_module


def _cosine(inner: float, first: float, second: float) -> float:
    return inner / (first * second) ** 0.5 if first > 0 and second > 0 else 0.0


def _module_errors(
    parts: Parts, predicted_NW: torch.Tensor, target_NW: torch.Tensor, cosines: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for module, places in DeltaComparison(parts.zoo.layout).places.items():
        predicted, target = (
            torch.cat([tokens.flatten()[start : start + size] for start, size, _ in places.values()])
            for tokens in (predicted_NW, target_NW)
        )
        rows.append({"module": module, "cosine": cosines[module], **_rounded(errors(predicted - target, target))})
    return rows


def _rounded(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def _sample(
    parts: Parts, predictions: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]
) -> dict[str, list[Any]]:
    """A fixed random choice of single values over all tasks, with the module that each belongs to."""
    comparison = DeltaComparison(parts.zoo.layout)
    choice = torch.Generator().manual_seed(0)
    per_task = _SAMPLE_SIZE // len(predictions)
    owner = torch.full((parts.zoo.layout.num_tokens * parts.zoo.layout.token_dim,), -1)
    for index, places in enumerate(comparison.places.values()):
        for start, size, _ in places.values():
            owner[start : start + size] = index
    real = (owner >= 0).nonzero().squeeze(1)
    sample: dict[str, list[Any]] = {"module": [], "task": [], "target": [], "predicted": []}
    for task, predicted_NW in predictions.items():
        chosen = real[torch.randperm(len(real), generator=choice)[:per_task]]
        sample["module"] += owner[chosen].tolist()
        sample["task"] += [task] * len(chosen)
        sample["target"] += targets[task].flatten()[chosen].tolist()
        sample["predicted"] += predicted_NW.flatten()[chosen].tolist()
    return sample
