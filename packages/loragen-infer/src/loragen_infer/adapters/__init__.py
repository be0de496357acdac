"""Adapters on a language model: put on, and proven to act."""

from loragen_infer.adapters.attach import adapter_attached, add_adapter, swap_adapter

__all__ = ["adapter_attached", "add_adapter", "swap_adapter"]
