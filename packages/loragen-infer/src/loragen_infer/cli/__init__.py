"""The command line ``loragen-infer``, and what it shares with ``loragen-train``."""
