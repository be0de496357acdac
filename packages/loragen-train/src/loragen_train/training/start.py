"""Where a generator starts: as the linear ridge regression over the training tasks that evaluate shows as a row, or,
for tasks never seen, as the zoo's joint adapter.

What training adds can then be seen, and without a joint adapter a prompt unlike all others falls back to the mean one.

Legend: n prompts in all, D embedding size, K tasks with adapters, N tokens, W values per token.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hyperconv import HyperConvGenerator, fit_ridge, left_out_fits
from hyperconv.linear import LeftOut
from lora_tokenizer import LoraTokenizerError, read_adapter
from loragen_infer.evaluation.baselines import gram_of, subset_means
from loragen_infer.evaluation.task_means import kept_prompts
from loragen_infer.generator import scale_adapter
from loragen_infer.zoo import ZooManifest
from torch import Tensor

from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import hashes_of
from loragen_train.training.condition import PromptTable
from loragen_train.zoo import records
from loragen_train.zoo.tokens import Zoo

__all__ = ["JointAdapter", "read_joint", "start_from_ridge", "tasks_trained_on"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JointAdapter:
    """A zoo's joint adapter, which tasks never seen start from."""

    tokens_NW: Tensor
    """Its tokens at the scale asked for, z-scored as those of the tasks are."""
    digest: str
    """64 hexadecimal digits over its tokens at full scale, by which a training that is resumed knows it."""
    sample_hashes: dict[str, frozenset[str]]
    """By the tasks that it was trained on, the hashes of their samples, none for a task that the zoo lost since. Where
    no record tells the tasks, they are all of the zoo that are not held out."""


def start_from_ridge(
    generator: HyperConvGenerator,
    zoo: Zoo,
    table: PromptTable,
    embeddings_nD: Tensor,
    *,
    num_prompts: int,
    unseen_NW: Tensor | None = None,
) -> LeftOut | None:
    """Make a generator with the expander ``linear`` the ridge regression over the tasks with adapters.

    Args:
        generator: The network; one with another expander stays as it is.
        zoo: The adapters.
        table: Which prompts are whose.
        embeddings_nD: Embeddings of the training prompts at least, by number.
        num_prompts: How many prompts a condition has at most; the regression is fitted on means of as many.
        unseen_NW: What tasks never seen get instead, of `read_joint`.

    Returns:
        Where the generator remembers its tasks: what gives each task, by its number among ``zoo.names``, the features
        of a regression without it.
    """
    if generator.config.expander != "linear":
        return None
    means_KNW = torch.stack([mean_NW for _, mean_NW in zoo.task_means()])
    prompts = {task: kept_prompts(embeddings_nD[list(known)]).cpu() for task, known in table.train.items()}
    with_adapters = [prompts.pop(task) for task in zoo.names]
    # In weights, not in z-scores, as in evaluate; it only decides the penalty.
    rows_KSD = subset_means(with_adapters, num_prompts)
    fit = fit_ridge(rows_KSD, gram_of(means_KNW))
    others = [*prompts.values()]
    scored_KNW = zoo.stats.normalize(means_KNW)
    generator.start_from(fit, scored_KNW, with_adapters, others, unseen_NW)
    if generator.config.num_basis < generator.config.num_tasks - 1:
        _warn_of_few_patterns(generator.config.num_basis, scored_KNW)
    logger.info(
        "The generator starts as ridge regression over %d tasks; of a task that is left out it misses %.1f %% of the "
        "variance between adapters.",
        *(len(zoo.names), 100 * fit.left_out_error),
    )
    if unseen_NW is not None:
        logger.info("Prompts that are no training task's start from the zoo's joint adapter in its place.")
    return generator.leave_out(left_out_fits(rows_KSD, fit.penalty)) if generator.config.num_tasks else None


def _warn_of_few_patterns(num_basis: int, scored_KNW: Tensor) -> None:
    """Say how much of what its training tasks' adapters differ in a generator that remembers them holds."""
    variances_K = torch.linalg.eigvalsh(gram_of(scored_KNW)).flip(0).clamp(min=0)
    kept = variances_K[:num_basis].sum() / variances_K.sum().clamp(min=torch.finfo(variances_K.dtype).tiny)
    num_tasks = len(scored_KNW)
    logger.warning(
        "%d training tasks are remembered by %d learned patterns, which hold %.1f %% of the variance between their "
        "adapters, so a task gets its own only as far as that; for all of it set model.num_basis to %d.",
        *(num_tasks, num_basis, 100 * float(kept), num_tasks - 1),
    )


def tasks_trained_on(manifest: ZooManifest) -> list[str]:
    """Return the names of the tasks that the zoo's joint adapter was trained on; none where nothing tells them."""
    return [] if manifest.joint is None else records.tasks_of_joint(manifest.path(manifest.joint).parent)


def read_joint(
    manifest: ZooManifest, zoo: Zoo, tasks: Sequence[str], *, scale: float = 1.0, lora_alpha: float | None = None
) -> JointAdapter:
    """Return the zoo's joint adapter.

    Args:
        manifest: Names the adapter.
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
            f"Tasks never seen are to start from the joint adapter of {manifest.folder}, but it has none; collect the "
            "zoo with joint: true, or train anew with model.unseen_from ridge."
        )
    path, trained_on = manifest.path(manifest.joint), tasks_trained_on(manifest)
    if seen := [task.name for task in manifest.held_out_tasks if task.name in trained_on]:
        raise LoragenTrainError(
            f"The joint adapter {path} was trained on {', '.join(seen)}, held out by now; remove its folder and "
            "collect the zoo again, or set model.unseen_from to ridge."
        )
    missing = [name for name in tasks if name not in trained_on]
    if trained_on and missing:
        logger.warning("The joint adapter %s was trained without %s.", path, ", ".join(missing))
    try:
        adapter = read_adapter(path, lora_alpha=lora_alpha).to(torch.float32)
        whole_NW, tokens_NW = (
            zoo.stats.normalize(zoo.layout.encode(scale_adapter(adapter, factor))) for factor in (1.0, scale)
        )
    except LoraTokenizerError as error:
        raise LoragenTrainError(
            f"The joint adapter of the zoo cannot be used: {error}; set model.unseen_from to ridge to train without."
        ) from error
    others = {task.name: task.prompts for task in manifest.tasks if not task.held_out}
    sample_hashes = {
        name: frozenset() if (file := others.get(name)) is None else hashes_of([manifest.samples(file)])
        for name in trained_on or others
    }
    digest = hashlib.sha256(whole_NW.numpy().tobytes()).hexdigest()
    return JointAdapter(tokens_NW=tokens_NW, digest=digest, sample_hashes=sample_hashes)
