"""The configuration of ``loragen-infer evaluate``; imports nothing heavy, so that ``--help`` is fast."""

from dataclasses import dataclass

from loragen_infer.errors import LoragenInferError

__all__ = ["EvaluateConfig", "EvaluateTask"]


@dataclass(frozen=True, kw_only=True)
class EvaluateTask:
    """One task to evaluate on."""

    name: str
    """Name of the task."""
    test: str
    """JSON/JSONL file with prompts and responses that no adapter was trained on."""
    prompts: str
    """JSON/JSONL file with the prompts to generate from; of a file with a ``task`` column, this task's lines."""
    adapter: str | None = None
    """The task's own trained adapter (a PEFT folder, or a folder of checkpoints, of which the last is taken)."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A generator to evaluate against its baselines, and the tasks to do it on."""

    model: str
    """The generator: a bundle, a final_model folder or an experiment folder."""
    tasks: list[EvaluateTask]
    """The tasks; at least two, as each needs another one's prompts as its control."""
    base_model: str | None = None
    """The language model, a hub name, folder or .gguf file; by default the one the adapters name."""
    output_dir: str = "results"
    """Folder for ``evaluation.json`` and ``evaluation.png``."""
    num_prompts: int = 8
    """Most prompts to generate an adapter from: the first of the file."""
    num_examples: int | None = None
    """Most test examples per task; by default all of the file."""
    batch_size: int = 16
    """Number of examples per forward pass of the language model."""
    device: str = "cpu"
    """Torch device, such as ``cpu`` or ``cuda``."""

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise LoragenInferError(
                f"tasks has {len(self.tasks)} task(s), but two are needed: each is also generated for with the "
                "prompts of another, as a control."
            )
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise LoragenInferError(f"tasks has two of one name: {', '.join(sorted(names))}.")
        for name in ("num_prompts", "batch_size"):
            if getattr(self, name) < 1:
                raise LoragenInferError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if self.num_examples is not None and self.num_examples < 1:
            raise LoragenInferError(f"num_examples is {self.num_examples}, but must be at least 1.")
