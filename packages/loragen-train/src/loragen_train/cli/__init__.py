"""The command line ``loragen-train``."""
