"""A whole run of the results, whose commands the real command lines parse, with the real settings, but do no work.

What is handed from step to step, and that all of it ends up in what is written."""

import contextlib
import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from loragen_infer.cli.main import main as infer
from loragen_infer.evaluation import run as evaluating
from loragen_infer.evaluation.config import ROWS, EvaluateConfig
from loragen_infer.evaluation.results import Evaluation, TaskResult, summarise
from loragen_infer.evaluation.scoring import ExampleScores
from loragen_infer.files import write_json
from loragen_infer.zoo import INITIAL_NAME, JointFold, SampleFile, ZooManifest, ZooTask
from loragen_train.cli.main import main as train
from loragen_train.configs.collect import CollectConfig
from loragen_train.configs.fit import FitConfig
from loragen_train.training import fit as fitting
from loragen_train.zoo import collect as collecting

from demo.steps import ROOT, Steps
from results import run
from results.measure import measure
from results.plan import FULL, Plan

TRAINED = {
    "sums": [f"What is {a} + {b}?" for a in range(3) for b in range(3)],
    "spelling": ["Spell cat backward."] * 9,
    "letters": ["How many letters has the word house?"] * 9,
}
EXPERIMENTS = ["all-seed-0", "all-seed-1", "all-seed-2", "part-2", "part-3"]
HELD_OUT = {"capitals": [f"What is the capital of {name}?" for name in ("Peru", "Cuba", "Chile")]}


def zoo_at(folder: Path, prompts: dict[str, list[str]]) -> ZooManifest:
    """A zoo with a joint adapter in two folds."""
    folder.mkdir(parents=True)
    tasks = []
    for name, texts in prompts.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps({'prompt': text, 'response': '1'})}\n" for text in texts))
        adapter = folder / "adapters" / name
        adapter.mkdir(parents=True)
        samples = SampleFile.of(file, folder)
        tasks.append(
            ZooTask(
                name=name,
                sources=[f"reasoning-gym:{name}"],
                held_out=name in HELD_OUT,
                prompts=samples,
                test=samples,
                adapters=[f"adapters/{name}"],
            )
        )
    (folder / "joint").mkdir()
    folds = [JointFold(adapter="joint", tasks=[task.name]) for task in tasks if not task.held_out]
    manifest = ZooManifest(base_model="tiny", tasks=tasks, joint="joint", joint_folds=folds, folder=folder)
    manifest.write()
    write_json(folder / INITIAL_NAME / "settings.json", {"precision": "bf16"})
    return manifest


def rows_of(settings: str) -> list[str]:
    """The rows that a file of settings asks for, in the order in which they are shown."""
    given = yaml.safe_load((FULL.configs / f"{settings}.yaml").read_text(encoding="utf-8"))["rows"]
    return [row for row in ROWS if row in given]


def level_of(experiment: str, config: EvaluateConfig) -> float:
    """Another number for every generator, number of examples, and of samples and steps of tuning."""
    return float(
        f"{1 + EXPERIMENTS.index(experiment)}.{config.num_examples:02}{config.num_shots:02}{config.tune_steps:02}"
    )


