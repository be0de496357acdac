"""Train a generator of LoRA adapters: collect a zoo, prepare prompts, fit.

The functions are in the modules of their names: ``from loragen_train.training.fit import fit``.
"""

from loragen_train.errors import LoragenTrainError

__all__ = ["LoragenTrainError"]
