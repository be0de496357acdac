"""How far generated tokens are from their targets: in z-scores, in weights, and in the weight changes they make.

Legend: B batch, N tokens, W values per token, r rank, i inputs, o outputs of a module.
"""

from collections.abc import Iterator, Mapping

import torch
from lora_tokenizer import TokenLayout, delta_inner
from lora_tokenizer.names import split_name

__all__ = ["DeltaComparison", "EpochMeans", "errors"]


def errors(difference: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return MSE, MAE, RMSE and relative error (norm of the difference over norm of the target) as float32 scalars.

    Args:
        difference: Predicted minus target values, of any shape, without padding.
        target: The target values, of the same shape.

    Example:
        >>> {name: round(value.item(), 3) for name, value in errors(torch.ones(4), torch.full((4,), 2.0)).items()}
        {'mse': 1.0, 'mae': 1.0, 'rmse': 1.0, 'relative_error': 0.5}
    """
    mse = difference.square().mean()
    rmse = mse.sqrt()
    scale = target.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return {"mse": mse, "mae": difference.abs().mean(), "rmse": rmse, "relative_error": rmse / scale}


class EpochMeans:
    """Adds up the metrics of an epoch on their device, to be logged once: a step's log costs more than its numbers."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Count one batch; not every batch needs every metric."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the means, ``prefix`` before their names, and begin anew."""
        means = {prefix + name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class DeltaComparison:
    """Compares the weight changes B @ A that tokens stand for, module by module, without ever forming one.

    A module's scale (lora_alpha / r) is the same for all adapters of a layout and cancels in a cosine.

    Args:
        layout: Where the tokens hold which matrix.
    """

    def __init__(self, layout: TokenLayout) -> None:
        places: dict[str, dict[str, tuple[int, int, tuple[int, ...]]]] = {}
        for slot in layout.slots:
            module, part = split_name(slot.name)
            if len(slot.shape) == 2:
                factor = "A" if part.startswith(("lora_A", "lora_embedding_A")) else "B"
                places.setdefault(module, {})[factor] = (slot.start * layout.token_dim, slot.num_values, slot.shape)
        self.places = places
        """Of each module and factor: first value in the flat tokens, number of values, shape."""
        self.modules = list(places)
        """Names of the modules."""
        self.scales = torch.tensor([layout.config.scaling(module) for module in self.modules])
        """The factor on B @ A of each module."""

    def cosines(self, first_BNW: torch.Tensor, second_BNW: torch.Tensor) -> torch.Tensor:
        """Return the cosine of every module's two changes, float32 ``[B, modules]``; 0 where one of them is zero."""
        inner, first, second = self._products(first_BNW, second_BNW)
        return inner / (first * second).sqrt().clamp(min=torch.finfo(torch.float32).tiny)

    def factors(self, tokens_NW: torch.Tensor, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A ``[r, i]`` and B ``[o, r]``, float32, of one module."""
        flat = tokens_NW.flatten()
        a_ri, b_or = (
            flat[start : start + num_values].view(shape).float()
            for start, num_values, shape in (self.places[module]["A"], self.places[module]["B"])
        )
        return a_ri, b_or

    def _products(
        self, first_BNW: torch.Tensor, second_BNW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = []
        for (a1, b1), (a2, b2) in zip(self._factors(first_BNW), self._factors(second_BNW), strict=True):
            rows.append((delta_inner(a1, b1, a2, b2), delta_inner(a1, b1, a1, b1), delta_inner(a2, b2, a2, b2)))
        inner, first, second = (torch.stack(column, dim=1) for column in zip(*rows, strict=True))
        return inner, first, second

    def _factors(self, tokens_BNW: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        flat = tokens_BNW.float().flatten(1)
        for places in self.places.values():
            a_Bri, b_Bor = (
                flat[:, start : start + num_values].view(len(flat), *shape)
                for start, num_values, shape in (places["A"], places["B"])
            )
            yield a_Bri, b_Bor
