"""Which tasks each objective is trained on, and what it lacks where there is none."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from loragen_infer.words import counted

from loragen_train.configs.fit import DataConfig
from loragen_train.configs.objectives import ObjectiveName
from loragen_train.configs.training import TrainingConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.table import TaskPrompts
from loragen_train.training.condition import PromptTable
from loragen_train.training.data import ObjectiveData
from loragen_train.training.objectives import DistillObjective, LmObjective, Objective, ReconstructionObjective
from loragen_train.training.pairs import Pairs
from loragen_train.training.samples import SampleTable, TaskVisits
from loragen_train.training.teachers import ExamplesTeacher, OwnTeacher, Teacher
from loragen_train.training.through_lm import AdapterTokens, ThroughLm
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.tokens import Zoo

__all__ = ["objectives_of"]

logger = logging.getLogger(__name__)

Objectives = dict[ObjectiveName, Objective]


def objectives_of(
    training: TrainingConfig,
    data: DataConfig,
    zoo: Zoo,
    prompts: TaskPrompts,
    table: PromptTable,
    frozen: FrozenModel | None,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Objectives, dict[ObjectiveName, ObjectiveData]]:
    """Return the objectives of all phases, and what each visits; ``fold_of`` numbers the folds of the joint adapter.

    Raises:
        LoragenTrainError: An objective has no task with what it needs, or a sample is too long.
    """
    names = dict.fromkeys(phase.objective for phase in training.schedule)
    objectives: Objectives = {}
    visits: dict[ObjectiveName, ObjectiveData] = {}
    if "reconstruction" in names:
        objectives["reconstruction"] = ReconstructionObjective(zoo.layout, zoo.stats, training)
        visits["reconstruction"] = _pairs(training, data, zoo, table)
    if not training.is_through_lm:
        return objectives, visits
    assert frozen is not None, "a training through it does not begin without"  # noqa: S101
    samples = SampleTable(prompts, frozen.tokenizer, training.lm)
    _check_samples(samples, list(prompts.train))
    adapters = AdapterTokens(zoo.layout)
    through = ThroughLm(frozen, adapters, samples.items)
    if "lm" in names:
        objectives["lm"] = LmObjective(through, samples, zoo.stats)
        visits["lm"] = _task_visits(training, data, zoo, table, samples, list(samples.train), fold_of or {})
    if "distill" in names:
        num_shown = 0
        if training.distill.teacher == "own":
            tasks = _with_adapter(list(samples.train), zoo)
            teacher: Teacher = OwnTeacher(frozen, adapters, zoo, samples, training.distill)
        else:
            num_shown = training.distill.num_examples
            tasks = _with_examples(samples, num_shown)
            teacher = ExamplesTeacher(frozen, samples, training.distill)
        temperature = training.distill.temperature
        objectives["distill"] = DistillObjective(through, samples, zoo.stats, teacher, temperature)
        visits["distill"] = _task_visits(training, data, zoo, table, samples, tasks, fold_of or {}, num_shown=num_shown)
    return objectives, visits


def _pairs(training: TrainingConfig, data: DataConfig, zoo: Zoo, table: PromptTable) -> ObjectiveData:
    num_prompts = data.prompts_per_condition
    return ObjectiveData(
        train=Pairs(zoo, table.train, num_prompts, f"{training.seed}/train", data.random_prompt_counts),
        val=Pairs(zoo, table.val, num_prompts, f"{training.seed}/val"),
        batch_size=data.batch_size,
    )


def _task_visits(
    training: TrainingConfig,
    data: DataConfig,
    zoo: Zoo,
    table: PromptTable,
    samples: SampleTable,
    tasks: list[str],
    fold_of: Mapping[str, int],
    *,
    num_shown: int = 0,
) -> ObjectiveData:
    sizes = (data.prompts_per_condition, training.lm.samples_per_task, num_shown)
    judged = [task for task in tasks if task in samples.val]
    if not judged:
        raise LoragenTrainError(
            f"None of {counted(len(tasks), 'task')} has a response among its validation samples; add samples."
        )
    known = {task: number for number, task in enumerate(zoo.names)}

    def numbers(some: list[str]) -> tuple[list[int], list[int]]:
        return [known.get(task, -1) for task in some], [fold_of.get(task, -1) for task in some]

    train_seed, val_seed = f"{training.seed}/train", f"{training.seed}/val"
    is_random = data.random_prompt_counts
    return ObjectiveData(
        train=TaskVisits(
            tasks, *numbers(tasks), table.train, samples.train, samples.train, *sizes, train_seed, is_random
        ),
        val=TaskVisits(judged, *numbers(judged), table.val, samples.val, samples.train, *sizes, val_seed),
        batch_size=training.lm.tasks_per_step,
    )


def _check_samples(samples: SampleTable, tasks: list[str]) -> None:
    if not samples.train:
        raise LoragenTrainError(
            f"Training through the language model needs samples with responses, and none of "
            f"{counted(len(tasks), 'task')} has any within training.lm.max_length; give each a file of them (in a "
            "zoo.json as prompts), or set training.objective to reconstruction."
        )
    if without := [task for task in tasks if task not in samples.train]:
        logger.warning(
            "Not trained on through the language model, for want of samples with responses: %s.", ", ".join(without)
        )


def _with_adapter(tasks: Sequence[str], zoo: Zoo) -> list[str]:
    found = [task for task in tasks if task in zoo.tasks]
    if not found:
        raise LoragenTrainError(
            "training.distill.teacher own needs tasks with an adapter and samples, and none has both; set it to "
            "examples."
        )
    _say_left_out(tasks, found, "an adapter")
    return found


def _with_examples(samples: SampleTable, num_shown: int) -> list[str]:
    """The tasks that a teacher can be shown a sample of beside the one that it is asked."""
    found = [task for task, numbers in samples.train.items() if len(numbers) > 1]
    if not found:
        raise LoragenTrainError(
            "training.distill.teacher examples shows samples of a task beside the one that is asked, and no task has "
            "two; add samples, or set it to own."
        )
    _say_left_out(samples.train, found, "a second sample")
    if fewer := [task for task in found if len(samples.train[task]) <= num_shown]:
        logger.warning("The teacher is shown fewer than %d samples of: %s.", num_shown, ", ".join(fewer))
    return found


def _say_left_out(tasks: Iterable[str], found: Sequence[str], lack: str) -> None:
    if without := [task for task in tasks if task not in found]:
        logger.warning("Not distilled, for want of %s: %s.", lack, ", ".join(without))
