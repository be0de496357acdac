"""The configuration of ``loragen-train fit``; imports nothing heavy, so that ``--help`` is fast."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hyperconv import GeneratorConfig, HyperConvError, num_basis_for
from loragen_infer.encoder.condition import Condition

from loragen_train.configs.collect import ENOUGH_FOR_JOINT, check_positive, check_task_names
from loragen_train.configs.logging import LoggingConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["DataConfig", "ExportConfig", "FitConfig", "ModelConfig", "TaskConfig"]

_DECIDED_ELSEWHERE = {
    "condition_dim": "the text encoder decides it",
    "grid": "the checkpoints decide it",
    "output_dim": "model.output_dim decides it",
    "num_tasks": "model.remember_tasks decides whether tasks are remembered",
    "hidden_dim": "model.hidden_dim decides it",
    "num_hyperconv_blocks": "model.num_hyperconv_blocks decides it",
    "kernel_size": "model.kernel_size decides it",
}
_MAX_PARAMETERS = 150_000_000
# With few tasks whatever is learned along a direction of their prompts is those tasks themselves (docs/network.md).
_FEW_TASKS, _TASKS_PER_CORRECTION = 20, 3
# Larger than any: what a kernel must fit into is known once the checkpoints are.
_ANY_GRID = (1 << 15, 1 << 15)
_SOME_OUTPUT_DIM = 384


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The text encoder and the HyperConv generator."""

    text_encoder_name: str = "all-MiniLM-L6-v2"
    """SentenceTransformer that turns prompts into the condition: a name or a folder."""
    condition: str = "sentence"
    """What conditions the generator: ``sentence`` embeddings, ``lm:LAYER``, the states of the base model's layer at the
    last token of a prompt, or ``both:LAYER``; LAYER is a number from 1, or ``middle``."""
    condition_model: str | None = None
    """Folder, .gguf file or hub name of the base model, for its states; by default what the checkpoints name."""
    hidden_dim: int = 384
    """Width of the generator's hidden states, in values."""
    max_seq_len: int | Literal["auto"] = "auto"
    """Most tokens the generator may write; ``auto``: as many as the adapters need."""
    num_hyperconv_blocks: int = 0
    """Number of HyperConv blocks; none has been seen to help on tasks never seen (docs/network.md)."""
    output_dim: int | Literal["auto"] = 384
    """Values per token; ``auto``: the most, up to 1024, that divide all rows of the adapters' matrices, so that no
    token holds pieces of two rows."""
    transpose_b: bool = False
    """Lay B out as r rows, as A is, so that all tokens are pieces of rank components."""
    kernel_size: int = 3
    """Kernel of the convolutions over tokens and layers, odd."""
    num_basis: int | Literal["auto"] = "auto"
    """Learned patterns, each as large as an adapter; ``auto``: one less than there are training tasks, as far as 150
    million parameters hold them, unless ``model.generator.num_basis`` says another number than its default."""
    remember_tasks: bool | Literal["auto"] = "auto"
    """Recognise the prompts of training tasks, and answer them with their own adapters, as far as ``num_basis``
    patterns hold them (one less than there are tasks: whole); all else gets what ``unseen_from`` says, and on top what
    training adds. ``auto``: where all of the training is through the language model and leaves a task's own adapter
    out (``training.lm.leave_own_out``). Needs generator.expander ``linear`` and a frozen text encoder, whose embeddings
    of known prompts stay."""
    unseen_from: Literal["auto", "ridge", "joint"] = "auto"
    """What prompts that are no training task's get before the first step, where tasks are remembered: ``ridge``, the
    regression; ``joint``, the one adapter of all training tasks that collect (``joint: true``) or ``loragen-train
    joint`` trains. ``auto``: joint where the zoo has one that was trained on 50 tasks or more."""
    unseen_scale: float | Literal["auto"] = "auto"
    """Factor on the change that the joint adapter makes to the base model, where prompts start from it. ``auto``: 0.7
    for one that was trained on all tasks, which at full scale is surer of itself than it may be on others, and 1 for
    the mean of several folds', which is less so (docs/network.md)."""
    freeze_text_encoder: bool = True
    """True: the encoder is used as it is and each prompt is encoded once. False: it is trained too, and its weights go
    into the bundle."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """All other options of the network. Those that have a key above, and those that follow from encoder and checkpoints
    (``condition_dim``, ``grid``), are not set here: what ``--help`` shows of them is not used."""

    def scale_of_joint(self, *, has_folds: bool) -> float:
        """The scale of a joint adapter, in folds or not, that prompts start from."""
        return self.unseen_scale if self.unseen_scale != "auto" else 1.0 if has_folds else 0.7

    def wants_joint(self, num_tasks: int) -> bool:
        """Whether tasks never seen start from a joint adapter that was trained on so many tasks, where there is one."""
        return self.unseen_from == "joint" or (self.unseen_from == "auto" and num_tasks >= ENOUGH_FOR_JOINT)

    def __post_init__(self) -> None:
        if self.parsed_condition.kind != "sentence" and not self.freeze_text_encoder:
            raise LoragenTrainError(
                f"model.freeze_text_encoder is false, but model.condition is {self.condition!r}, and the base model is "
                "never trained; leave it true, or take the condition 'sentence'."
            )
        if self.remember_tasks is True and not self._can_remember:
            why = "the text encoder is trained" if not self.freeze_text_encoder else "generator.expander is not linear"
            raise LoragenTrainError(f"model.remember_tasks is true, but {why}; leave it at auto, or change that.")
        if self.unseen_scale != "auto" and not 0 < self.unseen_scale < math.inf:
            raise LoragenTrainError(f"model.unseen_scale is {self.unseen_scale}, but must be above 0.")
        if self.max_seq_len != "auto":
            check_positive("model.", max_seq_len=self.max_seq_len)
        for name, decided_by in _DECIDED_ELSEWHERE.items():
            value = getattr(self.generator, name)
            if value not in (getattr(GeneratorConfig(), name), getattr(self, name, None)):
                raise LoragenTrainError(f"model.generator.{name} is {value}, but {decided_by}; leave it out.")
        if self.num_basis != "auto" and self.generator.num_basis not in (GeneratorConfig().num_basis, self.num_basis):
            raise LoragenTrainError(
                f"model.num_basis is {self.num_basis}, but model.generator.num_basis {self.generator.num_basis}; leave "
                "one out."
            )
        width = _SOME_OUTPUT_DIM if self.output_dim == "auto" else self.output_dim
        self.network(condition_dim=1, grid=(*_ANY_GRID, width))

    @property
    def parsed_condition(self) -> Condition:
        """The condition, read; a LoragenTrainError says what is wrong with it."""
        try:
            return Condition.parse(self.condition)
        except ValueError as error:
            raise LoragenTrainError(f"model.{error}.") from error

    @property
    def _can_remember(self) -> bool:
        return self.generator.expander == "linear" and self.freeze_text_encoder

    def remembers(self, *, leaves_own_out: bool) -> bool:
        """Whether the network remembers its training tasks, trained as if they were never seen or not."""
        return self._can_remember and (leaves_own_out if self.remember_tasks == "auto" else self.remember_tasks)

    def network(
        self,
        *,
        condition_dim: int,
        grid: tuple[int, int, int],
        num_tasks: int | None = None,
        num_prompted: int | None = None,
        leaves_own_out: bool = False,
    ) -> GeneratorConfig:
        """Return the options of the whole network.

        Args:
            condition_dim: Width of the embeddings.
            grid: Transformer layers, tokens of each, and values of a token.
            num_tasks: Training tasks with adapters; None: they are not known yet.
            num_prompted: All training tasks, with adapters or without; by default those with.
            leaves_own_out: Whether every step treats its tasks as never seen.

        Raises:
            LoragenTrainError: An option is out of range, or a kernel is longer than an axis of the grid.
        """
        names = ("hidden_dim", "num_hyperconv_blocks", "kernel_size")
        own = {name: getattr(self, name) for name in names}
        num_remembered = (num_tasks or 0) if self.remembers(leaves_own_out=leaves_own_out) else 0
        values, num_corrections = math.prod(grid), self.generator.num_corrections
        if num_remembered:
            most = ((num_prompted or num_remembered) - _FEW_TASKS) // _TASKS_PER_CORRECTION
            num_corrections = max(0, min(num_corrections, most, _MAX_PARAMETERS // 2 // values - 1))
        num_basis = self.generator.num_basis
        if self.num_basis != "auto":
            num_basis = self.num_basis
        elif num_tasks is not None and num_basis == GeneratorConfig().num_basis:
            corrections = (1 + num_corrections) * values if num_remembered else 0
            budget = max(1, _MAX_PARAMETERS - corrections)
            num_basis = num_basis_for(num_tasks, values, budget) if num_tasks > 1 else 2
        try:
            return replace(
                self.generator,
                condition_dim=condition_dim,
                grid=grid[:2],
                output_dim=grid[2],
                num_basis=num_basis,
                num_tasks=num_remembered,
                num_corrections=num_corrections,
                **own,
            )
        except HyperConvError as error:
            raise LoragenTrainError(f"model.{error}") from error


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: its name, its LoRA checkpoints and, where they are not in ``prompts_dir``, its prompts."""

    name: str
    """The task as it is called in the prompt files."""
    checkpoint_dir: str | list[str] | None = None
    """Folder that holds the task's checkpoints, at any depth; or a list of such folders and of files, the last last. A
    task without any is trained on by ``lm`` and ``distill``, from the responses in ``prompts``."""
    prompts: str | None = None
    """A JSON/JSONL file with the task's samples, of which ``samples_per_prompt`` are joined to a prompt and a tenth of
    the prompts is kept for validation; by default the task's prompts in ``prompts_dir``. Its responses are what ``lm``
    and ``distill`` train on; they are in no prompt."""

    def __post_init__(self) -> None:
        if self.checkpoint_dir is None and self.prompts is None:
            raise LoragenTrainError(
                f"data.tasks: the task {self.name!r} has neither a checkpoint_dir nor prompts; give it one at least."
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The zoo and the prompts."""

    zoo: str | None = None
    """Folder with a ``zoo.json``, as collect and import write it: tasks, prompts and checkpoints are those that it
    names, in place of ``tasks``, ``checkpoint_dir`` and ``prompts_dir``."""
    min_gain: float | None = 0.0
    """Least gain of a task of the zoo, in nats per response token: a task whose adapter was measured to be better than
    the base model by no more than that is left out; ``null`` keeps all."""
    prompts_dir: str = "data"
    """Folder with ``train_prompts.jsonl`` and ``val_prompts.jsonl``, as ``loragen-train prepare`` writes them."""
    checkpoint_dir: str | None = None
    """Folder of LoRA checkpoints of a single task; for several tasks use ``tasks``."""
    tasks: list[TaskConfig] = field(default_factory=list)
    """The tasks, each with its folder of LoRA checkpoints."""
    batch_size: int = 8
    """Number of checkpoints per step and device; for ``lm`` see ``training.lm.tasks_per_step``."""
    samples_per_prompt: int | Literal["auto"] = "auto"
    """Number of samples joined to one prompt, for tasks of a zoo and those with ``prompts`` of their own; ``auto``: 1
    for tasks of a zoo, so that training sees what ``generate`` is given, and 4 for others."""
    prompts_per_condition: int = 8
    """Most of a task's prompts drawn afresh for every visit of a checkpoint or task."""
    random_prompt_counts: bool = True
    """True: each visit in training is of 1 to ``prompts_per_condition`` prompts, so that one works as well as many.
    False: of as many every time, as in validation."""
    max_checkpoints: int = 50
    """Most checkpoints used per task: the last ones in natural order."""
    cache_tokenized: bool = True
    """Keep tokens and prompt embeddings in ``cache_dir``, so that the next start is fast; False makes them anew."""
    cache_dir: str | None = None
    """Folder of the cache, which several runs may share; by default ``~/.cache/loragen``, or
    ``loragen`` in ``$XDG_CACHE_HOME``."""
    skip_unreadable: bool = False
    """Leave out a checkpoint that cannot be read, with a warning, instead of stopping there."""
    lora_alpha: float | None = None
    """Alpha of all checkpoints, in place of what they say; needed where they do not."""
    canonical: Literal["auto", "none", "svd"] = "auto"
    """``svd``: every A and B is brought to one form that depends on its product alone, so that checkpoints of unrelated
    initialisations can be compared. ``auto``: as the zoo's ``zoo.json`` says; ``none`` where there is none."""

    def __post_init__(self) -> None:
        check_positive(
            "data.",
            batch_size=self.batch_size,
            samples_per_prompt=self.samples_per_prompt,
            prompts_per_condition=self.prompts_per_condition,
            max_checkpoints=self.max_checkpoints,
        )
        if self.lora_alpha is not None:
            check_positive("data.", lora_alpha=self.lora_alpha)
        if self.min_gain is not None and not math.isfinite(self.min_gain):
            raise LoragenTrainError(f"data.min_gain is {self.min_gain}, but must be finite, or null to keep all tasks.")
        if self.zoo is not None and (self.tasks or self.checkpoint_dir is not None):
            raise LoragenTrainError(
                "data.zoo names all tasks and checkpoints; leave data.tasks and data.checkpoint_dir out, or it."
            )
        if self.checkpoint_dir is not None and self.tasks:
            raise LoragenTrainError("Give either data.checkpoint_dir (one task) or data.tasks (several), not both.")
        if self.zoo is None and self.checkpoint_dir is None and not self.tasks:
            raise LoragenTrainError(
                "There are no checkpoints to train on: give the zoo that collect or import has written as data.zoo, or "
                "list your tasks under data.tasks, each with its checkpoint_dir (of a single one, data.checkpoint_dir)."
            )
        check_task_names([task.name for task in self.tasks])


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written of the trained generator."""

    weights: Literal["best", "last"] = "best"
    """``best``: those of the validation with the lowest val_unseen_nll, in any phase; where no unseen tasks are
    watched, with the lowest val_loss of the last phase. ``last``: those after the last step."""
    format: Literal["safetensors", "pt"] = "safetensors"
    """Of no effect any more: the bundle is always written as ``generator.safetensors`` and ``generator_model.pt``."""


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
        if self.model.remember_tasks is True and not self.training.leaves_own_out:
            raise LoragenTrainError(
                "model.remember_tasks is true, but a training by reconstruction, or without training.lm.leave_own_out, "
                "sees known tasks, from which such a generator learns nothing; leave it at auto, or train for lm alone."
            )
        if self.model.unseen_from == "joint" and not self.remembers_tasks:
            raise LoragenTrainError(
                "model.unseen_from is joint, but this generator remembers no tasks and cannot tell which are unseen; "
                "leave it at auto, or train for lm alone, with model.remember_tasks and training.lm.leave_own_out."
            )
        if self.model.unseen_from == "joint" and self.data.zoo is None:
            raise LoragenTrainError("model.unseen_from is joint, but there is no data.zoo to have a joint adapter.")

    @property
    def remembers_tasks(self) -> bool:
        """Whether the generator gives training tasks their own adapters, and learns for all others."""
        return self.model.remembers(leaves_own_out=self.training.leaves_own_out)

    def record(self) -> dict[str, Any]:
        """Return the keys and values of a YAML file that says the same, each option once."""
        content = asdict(self)
        for name in _DECIDED_ELSEWHERE:
            del content["model"]["generator"][name]
        return content
