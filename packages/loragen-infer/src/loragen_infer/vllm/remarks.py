"""Says, before the first request fails, what vLLM's rules mean for the adapters of a generator."""

import logging

from lora_tokenizer import LoraAdapter

from loragen_infer.adapters.vllm_rules import check_vllm

__all__ = ["log_remarks"]


def log_remarks(example: LoraAdapter, model: str, logger: logging.Logger) -> None:
    """Log what vLLM would say of the adapters of the bundle ``model``, which are all such as ``example``.

    ``logger`` is one that is shown from INFO on in the process that says it.
    """
    report = check_vllm(example)
    for reason in report.refused:
        logger.error("vLLM would not load the adapters of %s: %s.", model, reason)
    for warning in report.warnings:
        logger.warning("vLLM would not apply the adapters of %s as PEFT does: %s.", model, warning)
    if report.max_lora_rank is not None:
        logger.info("vLLM takes the adapters of %s with --max-lora-rank %d or more.", model, report.max_lora_rank)
