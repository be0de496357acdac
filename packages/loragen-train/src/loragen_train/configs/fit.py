"""The configuration of ``loragen-train fit``; imports nothing heavy, so that ``--help`` is fast."""

from dataclasses import dataclass, field
from typing import Any, Literal

from loragen_train.configs.collect import check_positive, check_task_names
from loragen_train.configs.logging import LoggingConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["DataConfig", "ExportConfig", "FitConfig", "ModelConfig", "TaskConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The text encoder and the HyperConv generator."""

    text_encoder_name: str = "all-MiniLM-L6-v2"
    """SentenceTransformer that turns prompts into the condition: a name or a folder."""
    hidden_dim: int = 384
    """Width of the generator's hidden states, in values."""
    max_seq_len: int | Literal["auto"] = 512
    """Most tokens the generator may write; ``auto``: as many as the adapters need."""
    num_hyperconv_blocks: int = 3
    """Number of HyperConv blocks."""
    output_dim: int = 384
    """Values per token."""
    kernel_size: int = 3
    """Kernel of the convolutions over tokens and layers, odd."""
    freeze_text_encoder: bool = True
    """True: the encoder is used as it is and each prompt is encoded once. False: it is trained too, and its weights go
    into the bundle."""

    def __post_init__(self) -> None:
        check_positive("model.", hidden_dim=self.hidden_dim, output_dim=self.output_dim, kernel_size=self.kernel_size)
        if self.max_seq_len != "auto":
            check_positive("model.", max_seq_len=self.max_seq_len)
        if self.num_hyperconv_blocks < 0:
            raise LoragenTrainError(
                f"model.num_hyperconv_blocks is {self.num_hyperconv_blocks}, but must be 0 or more."
            )


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: its name, its LoRA checkpoints and, where they are not in ``prompts_dir``, its prompts."""

    name: str
    """The task as it is called in the prompt files."""
    checkpoint_dir: str
    """Folder that holds the task's checkpoints, at any depth."""
    prompts: str | None = None
    """A JSON/JSONL file with the task's samples, of which ``samples_per_prompt`` are joined to a prompt and a tenth of
    the prompts is kept for validation; by default the task's prompts in ``prompts_dir``."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The zoo and the prompts."""

    prompts_dir: str = "data"
    """Folder with ``train_prompts.jsonl`` and ``val_prompts.jsonl``, as ``loragen-train prepare`` writes them."""
    checkpoint_dir: str | None = None
    """Folder of LoRA checkpoints of a single task; for several tasks use ``tasks``."""
    tasks: list[TaskConfig] = field(default_factory=list)
    """The tasks, each with its folder of LoRA checkpoints."""
    batch_size: int = 8
    """Number of checkpoints per step and device."""
    samples_per_prompt: int = 4
    """Number of samples joined to one prompt, for tasks with ``prompts`` of their own."""
    prompts_per_condition: int = 8
    """Number of a task's prompts drawn afresh for every visit of a checkpoint."""
    max_checkpoints: int = 50
    """Most checkpoints used per task: the last ones in natural order."""
    cache_tokenized: bool = True
    """Keep tokens and prompt embeddings in ``cache_dir``, so that the next start is fast; False makes them anew."""
    cache_dir: str | None = None
    """Folder of the cache, which several runs may share; by default ``~/.cache/loragen``."""
    lora_alpha: float | None = None
    """The alpha of all checkpoints, for those that do not tell it, such as some of Lightning's; by default what each
    says."""
    skip_unreadable: bool = False
    """Leave out a checkpoint that cannot be read, with a warning, instead of stopping there."""

    def __post_init__(self) -> None:
        check_positive(
            "data.",
            batch_size=self.batch_size,
            samples_per_prompt=self.samples_per_prompt,
            prompts_per_condition=self.prompts_per_condition,
            max_checkpoints=self.max_checkpoints,
        )
        if (self.checkpoint_dir is None) == (not self.tasks):
            raise LoragenTrainError("Give either data.checkpoint_dir (one task) or data.tasks (several), not both.")
        check_task_names([task.name for task in self.tasks])


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written of the trained generator."""

    format: Literal["safetensors", "pt"] = "safetensors"
    """``safetensors``: the bundle. ``pt``: besides it ``generator_model.pt`` of plain tensors, which
    ``torch.load(..., weights_only=True)`` reads."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """A generator to train, on a zoo of LoRA checkpoints and the prompts of their tasks."""

    data: DataConfig
    """The zoo and the prompts."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The text encoder and the generator."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How the generator is trained."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Where the curves go."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """What is written of the result."""
    name: str = "generator"
    """Name of the experiment; its folder is called ``<name>_<date>_<time>``."""
    output_dir: str = "experiments"
    """Folder that experiment folders are made in."""
    provenance: dict[str, Any] | None = None
    """Written by ``fit`` into an experiment's config.yaml: versions, git commit and hashes of the data. A run from that
    file warns of what is different now."""

    def __post_init__(self) -> None:
        check_task_names([self.name])
