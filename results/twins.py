"""Which held-out tasks have a twin among the training tasks; decides what counts as never seen.

A training task is a twin of a held-out task if both are drawn from one generator of reasoning-gym, whatever its
settings, or if the mean embeddings of their prompts have a cosine of ``MAX_COSINE`` or more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from loragen_infer.encoder.encoder import PromptEncoder
from loragen_infer.samples import read_examples
from loragen_infer.zoo import ZooManifest, ZooTask

__all__ = ["MAX_COSINE", "Neighbour", "generators", "held_out_among", "neighbours", "twins"]

MAX_COSINE = 0.7
_NUM_PROMPTS = 64


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A held-out task and the training task whose prompts are most like its own."""

    task: str
    nearest: str
    cosine: float
    """Between the mean embeddings of the two tasks' prompts."""
    same_generator: list[str]
    """The training tasks that are drawn from a generator of its own."""


def generators(sources: Sequence[str]) -> set[str]:
    """Return the sources without their settings: what samples that differ in numbers only have in common."""
    return {source.partition("?")[0] for source in sources}


def neighbours(manifest: ZooManifest) -> list[Neighbour]:
    """Return the nearest training task of every held-out task of a zoo, by the first prompts of each."""
    encoder = PromptEncoder()
    training = [task for task in manifest.tasks if not task.held_out]
    means_TD = torch.stack([_mean_embedding(manifest, task, encoder) for task in training])
    found = []
    for task in manifest.held_out_tasks:
        cosines_T = torch.cosine_similarity(_mean_embedding(manifest, task, encoder)[None], means_TD)
        nearest = int(cosines_T.argmax())
        found.append(
            Neighbour(
                task=task.name,
                nearest=training[nearest].name,
                cosine=cosines_T[nearest].item(),
                same_generator=[
                    other.name for other in training if generators(other.sources) & generators(task.sources)
                ],
            )
        )
    return found


def twins(found: Sequence[Neighbour], max_cosine: float = MAX_COSINE) -> list[str]:
    """Return a sentence for every held-out task that has a twin."""
    sentences = []
    for one in found:
        if one.same_generator:
            sentences.append(f"{one.task} is drawn from the generator of {', '.join(one.same_generator)}.")
        elif one.cosine >= max_cosine:
            sentences.append(
                f"The prompts of {one.task} have a cosine of {one.cosine:.2f} with those of {one.nearest}."
            )
    return sentences


def held_out_among(
    manifest: ZooManifest, prompts: Mapping[str, Sequence[str]], num_held_out: int
) -> tuple[list[str], list[str]]:
    """Divide further tasks into held-out and training tasks, by their ``prompts``.

    Held out are the ``num_held_out`` tasks whose nearest other task, of the zoo or of the further ones, is least like
    them. Training tasks are those of the others that are not worded like any held-out task.
    """
    encoder = PromptEncoder()
    known = [task for task in manifest.tasks if task.name not in prompts]
    known_TD = torch.stack([_mean_embedding(manifest, task, encoder) for task in known])
    means_FD = torch.stack([encoder.encode(texts[:_NUM_PROMPTS]).mean(dim=0) for texts in prompts.values()])
    unit_AD = torch.nn.functional.normalize(torch.cat([means_FD, known_TD]), dim=1)
    cosines_FA = unit_AD[: len(means_FD)] @ unit_AD.T
    cosines_FA.fill_diagonal_(-1)
    held_out = cosines_FA.amax(dim=1).argsort(stable=True)[:num_held_out].tolist()
    of_held_out = [*held_out, *(len(means_FD) + i for i, task in enumerate(known) if task.held_out)]
    is_like_F = cosines_FA[:, of_held_out].amax(dim=1) >= MAX_COSINE
    names = list(prompts)
    training = [name for i, name in enumerate(names) if i not in held_out and not is_like_F[i]]
    return [names[i] for i in sorted(held_out)], training


def _mean_embedding(manifest: ZooManifest, task: ZooTask, encoder: PromptEncoder) -> torch.Tensor:
    if task.prompts is None:
        raise SystemExit(f"The task {task.name} has no prompts: {task.failure}")
    examples = read_examples(manifest.samples(task.prompts), need_response=False)
    return encoder.encode([example.prompt for example in examples[:_NUM_PROMPTS]]).mean(dim=0)
