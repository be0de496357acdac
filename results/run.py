"""Measures what generated adapters are worth on tasks never seen, from nothing but installed packages.

Collects a zoo of short tasks of reasoning-gym, of which some are held out that have no twin among the others, adds
short tasks that lend their samples only, trains generators with several seeds and on fewer tasks, evaluates all rows,
and writes results/: JSON, PNG, HTML, and from the JSON the table in the README. Every step is a command that a user
would type; what is finished is used again.

    python -m results.run                  hours on two CPU cores, minutes on a GPU
    python -m results.run --quick          tiny numbers, written elsewhere, to see that everything works
    python -m results.run --write-readme   the README's table anew, from results/results.json
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from loragen_infer.files import write_json, write_jsonl
from loragen_infer.zoo import ZooManifest, ZooTask, path_in_zoo
from loragen_train.configs.objectives import LmConfig

from demo.steps import ROOT, Steps
from results import page, summary, twins
from results.short_tasks import short_tasks

__all__ = ["main"]

RULE = (
    f"No training task is drawn from the generator of a held-out task, whatever its settings, and the mean embeddings "
    f"of the prompts of a held-out and a training task have a cosine below {twins.MAX_COSINE}."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run, and where it is written."""

    configs: Path
    """Folder of the files of settings."""
    work: Path
    """Folder of all that is kept between runs."""
    output: Path
    """Folder of the results."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the trainings on all tasks."""
    num_short_tasks: int | None = None
    """Most tasks that lend their samples only; None: all that are unlike the held-out ones."""
    part_sizes: tuple[int, ...] = (10, 20, 42, 80, 120, 240)
    """Numbers of training tasks of the further trainings, with the first seed; the last one is on all of them."""
    tuning: tuple[tuple[int, int], ...] = ((4, 4), (4, 16))
    """Numbers of samples and of steps that adapters are tuned with, beside no step at all."""
    joint_steps: int = 1296
    """Steps of the joint adapter of all training tasks, which generators start from."""
    part_joint_steps: int = 216
    """Steps of those of the further trainings, as many for few tasks as for all."""
    num_steps: int = 54
    """Steps of the generators."""
    quick: bool = False
    """Whether the numbers are tiny."""


FULL = Plan(configs=Path("results/configs/full"), work=Path("results_output"), output=Path("results"))
QUICK = Plan(
    configs=Path("results/configs/quick"),
    work=Path("results_output/quick"),
    output=Path("results_output/quick/results"),
    seeds=(0, 1),
    num_short_tasks=3,
    part_sizes=(4,),
    tuning=((2, 1), (2, 2)),
    joint_steps=4,
    part_joint_steps=2,
    num_steps=4,
    quick=True,
)


# Samples of a short task; the test samples are there for who wants to look at them.
_NUM_TRAIN, _NUM_TEST = 56, 4


class Run:
    """The steps of a plan, one after another."""

    def __init__(self, plan: Plan, device: str) -> None:
        self._plan, self._device = plan, device
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
        """Write samples of short tasks, which no adapter is trained on, and the settings of a zoo that has them."""
        samples = {task.name: task.samples(_NUM_TRAIN + _NUM_TEST) for task in short_tasks()}
        prompts = {name: [sample.prompt for sample in of_task] for name, of_task in samples.items()}
        folder, tasks, files = self._plan.work / "short_tasks", [], list[Path]()
        for name in twins.unlike_held_out(manifest, prompts)[: self._plan.num_short_tasks]:
            files.append(folder / f"{name}.jsonl")
            write_jsonl(files[-1], map(asdict, samples[name]))
            sizes = {"num_train": _NUM_TRAIN, "num_test": _NUM_TEST}
            tasks.append({"name": name, "source": str(files[-1]), **sizes, "own_adapter": False})
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings["tasks"] += tasks
        return self._with_joint(settings, self._plan.work / "collect.yaml", self._plan.joint_steps), files

    def _with_joint(self, settings: dict[str, Any], file: Path, num_steps: int) -> Path:
        # Of few tasks too, so that zoos of all sizes differ by their tasks only.
        settings |= {"joint": True, "joint_steps": num_steps, "joint_folds": 2}
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return file

    def fit(self, manifest: ZooManifest, name: str, seed: int, *, after: str = "collect-all") -> str:
        """Return the experiment of a training on the training tasks of a zoo."""
        config = self._config("generator")
        num_batches = math.ceil(len(trained_on(manifest)) / self._step.tasks_per_step)
        epochs = max(1, round(self._plan.num_steps / num_batches))
        experiments = self._plan.work / "experiments"
        printed = self.steps.run(
            f"loragen-train fit --config {config} --zoo {path_in_zoo(manifest.folder, ROOT)} --name {name} "
            f"--training.seed {seed} --training.max_epochs {epochs} --resume auto",
            makes=experiments,
            name=f"fit-{name}",
            after=[after],
            config=config,
        )
        return printed.splitlines()[-1]

    def evaluate(
        self, experiment: str, name: str, *, fit: str, settings: str = "evaluate", options: str = ""
    ) -> dict[str, Any]:
        """Return the scores of an experiment, as in evaluation.json, with further ``options`` of the command."""
        config, output = self._config(settings), self._plan.work / "evaluation"
        printed = self.steps.run(
            f"loragen-infer evaluate --config {config} --model {experiment} --device {self._device} --json{options}",
            makes=output / "evaluation.json",
            name=f"evaluate-{name}",
            after=["collect-all", f"fit-{fit}"],
            config=config,
            silent=True,
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
        config = self._with_joint(settings, self._plan.work / f"{name}.yaml", self._plan.part_joint_steps)
        makes, before = folder / "joint", ["collect-all"]
        self.steps.run(f"loragen-train collect --config {config}", makes=makes, name=name, after=before, config=config)
        return ZooManifest.read(folder)

    def part_of(
        self, manifest: ZooManifest, tasks: Sequence[ZooTask], *, joint: ZooManifest | None = None
    ) -> ZooManifest:
        """Return the zoo with only some of its training tasks, and the joint adapter of another, with its folds."""
        names = {task.name for task in tasks}
        folder = self._plan.work / f"zoo-{len(tasks)}"
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
                if task.held_out or task.name in names
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description="Measure what generated adapters are worth on tasks never seen.")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: see that it works, in a few minutes")
    parser.add_argument("--write-readme", action="store_true", help="only write the README's table anew")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every part comes from an installed package
    plan = QUICK if options.quick else FULL
    if not options.write_readme:
        found = _measure(plan, "cuda" if torch.cuda.is_available() else "cpu")
        _write(found, plan)
    if not plan.quick:
        write_readme()


