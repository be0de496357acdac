"""What a run of the results measures, in the order in which it is begun."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from loragen_infer.zoo import INITIAL_NAME, ZooManifest, ZooTask

from results import twins
from results.plan import Plan
from results.side_by_side import SideBySide
from results.work import Run, is_drawn, trained_on

__all__ = ["Measured", "measure"]

Evaluation = dict[str, Any]
"""The content of an ``evaluation.json``."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured."""

    manifest: ZooManifest
    """The zoo of all tasks."""
    nearest: list[twins.Neighbour]
    """How new the held-out tasks are."""
    by_seed: dict[int, Evaluation]
    """All rows of the held-out tasks, for the generators of all training tasks."""
    seen: Evaluation
    """Rows of the training tasks that have adapters, for the first of those generators."""
    curve: list[tuple[ZooManifest, Evaluation]]
    """Zoos with more and more of the training tasks, and rows of the held-out tasks for a generator of each."""
    tuning: list[Evaluation]
    """The tuned rows of the held-out tasks of reasoning-gym, by the plan's numbers of samples and steps, for the first
    generator."""
    precision: str
    """What the language model computed in: ``bf16`` or ``fp32``."""
    seconds: Mapping[str, float]
    """What every step has taken."""


def measure(plan: Plan, device: str, jobs: int) -> Measured:
    """Run the commands of a plan, after the zoo is collected ``jobs`` at a time."""
    run = Run(plan, device, jobs=jobs)
    manifest = run.collect()
    nearest = twins.neighbours(manifest)
    if has_twin := twins.twins(nearest):
        raise SystemExit(f"Held-out tasks have twins among the training tasks: {' '.join(has_twin)}")
    tasks = trained_on(manifest)
    # What waits for a result is begun after it, so that it never keeps that from beginning.
    with SideBySide(jobs, stop=run.steps.stop) as side_by_side:
        names = {seed: f"all-seed-{seed}" for seed in plan.seeds}
        fits = {seed: side_by_side.begin(run.fit, manifest, name, seed) for seed, name in names.items()}
        by_seed = {seed: side_by_side.begin(_evaluate, run, fits[seed], name) for seed, name in names.items()}
        first = fits[plan.seeds[0]], names[plan.seeds[0]]
        seen = side_by_side.begin(_see, run, manifest, *first)
        sizes = (*plan.part_sizes, len(tasks))
        curve = [side_by_side.begin(_learn_from, run, manifest, tasks[:size], plan.seeds[0]) for size in sizes]
        tuning = [side_by_side.begin(_tune, run, manifest, *first, *numbers) for numbers in plan.tuning]
    return Measured(
        manifest=manifest,
        nearest=nearest,
        by_seed={seed: one.result() for seed, one in by_seed.items()},
        seen=seen.result(),
        curve=[one.result() for one in curve],
        tuning=[one.result() for one in tuning],
        precision=run.precision,
        seconds=run.steps.seconds,
    )


def _evaluate(run: Run, experiment: "Future[str]", name: str) -> Evaluation:
    return run.evaluate(experiment.result(), name, fit=name)


def _see(run: Run, manifest: ZooManifest, experiment: "Future[str]", fit: str) -> Evaluation:
    # Only tasks with adapters have an own one to be compared with.
    zoo = run.part_of(manifest, "zoo-seen", manifest.training_tasks)
    options = f" --zoo {zoo.folder} --joint_adapter {manifest.path(manifest.joint or '')}"
    return run.evaluate(experiment.result(), "seen", fit=fit, settings="seen", options=options)


def _tune(
    run: Run, manifest: ZooManifest, experiment: "Future[str]", fit: str, num_samples: int, num_steps: int
) -> Evaluation:
    # To save time, of one kind only.
    zoo = run.part_of(manifest, "zoo-tuning", [task for task in manifest.held_out_tasks if is_drawn(task)])
    name, options = f"tuning-{num_samples}-{num_steps}", f" --num_shots {num_samples} --tune_steps {num_steps}"
    options += f" --zoo {zoo.folder} --initial_adapter {manifest.path(INITIAL_NAME)}"
    return run.evaluate(experiment.result(), name, fit=fit, settings="tuning", options=options)


def _learn_from(run: Run, manifest: ZooManifest, tasks: list[ZooTask], seed: int) -> tuple[ZooManifest, Evaluation]:
    name, joint = f"part-{len(tasks)}", run.joint_of(tasks, manifest)
    part = run.part_of(manifest, f"zoo-{len(tasks)}", [*manifest.held_out_tasks, *tasks], joint=joint)
    experiment = run.fit(part, name, seed, after=f"collect-{len(tasks)}")
    options = f" --joint_adapter {joint.path(joint.joint or '')}"
    return part, run.evaluate(experiment, name, fit=name, settings="curve", options=options)
