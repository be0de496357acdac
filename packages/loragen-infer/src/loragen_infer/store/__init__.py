"""Adapters on disk under the fingerprints of their requests: made once, kept, bounded."""

from loragen_infer.store.adapter_store import AdapterStore
from loragen_infer.store.shelf import StoredAdapter

__all__ = ["AdapterStore", "StoredAdapter"]
