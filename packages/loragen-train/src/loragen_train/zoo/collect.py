"""Trains the zoo: one LoRA adapter per task, all from one initialisation, several at once, several checkpoints kept.

One initialisation for all is what makes adapters comparable position by position: from different ones the same weight
change would be written in unrelated bases. Several processes may work on one zoo: the system's locks, one per task, see
to it that no task is trained twice. docs/how-to/own-zoo.md has the files that a zoo is made of.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lightning.fabric import Fabric
from lora_tokenizer.io.atomic import clear_leftovers
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import TakenError, locked, write_jsonl
from loragen_infer.samples import Example, read_examples
from loragen_infer.words import counted
from loragen_infer.zoo import INITIAL_NAME, MANIFEST_NAME, ZooManifest

from loragen_train.configs.collect import CollectConfig, CollectTask
from loragen_train.errors import LoragenTrainError
from loragen_train.plots import colour_of, label_of, saved_figure
from loragen_train.prompts.splits import read_all_samples
from loragen_train.zoo import records
from loragen_train.zoo.frozen import FrozenModel, memory_named
from loragen_train.zoo.groups import begun_groups, plan_groups, remove_group, train_group
from loragen_train.zoo.initial import load_frozen
from loragen_train.zoo.items import AdapterTask, mean_length, tokenize_task
from loragen_train.zoo.joint import check_joint, make_joint
from loragen_train.zoo.manifest import held_out_of_joint, write_manifest
from loragen_train.zoo.process import fabric_of_process, share_of_tasks

__all__ = ["TasksFailedError", "collect"]

logger = logging.getLogger(__name__)


class TasksFailedError(LoragenTrainError):
    """Some tasks of a zoo got no adapter; the others did."""

    def __init__(self, message: str, folders: list[Path]) -> None:
        super().__init__(message)
        self.folders = folders
        """The adapter folders of the others."""


def collect(config: CollectConfig) -> list[Path]:
    """Train what is missing of the zoo that ``config`` describes; return the adapter folders of its tasks.

    A training that was interrupted goes on after its last checkpoint, to the same bits; a finished task is left alone,
    and so are its samples, which say what it was trained on. A task that fails stops no other.

    Raises:
        LoragenTrainError: What is there was made with other settings or another base model, or the base model lacks a
            target module.
        TasksFailedError: At the end: tasks have failed, which ``zoo.json`` names too.
        LoragenInferError: The base model cannot be read, or the folder cannot be written to.
    """
    return _Collection(config).run()


class _Collection:
    """The work of one process on a zoo."""

    def __init__(self, config: CollectConfig) -> None:
        self._config, self._folder = config, Path(config.output_dir)
        self._mine = share_of_tasks(config)
        self._failures: dict[str, str] = {}

    def run(self) -> list[Path]:
        if len(self._mine) < len(self._config.tasks):
            logger.info("The share of this process: %d of %d tasks.", len(self._mine), len(self._config.tasks))
        wanted = [task for task in self._mine if task.wants_adapter]
        with locked(self._folder, None):
            kept = [task for task in wanted if self._is_done(task)]
            missing = [task for task in wanted if task not in kept]
            self._refuse_imported()
            for folder in ("", "adapters", "joint_folds", "train", "test"):
                if (self._folder / folder).is_dir():
                    clear_leftovers(self._folder / folder)  # of runs that were killed
            if (missing or self._lacks_joint()) and (self._folder / INITIAL_NAME).is_dir():
                records.check_settings(
                    self._folder / INITIAL_NAME / "settings.json", records.shared_settings(self._config)
                )
            self._clear_finished_groups()
        self._write_samples([task for task in self._mine if task in missing or not task.wants_adapter])
        missing = [task for task in missing if task.name not in self._failures]
        fabric, frozen = fabric_of_process(), None
        if missing or self._lacks_joint():
            frozen = load_frozen(self._config, self._folder, fabric)
            with locked(self._folder, None):
                write_manifest(self._config, self._folder, self._failures)
            self._train(missing, frozen, fabric)
        if self._config.joint:
            self._train_joint(frozen, fabric)
        if kept:
            logger.info("There already: the adapters of %s.", ", ".join(task.name for task in kept))
        with locked(self._folder, None):
            manifest = write_manifest(self._config, self._folder, self._failures)
            if held_out := held_out_of_joint(self._folder, manifest.tasks):
                lack = "%s was trained on %s, held out by now, and is not that of the zoo; remove it."
                logger.warning(lack, self._folder / "joint", ", ".join(held_out))
            if missing or (wanted and not (self._folder / "loss_curves.png").is_file()):
                _draw_losses(self._folder / "adapters", self._folder / "loss_curves.png")
        folders = [self._folder / "adapters" / task.name for task in wanted]
        folders = [folder for folder in folders if folder.is_dir()]
        if self._failures:
            raise TasksFailedError(_summary(self._failures, len(self._mine), self._folder / MANIFEST_NAME), folders)
        return folders

    def _refuse_imported(self) -> None:
        """Adapters of another making do not share the initialisation, so none can join them."""
        if not (self._folder / MANIFEST_NAME).is_file():
            return
        named = [(task.name, path) for task in ZooManifest.read(self._folder).tasks for path in task.adapters]
        is_collected = all(path.startswith(f"adapters/{name}/checkpoint-") for name, path in named)
        # An initialisation alone is no sign: the joint adapter of an imported zoo has one too.
        if named and not (is_collected and (self._folder / INITIAL_NAME).is_dir()):
            raise LoragenTrainError(f"{self._folder} holds imported adapters; choose another output_dir.")

    def _lacks_joint(self) -> bool:
        return self._config.joint and not (self._folder / "joint").is_dir()

    def _is_done(self, task: CollectTask) -> bool:
        folder = self._folder / "adapters" / task.name
        if folder.is_dir():
            records.check_settings(folder / "training.json", records.task_settings(self._config, task))
        return folder.is_dir()

    def _clear_finished_groups(self) -> None:
        """Remove what a process left that ended between its last adapter and this."""
        for folder, names in begun_groups(self._folder / "unfinished").items():
            with ExitStack() as held:
                is_free = all(self._claim(name, held) for name in names)
                if is_free and all((self._folder / "adapters" / name).is_dir() for name in names):
                    remove_group(folder)

    def _write_samples(self, tasks: list[CollectTask]) -> None:
        """Read every source before the first step, so that all that is wrong with them is known then."""
        read = list(read_all_samples(tasks, seed=self._config.seed))
        self._check_learned({task.name: samples[0] for task, samples in read if not isinstance(samples, str)})
        for task, samples in read:
            with ExitStack() as held:
                # What another process trains on, or has come to the end of by now, stays as it is.
                if not self._claim(task.name, held) or (self._folder / "adapters" / task.name).is_dir():
                    continue
                files = [self._folder / part / f"{task.name}.jsonl" for part in ("train", "test")]
                if not isinstance(samples, str):
                    for file, chosen in zip(files, samples, strict=True):
                        write_jsonl(file, map(asdict, chosen))
                elif not task.wants_adapter and all(file.is_file() for file in files):
                    logger.warning("%s keeps the samples that it has: %s", task.name, samples)
                else:
                    self._fail(task.name, samples)

    def _check_learned(self, samples: Mapping[str, Sequence[Example]]) -> None:
        """Refuse other training samples than the joint adapter has learned from, before any is replaced."""
        for name in records.samples_of_joint(self._folder / "joint"):
            file = self._folder / "train" / f"{name}.jsonl"
            if name in samples and file.is_file() and read_examples(file) != list(samples[name]):
                raise records.OtherSettingsError(self._folder / "joint", f"tasks.{name}: other samples")

    def _train(self, missing: list[CollectTask], frozen: FrozenModel, fabric: Fabric) -> None:
        unfinished = self._folder / "unfinished"
        wanted = {task.name for task in missing}
        begun = [names for names in begun_groups(unfinished).values() if wanted & {*names}]
        known = {task.name: task for task in self._mine}
        # A process may have ended between two tasks of a group; what is finished of it is needed for the rest.
        names = dict.fromkeys([task.name for task in missing] + [name for group in begun for name in group])
        # Lengths only: the tokens of hundreds of tasks are gigabytes.
        lengths = {
            name: mean_length(task.train)
            for name in names
            if name in known and (task := self._tokenize(known[name], frozen))
        }
        groups = [group for group in begun if all(name in lengths for name in group)]
        resumed = {name for group in groups for name in group}
        rest = {name: length for name, length in lengths.items() if name in wanted - resumed}
        at_once = self._config.training.adapters_at_once
        size = at_once if at_once != "auto" else 8 if fabric.device.type == "cpu" else 32
        for group in [*groups, *plan_groups(rest, size)]:
            with ExitStack() as held:
                claimed = [name for name in group if self._claim(name, held)]
                if group in begun_groups(unfinished).values():
                    claimed = claimed if len(claimed) == len(group) else []
                else:  # another process may have come to the end of it in the meantime
                    claimed = [name for name in claimed if not (self._folder / "adapters" / name).is_dir()]
                ready = [task for name in claimed if (task := self._tokenize(known[name], frozen))]
                if ready:
                    self._train_group(frozen, fabric, ready, self._config.training.max_steps)
        elsewhere = [name for name in lengths if not (self._folder / "adapters" / name).is_dir()]
        if elsewhere := [name for name in elsewhere if name not in self._failures]:
            logger.info("In the hands of another process: %s.", ", ".join(elsewhere))

    def _train_group(self, frozen: FrozenModel, fabric: Fabric, group: Sequence[AdapterTask], num_steps: int) -> None:
        logger.info("Training %s: %s.", counted(len(group), "adapter"), ", ".join(task.name for task in group))
        with memory_named(frozen):
            failures = train_group(group, self._config, self._folder, frozen, fabric, num_steps=num_steps)
        for name, problem in failures.items():
            self._fail(name, problem)
        with locked(self._folder, None):
            write_manifest(self._config, self._folder, self._failures)

    def _train_joint(self, frozen: FrozenModel | None, fabric: Fabric) -> None:
        """Train one adapter on all tasks, once each has what it is to have, or see that the one there is theirs."""
        trained = self._config.training_tasks
        needed = {
            task.name: Path("adapters", task.name) if task.wants_adapter else Path("train", f"{task.name}.jsonl")
            for task in trained
        }
        if missing := [name for name, path in needed.items() if not (self._folder / path).exists()]:
            lack = "No joint adapter is trained as long as tasks lack theirs, or samples: %s."
            logger.warning(lack, ", ".join(missing))
            return
        folder = self._folder / "joint"
        if frozen is not None and not folder.is_dir():
            ready = [task for known in trained if (task := self._tokenize(known, frozen))]
            with ExitStack() as held:
                if len(ready) == len(trained) and self._claim(".joint", held) and not folder.is_dir():
                    make_joint(ready, self._config, self._folder, partial(self._train_group, frozen, fabric))
        if folder.is_dir():
            check_joint(self._config, self._folder)

    def _tokenize(self, task: CollectTask, frozen: FrozenModel) -> AdapterTask | None:
        try:
            return tokenize_task(task, self._config, self._folder, frozen.tokenizer)
        except (LoragenTrainError, LoragenInferError) as error:
            self._fail(task.name, str(error))
            return None

    def _fail(self, name: str, problem: str) -> None:
        logger.warning("%s gets no adapter: %s", name, problem)
        self._failures[name] = problem

    def _claim(self, name: str, held: ExitStack) -> bool:
        """Whether this process holds the task now, until ``held`` is left."""
        try:
            held.enter_context(locked(self._folder / ".locks", "", name=f"{name}.lock"))
        except TakenError:
            return False
        return True


def _summary(failures: Mapping[str, str], num_tasks: int, manifest: Path) -> str:
    """One sentence on what has failed."""
    problem = next(iter(failures.values()))
    if num_tasks == 1:
        return problem
    names = ", ".join(failures)
    return f"{len(failures)} of {num_tasks} tasks have failed ({names}), as {manifest} says; the first: {problem}"


def _draw_losses(adapters: Path, path: Path) -> None:
    """Draw the loss curves in ``adapters/<task>/training.json``."""
    curves = {file.parent.name: records.read_record(file)["loss"] for file in sorted(adapters.glob("*/training.json"))}
    if not curves:
        return
    with saved_figure(path, width=8.6, height=4.2) as figure:
        axes = figure.add_subplot()
        for index, (task, rows) in enumerate(curves.items()):
            steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
            style = ("-", "--", ":")[index // 13 % 3]
            axes.plot(steps, losses, style, marker=".", color=colour_of(index), linewidth=1.2, label=label_of(task))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss per response token (nats)")
        axes.set_title(f"Trainings of {counted(len(curves), 'task')}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        # With more names it would be larger than the picture.
        if len(curves) <= 36:
            figure.legend(loc="outside right upper", fontsize=7, frameon=False)
