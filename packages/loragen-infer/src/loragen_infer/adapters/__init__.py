"""Adapters on a language model: put on, many at once or one, and proven to act."""

from loragen_infer.adapters.attach import adapter_attached, add_adapter, swap_adapter
from loragen_infer.adapters.batched import BatchedLora
from loragen_infer.adapters.merging import merge_adapters
from loragen_infer.adapters.stack import AdapterStack, find_not_plain
from loragen_infer.adapters.tuning import Tuned, TuneSettings, tune, tune_many

__all__ = [
    "AdapterStack",
    "BatchedLora",
    "TuneSettings",
    "Tuned",
    "adapter_attached",
    "add_adapter",
    "find_not_plain",
    "merge_adapters",
    "swap_adapter",
    "tune",
    "tune_many",
]
