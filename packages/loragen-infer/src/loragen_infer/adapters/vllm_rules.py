"""What vLLM would say of an adapter, from its rules alone: vLLM itself is neither needed nor loaded.

Sources: ``vllm/config/lora.py`` (the ranks that it allows), ``vllm/lora/peft_helper.py`` (the config fields that it
reads and refuses) and ``vllm/lora/utils.py`` (the tensor names that it knows), as they stand in release 0.33 and, where
that says so, stood before it; another release may have other rules, and its own message is the last word.
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
    """Return what vLLM would say of ``adapter``."""
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
    embedding = next((name for name in adapter.tensors if name.endswith(".lora_embedding_A")), None)
    if embedding is not None:
        refused.append(f"it takes LoRA on embeddings ({embedding}) only for model classes that list embedding_modules")
    plain = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    if any(config.scaling(module) != plain for module in adapter.modules):
        warnings.append(
            "releases before 0.33 ignore rank_pattern and alpha_pattern, so some modules are scaled otherwise"
        )
    if config.fan_in_fan_out:
        warnings.append("it ignores fan_in_fan_out, so layers of the kind Conv1D are not adapted as PEFT does")
    return VllmReport(max_lora_rank=fitting, refused=tuple(refused), warnings=tuple(warnings))
