"""Write a PEFT LoRA adapter from a few unlabelled prompts, and measure that it works.

The names below are imported when they are first used, so that the command line answers ``--help`` without torch.
"""

from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError

if TYPE_CHECKING:
    from loragen_infer.attach import adapter_attached, swap_adapter
    from loragen_infer.bundle import GeneratorBundle
    from loragen_infer.encoder import PromptEncoder
    from loragen_infer.generator import LoraGenerator, scale_adapter
    from loragen_infer.task_means import TaskMeans

__all__ = [
    "GeneratorBundle",
    "LoraGenerator",
    "LoragenInferError",
    "PromptEncoder",
    "TaskMeans",
    "adapter_attached",
    "scale_adapter",
    "swap_adapter",
]

_MODULES = {
    "GeneratorBundle": "bundle",
    "LoraGenerator": "generator",
    "PromptEncoder": "encoder",
    "TaskMeans": "task_means",
    "adapter_attached": "attach",
    "scale_adapter": "generator",
    "swap_adapter": "attach",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
