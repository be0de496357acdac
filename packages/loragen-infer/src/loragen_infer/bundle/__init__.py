"""The bundle: the one file that training writes and everything else reads."""

from loragen_infer.bundle.bundle import GeneratorBundle, TrainingTasks, read_old_task_means
from loragen_infer.bundle.bundle_file import BUNDLE_NAME, TORCH_BUNDLE_NAME, find_bundle

__all__ = [
    "BUNDLE_NAME",
    "TORCH_BUNDLE_NAME",
    "GeneratorBundle",
    "TrainingTasks",
    "find_bundle",
    "read_old_task_means",
]
