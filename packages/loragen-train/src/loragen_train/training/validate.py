"""Judges a trained generator: what it writes for each task's validation prompts, against the task's mean adapter.

Legend: K checkpoints of a task, P prompts, D width of an embedding, N tokens, W values per token.
"""

from typing import Any

import torch
from lora_tokenizer import delta_inner

from loragen_train.training.build import TrainingSetup
from loragen_train.training.epoch_metrics import error_sums, errors
from loragen_train.training.metrics import DeltaComparison
from loragen_train.training.module import GeneratorModule

__all__ = ["Validation", "embeddings"]

_MAX_PROMPTS = 64
_SAMPLE_SIZE = 5000


@torch.no_grad()
def embeddings(module: GeneratorModule, numbers: range) -> torch.Tensor:
    """Return the embeddings ``[P, D]`` of prompts by number, on the module's device."""
    chunks = torch.split(torch.tensor(numbers, device=module.device), _MAX_PROMPTS)
    return torch.cat([module.condition(chunk[None])[0].float() for chunk in chunks])


class Validation:
    """Compares generated adapters with the mean adapters of their tasks, one task after the other.

    Args:
        setup: The training; its generator writes on the device that it is on.
    """

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        self._deltas = DeltaComparison(setup.zoo.layout)
        self._mask_NW = setup.zoo.layout.mask()
        self._tasks: list[dict[str, Any]] = []
        self._modules: dict[str, dict[str, float]] = {module: {} for module in self._deltas.modules}
        self._sample: dict[str, list[Any]] = {"task": [], "target": [], "predicted": []}
        self._choice = torch.Generator().manual_seed(0)

    def add(self, task: str, target_NW: torch.Tensor) -> None:
        """Judge what the generator writes for a task whose checkpoints have the mean ``target_NW``."""
        predicted_NW = self._generate(task)
        by_module = self._delta_cosines(predicted_NW, task)
        mask_NW = self._mask_NW
        whole = _errors(predicted_NW[mask_NW], target_NW[mask_NW])
        self._tasks.append({"task": task, "cosine": by_module.pop(""), **whole})
        for module, cosine in by_module.items():
            values = {
                "cosine": cosine,
                **_errors(*(self._values(tokens, module) for tokens in (predicted_NW, target_NW))),
            }
            sums = self._modules[module]
            self._modules[module] = {name: sums.get(name, 0.0) + value for name, value in values.items()}
        self._add_to_sample(task, predicted_NW, target_NW)

    def result(self) -> dict[str, Any]:
        """What was seen.

        Returns:
            ``tasks``: for each, errors in weights over the whole adapter and ``cosine``, of the generated weight change
            (all modules as one vector) with the mean of the checkpoints' weight changes. ``modules``: the same for each
            module, averaged over the tasks. ``sample``: some single values, predicted and target.
        """
        modules = [
            {"module": module, **{name: value / len(self._tasks) for name, value in sums.items()}}
            for module, sums in self._modules.items()
        ]
        return {"tasks": self._tasks, "modules": modules, "sample": self._sample}

    @torch.no_grad()
    def _generate(self, task: str) -> torch.Tensor:
        module = self._setup.module
        condition_PD = embeddings(module, self._setup.table.val[task][:_MAX_PROMPTS])
        return self._setup.zoo.stats.denormalize(module.generator(condition_PD[None])[0].float().cpu())

    def _delta_cosines(self, predicted_NW: torch.Tensor, task: str) -> dict[str, float]:
        """The cosine of each module's weight change with the mean of K checkpoints', and under "" that of all together.

        The mean is itself a product of stacked factors, [B_1 ... B_K] / K and [A_1; ...; A_K], so it is never formed;
        the factors of one module at a time are read from the token set.
        """
        zoo = self._setup.zoo
        checkpoints = [zoo.tokens[index] for index, name in enumerate(zoo.tasks) if name == task]
        total = torch.zeros(3, dtype=torch.float64)
        cosines = {}
        for module, scale in zip(self._deltas.modules, self._deltas.scales.tolist(), strict=True):
            own = self._deltas.factors(predicted_NW, module)
            factors = [self._deltas.factors(tokens_NW, module) for tokens_NW in checkpoints]
            mean = torch.cat([a for a, _ in factors]), torch.cat([b for _, b in factors], dim=1) / len(checkpoints)
            products = torch.stack([delta_inner(*own, *mean), delta_inner(*own, *own), delta_inner(*mean, *mean)])
            cosines[module] = _cosine(products)
            total += scale**2 * products
        return {**cosines, "": _cosine(total)}

    def _values(self, tokens_NW: torch.Tensor, module: str) -> torch.Tensor:
        return torch.cat([factor.flatten() for factor in self._deltas.factors(tokens_NW, module)])

    def _add_to_sample(self, task: str, predicted_NW: torch.Tensor, target_NW: torch.Tensor) -> None:
        """Add a fixed random choice of single values."""
        real = self._mask_NW.flatten().nonzero().squeeze(1)
        num_values = max(1, _SAMPLE_SIZE // len(self._setup.zoo.names))
        chosen = real[torch.randperm(len(real), generator=self._choice)[:num_values]]
        self._sample["task"] += [task] * len(chosen)
        self._sample["target"] += target_NW.flatten()[chosen].tolist()
        self._sample["predicted"] += predicted_NW.flatten()[chosen].tolist()


def _errors(predicted: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    values = errors(error_sums(predicted - target, target), target.numel())
    return {name: value.item() for name, value in values.items()}


def _cosine(products: torch.Tensor) -> float:
    inner, first, second = products.tolist()
    return inner / (first * second) ** 0.5 if first > 0 and second > 0 else 0.0
