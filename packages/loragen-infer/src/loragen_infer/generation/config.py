"""The options of ``loragen-infer generate`` and which of them go together, without loading anything."""

import math
from dataclasses import dataclass
from pathlib import Path

from loragen_infer.errors import LoragenInferError
from loragen_infer.samples import TUNE_FOLDS, TUNE_LEARNING_RATE, TUNE_STEPS

__all__ = ["GenerateConfig"]

# The ending that the name of one adapter has in each format; a folder has none.
_ENDINGS = {"peft": "", "safetensors": ".safetensors", "pt": ".pt", "tokens": ".safetensors"}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to generate, how, and where to.

    Raises:
        LoragenInferError: Options that contradict each other, or a value out of range.
    """

    model: str
    """A bundle, a ``final_model`` folder, an experiment folder or a hub name."""
    output: str | None = None
    """Where to: the adapter itself, or for a batch the folder of the adapters or one .pt file. None, for one adapter:
    ``adapters/`` and the fingerprint of its request, where the same request finds it again."""
    revision: str | None = None
    """Branch, tag or commit of ``model`` on the hub."""
    base_model: str | None = None
    """The base model that the adapters name; None: what the bundle says."""
    condition_model: str | None = None
    """Where the base model is, for a generator that is conditioned on its states; None: where the bundle says."""
    prompts: tuple[str, ...] = ()
    """Prompts of one task."""
    prompt_file: str | None = None
    """A .txt, .jsonl or .json file, or ``-`` for standard input."""
    pool: bool = False
    """Take all prompts of the file, and ``prompts``, as one task."""
    omit_prompts: bool = False
    """Leave the prompts out of model cards and manifest."""
    format: str | None = None
    """``peft``, ``safetensors``, ``pt`` or ``tokens``; None: what the ending of ``output`` says, or ``peft``."""
    scale: float = 1.0
    """Factor on the effect of the adapters."""
    tune: str | None = None
    """JSON/JSONL file with solved samples of the task that the generated adapter goes on from with gradient steps."""
    tune_steps: int = TUNE_STEPS
    """Most of those steps."""
    tune_folds: int = TUNE_FOLDS
    """Parts of the samples that are left out one after another to decide how many steps are taken; 0: all are."""
    tune_learning_rate: float = TUNE_LEARNING_RATE
    """Learning rate of the first of them, from which it falls to zero."""
    device: str = "cpu"
    """Torch device of encoder and generator."""
    dtype: str = "float32"
    """What the generator computes in."""
    compile: bool = False
    """Compile the generator with torch.compile."""
    batch_size: int = 16
    """Adapters generated together."""
    cache_dir: str | None = None
    """Folder of the embedding cache; None: no cache."""
    push_to_hub: str | None = None
    """Repository of the hub that the adapter is pushed to as well, such as ``user/name``."""
    private: bool = False
    """Make that repository a private one."""

    def __post_init__(self) -> None:
        if not self.prompts and self.prompt_file is None:
            raise LoragenInferError(
                "there is no prompt; give --prompt or --description at least once, or --prompt-file"
            )
        if self.prompts and self.is_batch:
            raise LoragenInferError("--prompt and --prompt-file together need --pool, which makes one task of them")
        if self.batch_size < 1:
            raise LoragenInferError(f"--batch-size is {self.batch_size}, where a number from 1 belongs")
        if self.tune is not None and self.is_batch:
            raise LoragenInferError("--tune has samples of one task, but each line of --prompt-file is one; add --pool")
        if self.tune_steps < 1:
            raise LoragenInferError(f"--tune-steps is {self.tune_steps}, where a number from 1 belongs")
        if self.tune_folds < 0:
            raise LoragenInferError(f"--tune-folds is {self.tune_folds}, where a number from 0 belongs")
        if not 0 < self.tune_learning_rate < math.inf:
            raise LoragenInferError(f"--tune-learning-rate is {self.tune_learning_rate}, where one above 0 belongs")
        if not math.isfinite(self.scale):
            raise LoragenInferError(f"--scale is {self.scale}, where a finite number belongs")
        if self.kind not in _ENDINGS:
            raise LoragenInferError(f"--format is {self.kind!r}, where one of {', '.join(_ENDINGS)} belongs")
        if self.is_batch and self.output is None:
            raise LoragenInferError(
                "--prompt-file makes an adapter of every line; give --output for them, or add --pool"
            )
        if self.push_to_hub is not None and (self.is_batch or self.kind != "peft"):
            raise LoragenInferError("--push-to-hub takes one adapter as a PEFT folder; add --pool, leave --format away")
        if self.private and self.push_to_hub is None:
            raise LoragenInferError("--private is for the repository of --push-to-hub, which is missing")
        if self.output is None:
            return
        if self.is_one_file and self.kind not in ("pt", "tokens"):
            raise LoragenInferError(f"--output {self.output} is one .pt file, which --format {self.kind} cannot be")
        ending = _ENDINGS[self.kind]
        if self.kind == "peft" and _format_of(self.output) != "peft":
            raise LoragenInferError(f"--format peft needs a folder for --output, not {self.output}")
        if not self.is_batch and not self.output.endswith(ending):
            raise LoragenInferError(f"--format {self.kind} needs an --output that ends in {ending}, not {self.output}")

    @property
    def kind(self) -> str:
        """The format that ``format`` and ``output`` come to."""
        return self.format or _format_of(self.output or "")

    @property
    def is_batch(self) -> bool:
        """Whether every line of the prompt file is a task of its own."""
        return self.prompt_file is not None and not self.pool

    @property
    def is_one_file(self) -> bool:
        """Whether a batch goes into one file."""
        return self.is_batch and Path(self.output or "").suffix == ".pt"


def _format_of(output: str) -> str:
    return {".pt": "pt", ".safetensors": "safetensors"}.get(Path(output).suffix, "peft")
