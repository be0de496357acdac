"""The zoo's joint adapter as what tasks never seen start from, and training tasks from what has not seen them.

Legend: F folds, N tokens, W values per token.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, read_adapter
from loragen_infer.generator import scale_adapter
from loragen_infer.zoo import ZooManifest
from torch import Tensor

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import hashes_of
from loragen_train.zoo import records
from loragen_train.zoo.joint import mean_adapter
from loragen_train.zoo.tokens import Zoo

__all__ = ["JointAdapter", "read_joint", "tasks_trained_on"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JointAdapter:
    """A zoo's joint adapter, which tasks never seen start from."""

    tokens_NW: Tensor
    """Its tokens at the scale asked for, z-scored as those of the tasks are."""
    shift_FNW: Tensor
    """By fold, how far the tokens of the mean of the other folds' adapters are from these; no rows where it has no
    folds."""
    fold_of: Mapping[str, int] = field(default_factory=dict)
    """The number of the fold that a task is of; tasks that it was trained without are of none."""
    scale: float
    """The scale."""
    digest: str
    """64 hexadecimal digits over the tokens at full scale, by which a training that is resumed knows it."""
    sample_hashes: dict[str, frozenset[str]]
    """By the tasks that it was trained on, the hashes of their samples, none for a task that the zoo lost since. Where
    no record tells the tasks, they are all of the zoo that are not held out."""

    @property
    def has_folds(self) -> bool:
        """Whether training tasks start from adapters that have not seen them."""
        return len(self.shift_FNW) > 0

    @property
    def words(self) -> str:
        """What it is, for people."""
        what = f"the zoo's joint adapter at scale {self.scale:g}"
        return f"{what} (in training from those of the other folds)" if self.has_folds else what


def tasks_trained_on(manifest: ZooManifest) -> list[str]:
    """Return the names of the tasks that the zoo's joint adapter was trained on; none where nothing tells them."""
    return [] if manifest.joint is None else records.tasks_of_joint(manifest.path(manifest.joint).parent)


def read_joint(
    manifest: ZooManifest, zoo: Zoo, tasks: Sequence[str], *, scale: float = 1.0, lora_alpha: float | None = None
) -> JointAdapter:
    """Return the zoo's joint adapter.

    Args:
        manifest: Names the adapter, and those of its folds.
        zoo: The adapters of the tasks.
        tasks: All training tasks, those without adapters too; a warning names those that it was trained without.
        scale: Factor on the change that it makes to the base model.
        lora_alpha: Its alpha, in place of what it says.

    Raises:
        LoragenTrainError: There is none, it does not fit the adapters, or it was trained on a task that is held out.
        LoragenInferError: Samples that it was trained on are not those that the zoo describes.
    """
    if manifest.joint is None:
        raise LoragenTrainError(
            f"Tasks never seen are to start from the joint adapter of {manifest.folder}, but it has none; train it "
            "with loragen-train joint, or train anew with model.unseen_from ridge."
        )
    path, trained_on = manifest.path(manifest.joint), tasks_trained_on(manifest)
    if seen := [task.name for task in manifest.held_out_tasks if task.name in trained_on]:
        raise LoragenTrainError(
            f"The joint adapter {path} was trained on {', '.join(seen)}, held out by now; remove joint and joint_folds "
            f"from {manifest.folder} and have it trained again (loragen-train collect, or joint), or set "
            "model.unseen_from to ridge."
        )
    missing = [name for name in tasks if name not in trained_on]
    if trained_on and missing:
        logger.warning("The joint adapter %s was trained without %s.", path, ", ".join(missing))

    def tokens_of(adapter: LoraAdapter, factor: float) -> Tensor:
        return zoo.stats.normalize(zoo.layout.encode(scale_adapter(adapter, factor)))

    try:
        adapter, *of_folds = (
            read_adapter(manifest.path(part), lora_alpha=lora_alpha).to(torch.float32)
            for part in (manifest.joint, *(fold.adapter for fold in manifest.joint_folds))
        )
        digest = hashlib.sha256()
        for part in (adapter, *of_folds):  # which also sees that each fits
            digest.update(tokens_of(part, 1.0).numpy().tobytes())
        tokens_NW = tokens_of(adapter, scale)
        shifts = [
            tokens_of(mean_adapter([*of_folds[:number], *of_folds[number + 1 :]]), scale) - tokens_NW
            for number in range(len(of_folds))
        ]
    except LoraTokenizerError as error:
        raise LoragenTrainError(
            f"The joint adapter of the zoo cannot be used: {error}; set model.unseen_from to ridge to train without."
        ) from error
    others = {task.name: task.prompts for task in manifest.tasks if not task.held_out}
    return JointAdapter(
        tokens_NW=tokens_NW,
        shift_FNW=torch.stack(shifts) if shifts else tokens_NW.new_empty(0, *tokens_NW.shape),
        fold_of={task: number for number, fold in enumerate(manifest.joint_folds) for task in fold.tasks},
        scale=scale,
        digest=digest.hexdigest(),
        sample_hashes={
            name: frozenset() if (file := others.get(name)) is None else hashes_of([manifest.samples(file)])
            for name in trained_on or others
        },
    )
