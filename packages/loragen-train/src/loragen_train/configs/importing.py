"""The configuration of ``loragen-train import``."""

from dataclasses import dataclass
from typing import Literal

from loragen_train.configs.collect import check_positive, check_seed
from loragen_train.errors import LoragenTrainError

__all__ = ["ImportConfig"]


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Adapters that exist already, and the prompts of their tasks, to be described as a zoo."""

    table: str | None = None
    """A .csv, .jsonl, .json or .yaml file with a row per task: ``name``, ``adapter``, ``prompts`` and, where wanted,
    ``revision``, ``prompt_column``, ``response_column``, ``split``, ``test``, ``test_split`` and ``held_out``. Relative
    paths are relative to the file."""
    adapters: str | None = None
    """Instead of a table: a folder with a sub-folder or file of adapters per task, which is called like it."""
    prompts: str | None = None
    """With ``adapters``: a folder with a JSON/JSONL file per task, which is called like it."""
    output_dir: str = "zoo"
    """Folder to write to. Adapters stay where they are; but a .bin file is written there as safetensors."""
    base_model: str | None = None
    """The language model that the zoo names; by default the one that all adapters name."""
    lora_alpha: float | None = None
    """Alpha of all adapters, in place of what they say; needed where they do not. They are then written to the zoo."""
    num_samples: int | None = None
    """Most prompts to take of each task, besides ``num_test``; by default all."""
    num_test: int = 0
    """Number of samples of each task that are kept apart for evaluation, of tasks that have responses but no ``test``
    file."""
    keep: int | Literal["majority"] | None = None
    """Which adapters to take where they differ in shape, rank, modules or scaling: those of the largest group, or of
    the group with that number."""
    num_workers: int = 8
    """Number of downloads at a time."""
    seed: int = 0
    """Seed of the choice of test samples."""

    def __post_init__(self) -> None:
        if self.table is not None and (self.adapters is not None or self.prompts is not None):
            raise LoragenTrainError("Give either table or adapters and prompts, not both.")
        if self.table is None and (self.adapters is None or self.prompts is None):
            raise LoragenTrainError("Give a table, or both adapters and prompts.")
        check_positive(
            "", lora_alpha=self.lora_alpha, num_samples=self.num_samples, keep=self.keep, num_workers=self.num_workers
        )
        if self.num_test < 0:
            raise LoragenTrainError(f"num_test is {self.num_test}, but must be at least 0.")
        check_seed("", self.seed)
