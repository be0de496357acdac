"""The bundle: the one file that training writes and everything else reads."""

from loragen_infer.bundle.bundle import GeneratorBundle

__all__ = [
    "GeneratorBundle",
]
