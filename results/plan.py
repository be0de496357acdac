"""How much a run of the results does: the whole one, and a quick one that only shows that everything works."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FULL", "QUICK", "Plan"]


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
    """Most short tasks that are made beside those of reasoning-gym; None: all."""
    num_held_out_short: int = 16
    """Held-out ones among them: those whose prompts are least like any other task's."""
    part_sizes: tuple[int, ...] = (10, 20, 42, 80, 120)
    """Numbers of training tasks of the further trainings, with the first seed; the last one is on all of them."""
    tuning: tuple[tuple[int, int], ...] = ((4, 4), (4, 16), (16, 4), (16, 16), (64, 4), (64, 16))
    """Numbers of samples and of steps that adapters are tuned with, beside no step at all."""
    joint_steps: int = 1296
    """Steps of the joint adapter of all training tasks, which generators start from."""
    part_joint_steps: int = 144
    """Steps of those of the further trainings, as many for few tasks as for all."""
    num_steps: int = 36
    """Steps of the generators, but each sees all of its training tasks once at least."""
    quick: bool = False
    """Whether the numbers are tiny."""


FULL = Plan(configs=Path("results/configs/full"), work=Path("results_output"), output=Path("results"))
QUICK = Plan(
    configs=Path("results/configs/quick"),
    work=Path("results_output/quick"),
    output=Path("results_output/quick/results"),
    seeds=(0, 1),
    num_short_tasks=6,
    num_held_out_short=1,
    part_sizes=(4,),
    tuning=((2, 1), (2, 2)),
    joint_steps=4,
    part_joint_steps=2,
    num_steps=4,
    quick=True,
)
