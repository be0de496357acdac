"""The commands of a run of the results: a zoo with its joint adapter, trainings on it and on parts, evaluations."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from loragen_infer.files import write_jsonl
from loragen_infer.zoo import INITIAL_NAME, ZooManifest, ZooTask, path_in_zoo
from loragen_train.configs.objectives import LmConfig
from loragen_train.zoo.records import read_record

from demo.steps import ROOT, Steps
from results import twins
from results.plan import Plan
from results.short_tasks import short_tasks

__all__ = ["Run", "is_drawn", "trained_on"]

# Samples of a short task that is trained on; the test samples are there for who wants to look at them.
_NUM_TRAIN, _NUM_TEST = 56, 4
# Of a held-out one, which has an adapter of its own to be compared with: as many as there are, and those scored.
_MOST_SAMPLES, _NUM_SCORED = 144, 16
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


class Run:
    """The steps of a plan. After ``collect`` threads may take them, ``jobs`` at a time, which share the cores."""

    def __init__(self, plan: Plan, device: str, *, jobs: int = 1) -> None:
        self._plan, self._device = plan, device
        self._num_cores = None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
        self.steps = Steps(plan.work)

    def collect(self) -> ZooManifest:
        """Return the zoo, once all of its tasks have their adapters or samples, and the joint adapter is trained."""
        zoo, config = self._plan.work / "zoo", self._config("collect")
        self.steps.run(f"loragen-train collect --config {config}", makes=zoo / "zoo.json", config=config)
        whole, samples = self._with_short_tasks(config, ZooManifest.read(zoo))
        self.steps.run(
            f"loragen-train collect --config {whole}",
            makes=zoo / "joint",
            name="collect-all",
            after=["collect"],
            config=whole,
            data=samples,
        )
        return ZooManifest.read(zoo)

    def _with_short_tasks(self, config: Path, manifest: ZooManifest) -> tuple[Path, list[Path]]:
        """Write samples of short tasks, and the settings of a zoo that has them: some held out, with an own adapter,
        and the others without."""
        further = {task.name: task for task in short_tasks()[: self._plan.num_short_tasks]}
        samples = {name: task.samples(_NUM_TRAIN + _NUM_TEST) for name, task in further.items()}
        prompts = {name: [sample.prompt for sample in of_task] for name, of_task in samples.items()}
        held_out, training = twins.held_out_among(manifest, prompts, self._plan.num_held_out_short)
        folder, tasks, files = self._plan.work / "short_tasks", [], list[Path]()
        for name in [*held_out, *training]:
            is_held_out = name in held_out
            of_task = further[name].samples(_MOST_SAMPLES) if is_held_out else samples[name]
            num_test = _NUM_SCORED if is_held_out else _NUM_TEST
            files.append(folder / f"{name}.jsonl")
            write_jsonl(files[-1], map(asdict, of_task))
            sizes = {"num_train": len(of_task) - num_test, "num_test": num_test}
            kind = {"held_out": is_held_out, "own_adapter": is_held_out}
            tasks.append({"name": name, "source": str(files[-1]), **sizes, **kind})
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings["tasks"] += tasks
        return self._with_joint(settings, self._plan.work / "collect.yaml", self._plan.joint_steps), files

    def _with_joint(self, settings: dict[str, Any], file: Path, num_steps: int) -> Path:
        # Of few tasks too, so that zoos of all sizes differ by their tasks only.
        settings |= {"joint": True, "joint_steps": num_steps, "joint_folds": 2}
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return file

    @property
    def precision(self) -> str:
        """What the language model computes in in all steps: what was measured to be faster when the zoo was made."""
        return str(read_record(self._plan.work / "zoo" / INITIAL_NAME / "settings.json")["precision"])

    def fit(self, manifest: ZooManifest, name: str, seed: int, *, after: str = "collect-all") -> str:
        """Return the experiment of a training on the training tasks of a zoo."""
        config = self._config("generator")
        num_batches = math.ceil(len(trained_on(manifest)) / self._step.tasks_per_step)
        epochs = max(1, round(self._plan.num_steps / num_batches))
        experiments = self._plan.work / "experiments"
        printed = self.steps.run(
            f"loragen-train fit --config {config} --zoo {path_in_zoo(manifest.folder, ROOT)} --name {name} "
            f"--training.seed {seed} --training.max_epochs {epochs} --training.lm.precision {self.precision} "
            "--resume auto",
            makes=experiments,
            name=f"fit-{name}",
            after=[after],
            config=config,
            num_cores=self._num_cores,
        )
        return printed.splitlines()[-1]

    def evaluate(
        self, experiment: str, name: str, *, fit: str, settings: str = "evaluate", options: str = ""
    ) -> dict[str, Any]:
        """Return the scores of an experiment, as in evaluation.json, with further ``options`` of the command."""
        config, output = self._config(settings), self._plan.work / "evaluation"
        printed = self.steps.run(
            f"loragen-infer evaluate --config {config} --model {experiment} --device {self._device} "
            f"--dtype {_DTYPES[self.precision]} --json{options}",
            makes=output / "evaluation.json",
            name=f"evaluate-{name}",
            after=["collect-all", f"fit-{fit}"],
            config=config,
            silent=True,
            num_cores=self._num_cores,
        )
        evaluation: dict[str, Any] = json.loads(printed)
        return evaluation

    def joint_of(self, tasks: Sequence[ZooTask], manifest: ZooManifest) -> ZooManifest:
        """Return a zoo that has the joint adapter of some training tasks of another."""
        name = f"collect-{len(tasks)}"
        folder = self._plan.work / name
        settings = yaml.safe_load(self._config("collect").read_text(encoding="utf-8"))
        settings |= {
            "output_dir": path_in_zoo(folder, ROOT),
            "tasks": [
                {
                    "name": task.name,
                    "source": str(manifest.samples(task.prompts)),
                    "num_train": task.prompts.num_samples - 1,
                    "num_test": 1,
                    "own_adapter": False,
                }
                for task in tasks
                if task.prompts is not None
            ],
        }
        settings["training"]["precision"] = self.precision
        config = self._with_joint(settings, self._plan.work / f"{name}.yaml", self._plan.part_joint_steps)
        self.steps.run(
            f"loragen-train collect --config {config}",
            makes=folder / "joint",
            name=name,
            after=["collect-all"],
            config=config,
            num_cores=self._num_cores,
        )
        return ZooManifest.read(folder)

    def part_of(
        self, manifest: ZooManifest, name: str, tasks: Sequence[ZooTask], *, joint: ZooManifest | None = None
    ) -> ZooManifest:
        """Return a zoo with only some tasks of another, and the joint adapter of a third, with its folds."""
        names = {task.name for task in tasks}
        folder = self._plan.work / name
        folder.mkdir(parents=True, exist_ok=True)

        def elsewhere(path: str, zoo: ZooManifest = manifest) -> str:
            return path_in_zoo(zoo.path(path), folder)

        folds = [] if joint is None else joint.joint_folds

        part = replace(
            manifest,
            folder=folder,
            base_model_path=manifest.base_model_path and elsewhere(manifest.base_model_path),
            joint=None if joint is None else elsewhere(joint.joint or "", joint),
            joint_folds=[replace(fold, adapter=elsewhere(fold.adapter, joint or manifest)) for fold in folds],
            tasks=[
                replace(
                    task,
                    adapters=[elsewhere(path) for path in task.adapters],
                    prompts=task.prompts and replace(task.prompts, path=elsewhere(task.prompts.path)),
                    test=task.test and replace(task.test, path=elsewhere(task.test.path)),
                )
                for task in manifest.tasks
                if task.name in names
            ],
        )
        part.write()
        return part

    @property
    def _step(self) -> LmConfig:
        """What a step of the trainings sees."""
        settings = yaml.safe_load(self._config("generator").read_text(encoding="utf-8"))
        return LmConfig(**settings["training"].get("lm", {}))

    def _config(self, name: str) -> Path:
        return self._plan.configs / f"{name}.yaml"


def trained_on(manifest: ZooManifest) -> list[ZooTask]:
    """Return the training tasks of a zoo, with adapters or without, in an order of which any start is a fair choice."""
    # A digest of the name shuffles the tasks, which are listed by kind.
    tasks = [task for task in manifest.tasks if not task.held_out]
    return sorted(tasks, key=lambda task: hashlib.sha256(task.name.encode()).hexdigest())


def is_drawn(task: ZooTask) -> bool:
    """Return whether a task is one of reasoning-gym, and not a short one."""
    return any(source.startswith("reasoning-gym:") for source in task.sources)
