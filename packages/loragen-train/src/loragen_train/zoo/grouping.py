"""Which adapters belong together: those of one shape and scaling, and whether they grew from one initialisation.

Only a few values of each adapter are kept, so any number of adapters takes little memory.

Legend: M modules looked at, S values looked at, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lora_tokenizer import LoraAdapter, TokenLayout
from loragen_infer.words import counted

from loragen_train.errors import LoragenTrainError

__all__ = ["SHARED_COSINE", "AdapterFacts", "choose_group", "facts_of", "group_adapters", "layout_of", "mean_cosine"]

SHARED_COSINE = 0.5
"""Mean cosine of the A matrices of different tasks from which on one initialisation is taken to be shared. Those that
``collect`` trains from one have about 0.9; of unrelated ones 0 is expected; of two halves from two, below 0.5."""

_NUM_MODULES, _NUM_VALUES = 4, 4096
_SETTINGS = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What an import must know of an adapter once its values are out of memory."""

    group: str
    """Equal for adapters that fit one token layout."""
    words: str
    """Rank, alpha, target modules and size."""
    base_model: str | None
    """The base model as the adapter names it."""
    settings: Mapping[str, Any]
    """What a manifest says of adapters, as in PEFT's LoraConfig."""
    sample: torch.Tensor
    """``[M, S]``, values of A in some modules, of length 1 in each, float32."""


def layout_of(adapter: LoraAdapter, *, token_dim: int = 384) -> TokenLayout:
    """Return the layout that fit has for an adapter, in float32: half-precision values are no other shape."""
    wide = {
        name: torch.empty(tensor.shape, dtype=torch.promote_types(tensor.dtype, torch.float32), device="meta")
        for name, tensor in adapter.tensors.items()
    }
    plain = LoraAdapter(config=adapter.config, tensors=wide)
    return TokenLayout.from_adapter(plain, token_dim=token_dim, max_tokens="auto")


def facts_of(adapter: LoraAdapter) -> AdapterFacts:
    """Return the facts of an adapter."""
    layout = layout_of(adapter)
    config, modules = adapter.config, adapter.modules
    kinds = dict.fromkeys(module.rpartition(".")[2] for module in modules)
    flags = [word for word, is_set in (("rsLoRA", config.use_rslora), ("DoRA", config.use_dora)) if is_set]
    size = f"{counted(len(modules), 'module')} with {adapter.num_parameters:,} values"
    peft = config.to_peft()
    return AdapterFacts(
        group=layout.fingerprint,
        words=", ".join([f"r {config.r}", f"alpha {config.lora_alpha:g}", *flags, "+".join(sorted(kinds)), size]),
        base_model=config.base_model_name_or_path,
        settings={name: peft[name] for name in _SETTINGS if peft.get(name)},
        sample=_sample(adapter),
    )


def _sample(adapter: LoraAdapter) -> torch.Tensor:
    num_values = min(_NUM_VALUES, *(adapter.factors(module)[0].numel() for module in adapter.modules))
    rows = []
    for module in adapter.modules[:: -(-len(adapter.modules) // _NUM_MODULES)]:
        values = adapter.factors(module)[0].flatten()
        rows.append(values[:: values.numel() // num_values][:num_values].float())
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def mean_cosine(samples: Sequence[torch.Tensor]) -> float:
    """Return the mean cosine ``[M, S]`` of all pairs of tasks and all modules looked at; there must be two tasks.

    Of unit vectors it is ``(|sum|² - T) / (T (T - 1))``, which takes no pairs.
    """
    number = len(samples)
    total_MS = torch.zeros_like(samples[0], dtype=torch.float64)
    for sample_MS in samples:
        total_MS += sample_MS
    cosine_M = (total_MS.square().sum(dim=1) - number) / (number * (number - 1))
    return cosine_M.mean().item()


def group_adapters(facts: Mapping[str, AdapterFacts]) -> list[list[str]]:
    """Return the names of tasks whose adapters fit one layout, the largest group first."""
    groups: dict[str, list[str]] = {}
    for name, fact in facts.items():
        groups.setdefault(fact.group, []).append(name)
    return sorted(groups.values(), key=len, reverse=True)


def choose_group(facts: Mapping[str, AdapterFacts], keep: int | Literal["majority"] | None) -> list[str]:
    """Return the tasks of the group to keep.

    Raises:
        LoragenTrainError: There are several groups and ``keep`` names none of them.
    """
    groups = group_adapters(facts)
    number = 1 if keep == "majority" or (keep is None and len(groups) == 1) else keep
    if number is not None and number <= len(groups):
        return groups[number - 1]
    listed = "; ".join(
        f"group {place}: {counted(len(names), 'task')} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''}), "
        f"{facts[names[0]].words}"
        for place, names in enumerate(groups, start=1)
    )
    wrong = "take one with --keep majority or --keep 1" if keep is None else f"there is no group {keep}"
    raise LoragenTrainError(f"The adapters do not fit one token layout; {wrong}: {listed}.")
