"""How alike the weight changes are that tokens stand for.

Legend: B batch, N tokens, W values per token, r rank, i inputs, o outputs of a module.
"""

import torch
from lora_tokenizer import TokenLayout, delta_inner
from lora_tokenizer.layout.packing import Slot
from lora_tokenizer.names import split_name

__all__ = ["DeltaComparison"]


class DeltaComparison:
    """Compares the weight changes B @ A that tokens stand for, module by module, without ever forming one.

    A module's scale (lora_alpha / r) is the same for all adapters of a layout and cancels in a cosine.

    Args:
        layout: Where the tokens hold which matrix.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self._token_dim = layout.token_dim
        self._slots: dict[str, dict[str, Slot]] = {}
        for slot in layout.slots:
            module, part = split_name(slot.name)
            if len(slot.shape) == 2:
                factor = "A" if part.startswith(("lora_A", "lora_embedding_A")) else "B"
                self._slots.setdefault(module, {})[factor] = slot
        self.modules = list(self._slots)
        """Names of the modules."""
        self.scales = torch.tensor([layout.config.scaling(module) for module in self.modules])
        """The factor on B @ A of each module."""

    def cosines(self, first_BNW: torch.Tensor, second_BNW: torch.Tensor) -> torch.Tensor:
        """Return the cosine of every module's two changes, float32 ``[B, modules]``; 0 where one of them is zero."""
        cosines = []
        for module in self.modules:
            one, two = self.factors(first_BNW, module), self.factors(second_BNW, module)
            norms = delta_inner(*one, *one) * delta_inner(*two, *two)
            cosines.append(delta_inner(*one, *two) / norms.sqrt().clamp(min=torch.finfo(torch.float32).tiny))
        return torch.stack(cosines, dim=1)

    def factors(self, tokens_NW: torch.Tensor, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A ``[..., r, i]`` and B ``[..., o, r]``, float32, of one module in tokens ``[..., N, W]``."""
        flat = tokens_NW.flatten(-2)
        slots = self._slots[module]
        return self._factor(flat, slots["A"]), self._factor(flat, slots["B"])

    def _factor(self, flat: torch.Tensor, slot: Slot) -> torch.Tensor:
        start = slot.start * self._token_dim
        return slot.shaped(flat[..., start : start + slot.num_values]).float()