class Commands:
    """Stands in for the work of the commands, and keeps their configurations."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.collected: list[CollectConfig] = []
        self.fitted: list[FitConfig] = []
        self.evaluated: list[EvaluateConfig] = []

    def execute(self, _steps: Steps, command: str, _num_cores: int | None, _log: Path | None) -> tuple[str, int]:
        program, *words = shlex.split(command)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = {"loragen-train": train, "loragen-infer": infer}[program](words)
        return output.getvalue(), code

    def collect(self, config: CollectConfig) -> list[Path]:
        self.collected.append(config)
        folder = self._plan.work / ("zoo" if len(self.collected) <= 2 else Path(config.output_dir).name)
        if not folder.exists():
            zoo_at(folder, {task.name: TRAINED[task.name] for task in config.tasks})
        return [folder / "adapters"]

    def fit(self, config: FitConfig, *, resume: str | None = None) -> Path:
        assert resume == "auto"
        self.fitted.append(config)
        folder = self._plan.work / "experiments" / config.name
        folder.mkdir(parents=True)
        return folder

    def evaluate(self, config: EvaluateConfig) -> Evaluation:
        self.evaluated.append(config)
        write_json(Path(self._plan.work / "evaluation" / "evaluation.json"), {})
        names = HELD_OUT if config.zoo_tasks == "held-out" else TRAINED
        rows = config.rows or ROWS
        # A likelihood that tells what was scored, and how.
        level = level_of(Path(config.model).name, config)
        alike = ExampleScores(answer_nll=(level, level), num_tokens=(1, 1), exact=(1.0, 0.0), correct=None)
        worse = replace(alike, answer_nll=(level + 1, level + 1))
        results = [
            TaskResult(
                task=name,
                held_out=name in HELD_OUT,
                wrong_tasks=[],
                rows={row: worse if row == "base" else alike for row in rows},
                costs={},
                notes={},
            )
            for name in names
        ]
        return summarise(results, num_resamples=10, seed=0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    work = tmp_path / "work"
    zoo_at(work / "zoo", TRAINED | HELD_OUT)
    return replace(
        FULL, work=work, output=tmp_path / "results", num_short_tasks=2, num_held_out_short=1, part_sizes=(2,)
    )


def test_a_run_takes_every_step_and_writes_what_it_found(plan, monkeypatch, capsys):
    commands = Commands(plan)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Steps, "_execute", lambda steps, *arguments: commands.execute(steps, *arguments))
    monkeypatch.setattr(collecting, "collect", commands.collect)
    monkeypatch.setattr(fitting, "fit", commands.fit)
    monkeypatch.setattr(evaluating, "evaluate", commands.evaluate)
    run._write(run._found(measure(plan, "cpu", 1), plan, "cpu"), plan)

    first, whole, *parts = commands.collected
    *_, held_out, trained = whole.tasks
    assert len(whole.tasks) == len(first.tasks) + 2
    assert (held_out.held_out, held_out.own_adapter, held_out.num_test) == (True, True, 16)
    assert (trained.held_out, trained.own_adapter, trained.num_train, trained.num_test) == (False, False, 56, 4)
    assert (first.joint, whole.joint_steps, whole.joint_folds) == (False, plan.joint_steps, 2)
    assert sorted(len(part.tasks) for part in parts) == [2, 3]
    assert {part.joint_steps for part in parts} == {plan.part_joint_steps}
    assert sorted(config.name for config in commands.fitted) == EXPERIMENTS
    assert {config.training.lm.precision for config in commands.fitted} == {"bf16"}
    assert {config.dtype for config in commands.evaluated} == {"bfloat16"}
    assert {Path(config.model).name for config in commands.evaluated} == {config.name for config in commands.fitted}

    found = json.loads((plan.output / "results.json").read_text(encoding="utf-8"))
    recorded = json.loads((ROOT / "results/results.json").read_text(encoding="utf-8"))
    assert found.keys() >= recorded.keys()  # of which the tables are made
    assert list(found["held_out"]) == list(ROWS)
    assert [list(one["rows"]) for one in found["tuning"]] == [rows_of("tuning")] * (1 + len(plan.tuning))
    assert [list(one["rows"]) for one in found["curve"]] == [rows_of("curve")] * 2
    assert list(found["seen"]) == rows_of("seen")
    assert set(found["by_seed"]) == {"0", "1", "2"}
    assert list(found["by_kind"]) == ["of reasoning-gym"]  # as the only held-out task of this zoo is
    assert list(found["per_task"]) == list(HELD_OUT)
    # Default: four shots, sixteen steps.
    assert [found["by_seed"][seed]["own"]["nll"] for seed in "012"] == [1.160416, 2.160416, 3.160416]
    assert found["held_out"]["own"]["nll"]["mean"] == pytest.approx(2.160416)
    assert [one["rows"]["ridge"]["nll"]["mean"] for one in found["curve"]] == [4.160416, 5.160416]
    assert found["seen"]["own"]["nll"]["mean"] == 1.080416
    tuned = [one["rows"]["tuned"]["nll"]["mean"] for one in found["tuning"]]
    assert found["tuning"][0]["rows"]["tuned from scratch"]["nll"]["mean"] == pytest.approx(2.160416)  # the base model
    assert tuned == [1.160416, 1.160404, 1.160416, 1.161604, 1.161616, 1.166404, 1.166416]
    assert found["seconds"].keys() >= {
        "collect",
        "collect-all",
        "fit-all-seed-2",
        "evaluate-seen",
        "evaluate-tuning-64-16",
    }
    assert (plan.output / "results.png").is_file()
    assert "<table" in (plan.output / "index.html").read_text(encoding="utf-8")
    # Whoever runs it again takes no step again.
    capsys.readouterr()
    before = len(commands.collected) + len(commands.fitted) + len(commands.evaluated)
    measure(plan, "cpu", 1)
    assert len(commands.collected) + len(commands.fitted) + len(commands.evaluated) == before
    assert "(from an earlier run)" in capsys.readouterr().out
