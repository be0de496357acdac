"""What vLLM would say of an adapter, from its rules alone: vLLM itself is neither needed nor loaded.

Sources: ``vllm/config/lora.py`` (the ranks that it allows), ``vllm/lora/peft_helper.py`` (the config fields that it
reads and refuses) and ``vllm/lora/utils.py`` (the tensor names that it knows), as they stood in releases of 2025;
another release may have other rules, and its own message is the last word.
"""

from dataclasses import dataclass

from lora_tokenizer import LoraAdapter

__all__ = ["VllmReport", "check_vllm"]

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # 1 is allowed too, but only since release 0.12


@dataclass(frozen=True, kw_only=True)
class VllmReport:
    """Whether and how vLLM serves an adapter."""

    max_lora_rank: int | None
    """The smallest value of ``--max-lora-rank`` that takes the adapter; None: its rank is above all of them."""
    refused: tuple[str, ...]
    """Why vLLM would not load it; empty: it would."""
    warnings: tuple[str, ...]
    """What vLLM would load and then treat otherwise than PEFT does."""


def check_vllm(adapter: LoraAdapter) -> VllmReport:
    """Return what vLLM would say of ``adapter``.

    Example:
        >>> import torch
        >>> from lora_tokenizer import AdapterConfig
        >>> name = "base_model.model.layers.0.q_proj.lora_{}.weight"
        >>> tensors = {name.format("A"): torch.ones(12, 3), name.format("B"): torch.ones(5, 12)}
        >>> config = AdapterConfig(r=12, lora_alpha=24, target_modules=("q_proj",))
        >>> check_vllm(LoraAdapter(config=config, tensors=tensors))
        VllmReport(max_lora_rank=16, refused=(), warnings=())
    """
    config = adapter.config
    rank = max([config.r, *(config.rank(module) for module in adapter.modules)])
    fitting = next((allowed for allowed in _RANKS if allowed >= rank), None)
    refused, warnings = [], []
    if fitting is None:
        refused.append(f"rank {rank} is above {_RANKS[-1]}, the highest that it takes")
    if config.use_dora:
        refused.append("it does not support DoRA (use_dora)")
    if config.lora_bias:
        refused.append("it does not know the tensors lora_B.bias (lora_bias)")
    embeddings = [module for module in adapter.modules if _is_embedding(adapter, module)]
    if embeddings:
        refused.append(
            f"it takes LoRA on embeddings such as {embeddings[0]} only for the few model classes that list "
            "embedding_modules"
        )
    if len({config.scaling(module) for module in adapter.modules}) > 1 or any(
        config.scaling(module) != config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        for module in adapter.modules
    ):
        warnings.append("it ignores rank_pattern and alpha_pattern, so some modules get another scaling")
    if config.fan_in_fan_out:
        warnings.append("it ignores fan_in_fan_out, so layers of the kind Conv1D are not adapted as PEFT does")
    return VllmReport(max_lora_rank=fitting, refused=tuple(refused), warnings=tuple(warnings))


def _is_embedding(adapter: LoraAdapter, module: str) -> bool:
    return f"base_model.model.{module}.lora_embedding_A" in adapter.tensors
