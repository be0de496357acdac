"""How much an adapter changes each weight of its base model, and a picture of it.

Legend: M kinds of modules, L layers.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter
from lora_tokenizer.delta import delta_inner
from torch import Tensor

from loragen_infer.files import atomic_file

__all__ = ["DeltaNorms", "delta_norms", "draw_norms"]

_LAYER = re.compile(r"(?:^|.*?\.)(\d+)\.(.+)")
_DPI = 160


@dataclass(frozen=True, kw_only=True, eq=False)
class DeltaNorms:
    """Frobenius norms of the weight changes ΔW, by module and layer."""

    modules: tuple[str, ...]
    """What the M modules are called within a layer."""
    layers: tuple[int | None, ...]
    """The numbers of the L layers; None stands for what is in no layer."""
    norms_ML: Tensor
    """The norms; NaN where a layer has no adapted module of that name."""


def delta_norms(adapter: LoraAdapter) -> DeltaNorms:
    """Return the norms of ``scaling * B @ A`` of every module, without making a single B @ A."""
    norms: dict[tuple[str, int | None], float] = {}
    for name in adapter.modules:
        a_ri, b_or = (factor.double() for factor in adapter.factors(name))
        found = _LAYER.fullmatch(name)
        place = (found[2], int(found[1])) if found else (name, None)
        # Rounding may take the square of a norm of zero below it.
        norms[place] = abs(adapter.scaling(name)) * delta_inner(a_ri, b_or, a_ri, b_or).clamp(min=0).sqrt().item()
    modules = tuple(dict.fromkeys(module for module, _ in norms))
    layers = tuple(sorted({layer for _, layer in norms}, key=lambda layer: (layer is None, layer)))
    values = [[norms.get((module, layer), torch.nan) for layer in layers] for module in modules]
    return DeltaNorms(modules=modules, layers=layers, norms_ML=torch.tensor(values))


def draw_norms(found: DeltaNorms, path: Path) -> Path:
    """Write a heat map to the PNG file ``path``, whole or not at all, and return the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_modules, num_layers = found.norms_ML.shape
    figure = Figure(figsize=(8.4, 1.35 + 0.34 * num_modules), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    highest = found.norms_ML.nan_to_num().max().item()
    image = axes.imshow(found.norms_ML.numpy(), cmap="Blues", aspect="auto", vmin=0, vmax=highest or 1)
    axes.set_yticks(range(num_modules), [module.rpartition(".")[2] for module in found.modules], fontsize=9)
    step = max(1, round(num_layers / 15))
    places = range(0, num_layers, step)
    axes.set_xticks(places, ["–" if found.layers[at] is None else str(found.layers[at]) for at in places], fontsize=8)
    axes.set_xlabel("layer", fontsize=9)
    axes.set_title("What the adapter changes: ‖ΔW‖ by layer and module", fontsize=10, loc="left")
    # White lines between the cells, so that each can be told from its neighbours.
    axes.set_xticks([place - 0.5 for place in range(num_layers + 1)], minor=True)
    axes.set_yticks([place - 0.5 for place in range(num_modules + 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=10)
    bar.set_label("‖ΔW‖", fontsize=9)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.spines[:].set_visible(False)
    with atomic_file(path) as part:
        figure.savefig(part, format="png")
    return path