def write_readme(readme: Path = ROOT / "README.md", results: Path = ROOT / "results/results.json") -> None:
    """Write the table of the README from the results that lie in the repository."""
    found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
    text = page.replace_section(readme.read_text(encoding="utf-8"), page.readme_section(found))
    readme.write_text(text, encoding="utf-8")


def _measure(plan: Plan, device: str) -> dict[str, Any]:
    run = Run(plan, device)
    manifest = run.collect()
    nearest = twins.neighbours(manifest)
    if has_twin := twins.twins(nearest):
        raise SystemExit(f"Held-out tasks have twins among the training tasks: {' '.join(has_twin)}")

    names = {seed: f"all-seed-{seed}" for seed in plan.seeds}
    experiments = {seed: run.fit(manifest, name, seed) for seed, name in names.items()}
    evaluations = {seed: run.evaluate(experiments[seed], name, fit=name) for seed, name in names.items()}
    first = plan.seeds[0]
    # Only tasks with adapters have an own one to be compared with.
    adapter = manifest.path(manifest.joint or "")
    options = f" --zoo {run.part_of(manifest, manifest.training_tasks).folder} --joint_adapter {adapter}"
    seen = run.evaluate(experiments[first], "seen", fit=names[first], settings="seen", options=options)

    curve = []
    tasks = trained_on(manifest)
    for size in (*plan.part_sizes, len(tasks)):
        name, joint = f"part-{size}", run.joint_of(tasks[:size], manifest)
        part = run.part_of(manifest, tasks[:size], joint=joint)
        experiment = run.fit(part, name, first, after=f"collect-{size}")
        options = f" --joint_adapter {joint.path(joint.joint or '')}"
        curve.append((part, run.evaluate(experiment, name, fit=name, settings="curve", options=options)))

    tuning = []
    for num_samples, num_steps in plan.tuning:
        name, options = f"tuning-{num_samples}-{num_steps}", f" --num_shots {num_samples} --tune_steps {num_steps}"
        one = run.evaluate(experiments[first], name, fit=names[first], settings="tuning", options=options)
        tuning.append((num_samples, num_steps, one))

    scores = summary.scores_by_task(list(evaluations.values()), held_out=True)
    of_seeds = {seed: summary.scores_by_task([one], held_out=True) for seed, one in evaluations.items()}
    return {
        "quick": plan.quick,
        "rule": RULE,
        "num_training_tasks": len(tasks),
        "num_with_adapters": len(manifest.training_tasks),
        "seeds": list(plan.seeds),
        "joint_steps": plan.joint_steps,
        "held_out": summary.group_table(scores),
        "differences": {row: table for row in ("generated", "tuned") if (table := summary.compared(scores, row))},
        "seen": summary.group_table(summary.scores_by_task([seen], held_out=False)),
        "curve": [
            {
                "num_tasks": len(trained_on(zoo)),
                "num_with_adapters": len(zoo.training_tasks),
                "joint_steps": plan.part_joint_steps,
                "rows": summary.group_table(summary.scores_by_task([one], held_out=True)),
            }
            for zoo, one in curve
        ],
        "tuning": [
            {
                "num_samples": num_samples,
                "num_steps": num_steps,
                "rows": summary.group_table(summary.scores_by_task([one], held_out=True)),
            }
            for num_samples, num_steps, one in tuning
        ],
        "by_seed": {
            str(seed): {
                row: {name: value["mean"] for name, value in table.items() if name != "gap_closed"}
                for row, table in summary.group_table(one).items()
            }
            for seed, one in of_seeds.items()
        },
        "per_task": scores,
        "nearest_tasks": [asdict(one) for one in nearest],
        "seconds": run.steps.seconds,
        "made_with": _made_with(device),
    }


def _write(found: dict[str, Any], plan: Plan) -> None:
    plan.output.mkdir(parents=True, exist_ok=True)
    picture = plan.output / "results.png"
    write_json(plan.output / "results.json", found)
    page.draw(found, picture)
    page.write_page(found, picture, sorted(plan.configs.glob("*.yaml")), plan.output / "index.html")
    print(f"\nThe picture: {picture.resolve().as_uri()}\n\n{page.readme_section(found)}")
    print(f"Written: {plan.output}/results.json, results.png and index.html.")


def _made_with(device: str) -> str:
    packages = ("torch", "transformers", "lora-tokenizer", "hyperconv", "loragen-infer", "loragen-train")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    return f"Python {platform.python_version()}, {versions}; {machine}."


if __name__ == "__main__":
    main()
