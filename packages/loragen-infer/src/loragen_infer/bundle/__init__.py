"""The bundle: the one file that training writes and everything else reads."""

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.bundle.bundle_file import BUNDLE_NAME, TORCH_BUNDLE_NAME, find_bundle
from loragen_infer.bundle.training_tasks import TrainingTasks

__all__ = [
    "BUNDLE_NAME",
    "TORCH_BUNDLE_NAME",
    "GeneratorBundle",
    "TrainingTasks",
    "find_bundle",
]
