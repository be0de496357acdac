"""What a bundle remembers of its training: the names of the tasks, and hashes of every sample that training showed.

The hashes are what lets an evaluation refuse a test example that was trained on; they give no sample away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["TrainingTasks"]

_HASH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class TrainingTasks:
    """The tasks that a generator was trained on.

    Raises:
        ValueError: A name is no text or there twice, or hashes are of no task or not as ``prompt_hash`` makes them.
    """

    names: tuple[str, ...]
    """Names of the tasks."""
    prompt_hashes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By task, the ``loragen_infer.samples.prompt_hash`` of every single sample in its training prompts. A task that is
    missing here is one of which nobody knows: bundles of older versions have names only."""

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in self.names) or len(set(self.names)) < len(self.names):
            raise ValueError(f"the training tasks are called {list(self.names)!r}, where different texts belong")
        if strangers := sorted(self.prompt_hashes.keys() - set(self.names)):
            raise ValueError(f"there are hashes of {strangers[0]!r}, which is no training task")
        if any(len(value) != 2 * _HASH_BYTES for values in self.prompt_hashes.values() for value in values):
            raise ValueError(f"a hash of a training prompt has not {2 * _HASH_BYTES} digits")

    def to_tensors(self) -> dict[str, Tensor]:
        """The hashes, uint8 ``[number, 8]`` for each task under its place in ``names``."""
        tensors = {}
        for index, name in enumerate(self.names):
            if name in self.prompt_hashes:
                content = bytearray.fromhex("".join(sorted(self.prompt_hashes[name])))
                tensor = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
                tensors[str(index)] = tensor.view(-1, _HASH_BYTES)
        return tensors

    @classmethod
    def from_tensors(cls, names: list[str], tensors: Mapping[str, Tensor]) -> "TrainingTasks":
        """The inverse of :meth:`to_tensors`; raises a ValueError as the class."""
        if not isinstance(names, list):
            raise ValueError("the names of the training tasks are no list")
        hashes = {
            names[int(index)]: frozenset(bytes(row).hex() for row in tensor.tolist())
            for index, tensor in tensors.items()
        }
        return cls(names=tuple(names), prompt_hashes=hashes)
