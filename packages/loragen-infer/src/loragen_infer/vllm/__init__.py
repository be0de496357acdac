"""Adapters of a store behind vLLM: a plugin through which vLLM asks for them, and a client that hands them over.

vLLM itself is imported by :mod:`loragen_infer.vllm.resolver` only, which nothing but vLLM's own process loads.
"""

from loragen_infer.vllm.client import VllmClient
from loragen_infer.vllm.names import adapter_id_of, request_id_of, served_name

__all__ = ["VllmClient", "adapter_id_of", "request_id_of", "served_name"]
