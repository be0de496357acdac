"""The configuration of ``loragen-train prepare``."""

from dataclasses import dataclass

from loragen_train.configs.collect import check_positive, check_seed
from loragen_train.errors import LoragenTrainError

__all__ = ["PrepareConfig"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How the samples of each task are combined to prompts and split."""

    output_dir: str = "data"
    """Folder to write to."""
    samples_per_prompt: int = 4
    """Number of samples joined to one prompt; what is left over at the end of a task is not used."""
    test_ratio: float = 0.1
    """Share of each task's prompts that goes to the validation file; each task has at least one in either file."""
    seed: int = 0
    """Seed of the combinations, of the split, and of what a generator makes (never what collect makes of a seed)."""
    num_samples: int | None = None
    """Different samples to take of each source; reasoning-gym needs it, of others it is the most."""
    prompt_column: str | None = None
    """Column of the prompts, if it is none of prompt, question, instruction and text."""
    response_column: str | None = None
    """Column of the responses, which are counted and never written; if given, every row must have it."""
    split: str = "train"
    """Split to take of data sets of the hub and of tasks of lm-eval; of the latter ``train`` is what they train with,
    or where they have none what they validate with, else what they test with."""
    zoo: str | None = None
    """Folder that collect or import has written, whose test examples are left out; by default the one that a source
    lies in, and ./zoo where there is one."""

    def __post_init__(self) -> None:
        check_positive("", samples_per_prompt=self.samples_per_prompt, num_samples=self.num_samples)
        if not 0 < self.test_ratio < 1:
            raise LoragenTrainError(f"test_ratio is {self.test_ratio}, but must be above 0 and below 1.")
        check_seed("", self.seed)
