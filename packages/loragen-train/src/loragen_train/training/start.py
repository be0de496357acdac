"""Where a generator starts: as the linear ridge regression over the training tasks that evaluate shows as a row, or,
for tasks never seen, as the zoo's joint adapter.

What training adds can then be seen, and without a joint adapter a prompt unlike all others falls back to the mean one.

Legend: n prompts in all, D embedding size, K tasks with adapters, N tokens, W values per token.
"""

import logging

import torch
from hyperconv import HyperConvGenerator, fit_ridge, left_out_fits
from hyperconv.linear import LeftOut
from loragen_infer.evaluation.baselines import gram_of, subset_means
from loragen_infer.evaluation.task_means import kept_prompts
from torch import Tensor

from loragen_train.training.condition import PromptTable
from loragen_train.training.joint import JointAdapter
from loragen_train.zoo.tokens import Zoo

__all__ = ["start_from_ridge"]

logger = logging.getLogger(__name__)


def start_from_ridge(
    generator: HyperConvGenerator,
    zoo: Zoo,
    table: PromptTable,
    embeddings_nD: Tensor,
    *,
    num_prompts: int,
    joint: JointAdapter | None = None,
) -> LeftOut | None:
    """Make a generator with the expander ``linear`` the ridge regression over the tasks with adapters.

    Args:
        generator: The network; one with another expander stays as it is.
        zoo: The adapters.
        table: Which prompts are whose.
        embeddings_nD: Embeddings of the training prompts at least, by number.
        num_prompts: How many prompts a condition has at most; the regression is fitted on means of as many.
        joint: What tasks never seen get instead.

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
    unseen_NW = None if joint is None else joint.tokens_NW
    learns_unseen = joint is not None and joint.has_folds
    generator.start_from(fit, scored_KNW, with_adapters, others, unseen_NW, learns_unseen=learns_unseen)
    if generator.config.num_basis < generator.config.num_tasks - 1:
        _warn_of_few_patterns(generator.config.num_basis, scored_KNW)
    logger.info(
        "The generator starts as ridge regression over %d tasks; of a task that is left out it misses %.1f %% of the "
        "variance between adapters.",
        *(len(zoo.names), 100 * fit.left_out_error),
    )
    if joint is not None:
        logger.info("Prompts that are no training task's start from %s in its place.", joint.words)
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
