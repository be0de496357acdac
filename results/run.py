"""Measures what generated adapters are worth on tasks never seen, from nothing but installed packages.

Collects a zoo of short tasks of reasoning-gym, of which some are held out that have no twin among the others, adds
further short tasks, of which some are held out as well and the others lend their samples only, trains generators with
several seeds and on fewer tasks, evaluates all rows, and writes results/: JSON, PNG, HTML, and from the JSON the tables
in the README and docs/results.md. Every step is a command that a user would type, two of them at a time on a CPU; what
is finished is used again.

    python -m results.run                  hours on two CPU cores; a GPU is picked up by itself
    python -m results.run --quick          tiny numbers, written elsewhere, to see that everything works
    python -m results.run --write-tables   those tables anew, from results/results.json
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loragen_infer.files import write_json
from loragen_infer.zoo import ZooManifest

from demo.steps import ROOT
from results import page, summary, twins
from results.measure import Measured, measure
from results.plan import FULL, QUICK, Plan
from results.work import is_drawn, trained_on

__all__ = ["main"]

RULE = (
    f"No training task is drawn from the generator of a held-out task, whatever its settings, and the mean embeddings "
    f"of the prompts of a held-out and a training task have a cosine below {twins.MAX_COSINE}. Of the short tasks "
    "those are held out whose nearest other task is least like them."
)
# Where the rows that are tuned start; without a step the initialisation changes nothing in the base model.
_STARTS = {"tuned": "generated", "tuned from mean": "mean", "tuned from scratch": "base"}
# The two kinds of held-out tasks, by whether they are drawn from reasoning-gym.
_KINDS = {True: "of reasoning-gym", False: "of results/short_tasks"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description="Measure what generated adapters are worth on tasks never seen.")
    parser.add_argument("--quick", action="store_true", help="tiny numbers: see that it works, in a few minutes")
    parser.add_argument("--write-tables", action="store_true", help="only write the tables in Markdown files anew")
    parser.add_argument(
        "--jobs", type=int, help="commands that run side by side and share the cores; by default 2, or 1 on a GPU"
    )
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}, but must be 1 or more.")
    os.chdir(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every part comes from an installed package
    plan = QUICK if options.quick else FULL
    if not options.write_tables:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        jobs = options.jobs or (1 if device == "cuda" else min(2, os.cpu_count() or 1))
        _write(_found(measure(plan, device, jobs), plan, device), plan)
    if not plan.quick:
        write_tables()


def write_tables(root: Path = ROOT, results: Path = ROOT / "results/results.json") -> None:
    """Write the tables of the Markdown files of ``root`` from the results that lie in the repository."""
    found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
    for name, section in (("README.md", page.main_table(found)), ("docs/results.md", page.further_tables(found))):
        file = root / name
        file.write_text(page.replace_section(file.read_text(encoding="utf-8"), section, file=file), encoding="utf-8")


def _found(measured: Measured, plan: Plan, device: str) -> dict[str, Any]:
    """Return the content of results.json."""
    manifest = measured.manifest
    scores = summary.scores_by_task(list(measured.by_seed.values()), held_out=True)
    return {
        "quick": plan.quick,
        "rule": RULE,
        "num_training_tasks": len(trained_on(manifest)),
        "num_with_adapters": len(manifest.training_tasks),
        "seeds": list(plan.seeds),
        "joint_steps": plan.joint_steps,
        "held_out": summary.group_table(scores),
        "differences": {row: table for row in ("generated", "tuned") if (table := summary.compared(scores, row))},
        "by_kind": _by_kind(scores, manifest),
        "seen": summary.group_table(summary.scores_by_task([measured.seen], held_out=False)),
        "curve": [
            {
                "num_tasks": len(trained_on(zoo)),
                "num_with_adapters": len(zoo.training_tasks),
                "joint_steps": plan.part_joint_steps,
                "rows": _of_held_out(one),
            }
            for zoo, one in measured.curve
        ],
        "num_tuned_tasks": len(summary.scores_by_task(measured.tuning[:1], held_out=True)),
        "tuning": _tuning(measured, plan),
        "by_seed": {
            str(seed): {
                row: {name: value["mean"] for name, value in table.items() if name != "gap_closed"}
                for row, table in _of_held_out(one).items()
            }
            for seed, one in measured.by_seed.items()
        },
        "per_task": scores,
        "nearest_tasks": [asdict(one) for one in measured.nearest],
        "seconds": dict(measured.seconds),
        "made_with": _made_with(device, measured.precision),
        "remarks": [],  # whoever measures a part anew says so here
    }


def _by_kind(scores: summary.Scores, manifest: ZooManifest) -> dict[str, Any]:
    """The rows of each kind of held-out tasks, and how far generated adapters are from the others."""
    kinds = {
        kind: {task: scores[task] for task in scores if is_drawn(manifest.task(task)) is drawn}
        for drawn, kind in _KINDS.items()
    }
    return {
        kind: {
            "num_tasks": len(of_kind),
            "rows": summary.group_table(of_kind),
            "differences": summary.compared(of_kind, "generated"),
        }
        for kind, of_kind in kinds.items()
        if of_kind
    }


def _tuning(measured: Measured, plan: Plan) -> list[dict[str, Any]]:
    """What tuning has given by numbers of samples and steps, beginning with what it starts from."""
    tuned = [summary.scores_by_task([one], held_out=True) for one in measured.tuning]
    untuned = summary.scores_by_task([measured.by_seed[plan.seeds[0]]], held_out=True)
    starts = {task: {row: untuned[task][start] for row, start in _STARTS.items()} for task in tuned[0]}
    return [
        {"num_samples": num_samples, "num_steps": num_steps, "rows": summary.group_table(scores)}
        for (num_samples, num_steps), scores in zip([(0, 0), *plan.tuning], [starts, *tuned], strict=True)
    ]


def _of_held_out(evaluation: dict[str, Any]) -> dict[str, Any]:
    return summary.group_table(summary.scores_by_task([evaluation], held_out=True))


def _write(found: dict[str, Any], plan: Plan) -> None:
    plan.output.mkdir(parents=True, exist_ok=True)
    picture = plan.output / "results.png"
    write_json(plan.output / "results.json", found)
    page.draw(found, picture)
    page.write_page(found, picture, sorted(plan.configs.glob("*.yaml")), plan.output / "index.html")
    print(f"\nThe picture: {picture.resolve().as_uri()}\n\n{page.main_table(found)}\n{page.further_tables(found)}")
    print(f"Written: {plan.output}/results.json, results.png and index.html.")


def _made_with(device: str, precision: str) -> str:
    packages = ("torch", "transformers", "lora-tokenizer", "hyperconv", "loragen-infer", "loragen-train")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    return f"Python {platform.python_version()}, {versions}; {machine}; the language model in {precision}."


if __name__ == "__main__":
    main()
