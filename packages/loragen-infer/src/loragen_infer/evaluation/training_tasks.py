"""What is known of the tasks that the generator was trained on, and what follows for the evaluated ones.

Which they are, and the hashes of their samples, only the bundle can say; a configuration's word is checked against it.

Legend: P prompts, D width of an embedding, N tokens, W values per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lora_tokenizer import LoraTokenizerError, find_adapters, read_adapter

from loragen_infer.bundle import TrainingTasks
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask, TrainingTask
from loragen_infer.evaluation.examples import TaskInputs, read_task_prompts
from loragen_infer.evaluation.task_means import TASK_MEANS_NAME, TaskMeans, TaskMeansWriter, read_task_means
from loragen_infer.generator import LoraGenerator
from loragen_infer.samples import prompt_hash

__all__ = ["Training", "read_training"]

# Above what prompts of different tasks reach, however alike their wording; of one template, means have 0.97 and more.
_NEAR = 0.95


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of the training tasks: what the bundle says, and means for the baselines; None where nothing is."""

    tasks: TrainingTasks | None
    means: TaskMeans | None

    @cached_property
    def shown(self) -> frozenset[str]:
        """Hashes of all samples that the generator is known to have been shown as prompts."""
        return frozenset() if self.tasks is None else frozenset().union(*self.tasks.prompt_hashes.values())

    @cached_property
    def seen(self) -> frozenset[str]:
        """Hashes of all samples that are known to have been trained on, whether they were shown or not."""
        return frozenset() if self.tasks is None else frozenset().union(*map(self.tasks.seen, self.tasks.names))

    def held_out(self, task: EvaluateTask) -> bool | None:
        """Return whether training saw nothing of ``task``; None where the bundle does not say."""
        return None if self.tasks is None else task.name not in self.tasks.names

    def others(self, task: EvaluateTask) -> list[int]:
        """Return which of the means ``nearest`` and ``ridge`` may use: of a held-out task, not its own."""
        assert self.means is not None, "the rows that ask are left out"  # noqa: S101
        own = task.name if task.held_out else None
        found = [index for index, name in enumerate(self.means.names) if name != own]
        if not found:
            raise LoragenInferError(f"There is no training task but {own!r}, which is held out; give others.")
        return found

    def check(self, inputs: TaskInputs) -> None:
        """Refuse what contradicts the bundle: a wrong ``held_out``, and test examples that were trained on."""
        task = inputs.task
        if self.tasks is None:
            return
        if task.held_out is not None and task.held_out != self.held_out(task):
            raise LoragenInferError(
                f"The task {task.name!r} has held_out: {str(task.held_out).lower()}, but the generator was "
                f"{'' if task.held_out else 'not '}trained on it; take held_out away, or evaluate another generator."
            )
        hashes = [prompt_hash(example.prompt) for example in inputs.examples]
        if self.seen.isdisjoint(hashes):
            return
        for name in self.tasks.names:
            seen = self.tasks.seen(name)
            if count := sum(value in seen for value in hashes):
                raise LoragenInferError(
                    f"{task.test}: {count} of the {len(hashes)} prompts to test the task {task.name!r} on are among "
                    f"the samples of {name!r} that the generator was trained on; take them out, or name another file "
                    "under test."
                )

    def unknown(self, tasks: Sequence[EvaluateTask]) -> list[str]:
        """Return in sentences what the bundle does not say, so that nothing could be checked against it."""
        if self.tasks is None:
            claimed = [task.name for task in tasks if task.held_out]
            but = f"; that {', '.join(claimed)} is held out is the configuration's word only" if claimed else ""
            return [f"The bundle does not say what the generator was trained on{but}."]
        if not self.seen:
            return ["The bundle does not say which samples were trained on, so the test examples are not checked."]
        return []

    def near_duplicates(self, task: EvaluateTask, prompts_PD: torch.Tensor) -> list[str]:
        """Return a sentence for every training task that ``task``, not known as one, comes too close to."""
        if self.means is None or self.means.prompt_embeddings is None or self.held_out(task) is False:
            return []
        sentences = []
        for index, name in enumerate(self.means.names):
            if name == task.name:
                continue
            near_P = (prompts_PD @ self.means.prompt_embeddings[index].T).amax(dim=1)
            means = torch.cosine_similarity(prompts_PD.mean(dim=0), self.means.condition_means[index], dim=0).item()
            count = int((near_P >= _NEAR).sum())
            if count or means >= _NEAR:
                sentences.append(
                    f"The task {task.name!r} is close to the training task {name!r}: {count} of its {len(near_P)} "
                    f"prompts {'is a near-duplicate' if count == 1 else 'are near-duplicates'} of prompts there, and "
                    f"the cosine of their means is {means:.2f}; what it shows is not of a task never seen."
                )
        return sentences


def read_training(config: EvaluateConfig, generator: LoraGenerator, bundle: Path) -> Training:
    """Return what the bundle says of its training tasks, and the means that lie beside it or are configured.

    Raises:
        LoragenInferError: Prompts or adapters cannot be read, an adapter is of another shape than the generated ones,
            or ``training_tasks`` names one that the generator was not trained on.
    """
    tasks, layout = generator.bundle.training_tasks, generator.bundle.layout
    where = f"The task means beside {bundle}"
    if config.training_tasks:
        where = "training_tasks"
        means: TaskMeans | None = _configured_means(config.training_tasks, generator)
    else:
        means = read_task_means(bundle)
    if means is None:
        return Training(tasks=tasks, means=None)
    if tasks is not None and (unknown := set(means.names) - set(tasks.names)):
        raise LoragenInferError(
            f"{where} name {min(unknown)!r}, but the generator was trained on {', '.join(tasks.names)}; name only such."
        )
    if means.token_means[0].shape != (layout.num_tokens, layout.token_dim):
        raise LoragenInferError(f"{where} are of another model; copy those of its training there.")
    return Training(tasks=tasks, means=means)


def _configured_means(tasks: list[TrainingTask], generator: LoraGenerator) -> TaskMeans | None:
    """Means of the prompts and adapters that a configuration names, in a file that is gone when they are."""
    layout = generator.bundle.layout
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / TASK_MEANS_NAME
        with TaskMeansWriter(path, num_tokens=layout.num_tokens, token_dim=layout.token_dim) as writer:
            for task in tasks:
                prompts_PD = generator.encoder.encode(read_task_prompts(task.name, Path(task.prompts)))
                try:
                    found = find_adapters(Path(task.adapter))
                    total_NW = sum(layout.encode(read_adapter(adapter)).double() for adapter in found)
                except LoraTokenizerError as error:
                    raise LoragenInferError(
                        f"The adapter of the training task {task.name!r} cannot be used: {error}"
                    ) from error
                writer.add(task.name, prompts_PD, torch.as_tensor(total_NW / len(found)))
        # Opened now, the file can still be read when its name is gone.
        return read_task_means(path)
