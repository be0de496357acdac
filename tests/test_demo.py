"""What an earlier run of a step has finished is used again where nothing that it depends on has changed."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from demo.steps import ROOT, Steps

COMMANDS = {  # with the steps before each
    "loragen-train collect": (),
    "loragen-train fit": ("collect",),
    "loragen-infer generate": ("fit",),
    "loragen-infer evaluate": ("collect", "fit"),
}


@pytest.mark.parametrize(
    ("package", "again"),
    [
        ("hyperconv", ["fit", "generate", "evaluate"]),
        ("loragen-train", ["collect", "fit", "generate", "evaluate"]),
        (None, []),
    ],
)
def test_a_step_depends_on_the_packages_that_it_uses(tmp_path, package, again):
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=shutil.ignore_patterns("tests", "*.pyc"))
    keys = []
    for _ in range(2):
        steps = Steps(tmp_path, tmp_path / "packages")
        keys.append([steps.key(command, after=after) for command, after in COMMANDS.items()])
        if package is not None:
            (tmp_path / "packages" / package / "src" / "changed.py").write_text("changed = True\n")
    changed = [command.split()[1] for command, *pair in zip(COMMANDS, *keys, strict=True) if pair[0] != pair[1]]
    assert changed == again


def test_a_step_depends_on_its_words_its_settings_and_the_steps_before_it(tmp_path):
    config, samples = tmp_path / "fit.yaml", tmp_path / "samples.jsonl"

    def key_of_fit(*, steps: int = 1, seed: int = 0, settings: str = "a: 1", data: str = "{}") -> str:
        config.write_text(settings)
        samples.write_text(data)
        run = Steps(tmp_path)
        run.key(f"loragen-train collect --steps {steps}")
        return run.key(f"loragen-train fit --seed {seed}", after=["collect"], config=config, data=[samples])

    keys = [key_of_fit(), key_of_fit(steps=2), key_of_fit(seed=1), key_of_fit(settings="a: 2"), key_of_fit(data="[]")]
    assert len(set(keys)) == 5
    assert key_of_fit() == keys[0]


def test_a_finished_step_is_not_run_again_and_a_picture_comes_first(tmp_path, capsys):
    made, program = tmp_path / "made.png", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {made}\necho a table\n")
    program.chmod(0o755)
    for _ in range(2):
        assert Steps(tmp_path).run(f"{program} evaluate", makes=made) == "a table\n"
        shown = capsys.readouterr().out
        assert shown.index(made.as_uri()) < shown.index("a table")
    assert made.read_text() == "ran\n"
    made.unlink()
    Steps(tmp_path).run(f"{program} evaluate", makes=made)
    assert made.is_file()


def test_a_step_that_fails_ends_the_run_and_counts_for_nothing(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(SystemExit) as stop:
        Steps(tmp_path).run(f"{program} collect", makes=tmp_path)
    assert stop.value.code == 3
    program.write_text("#!/bin/sh\necho better\n")
    assert Steps(tmp_path).run(f"{program} collect", makes=tmp_path) == "better\n"
    # As a collect does whose tasks another process is at.
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"^collect ended without .*joint, which another"):
            Steps(tmp_path).run(f"{program} collect", makes=tmp_path / "joint")


def program_of(folder: Path, script: str) -> Path:
    """A program that runs a shell script."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_a_step_beside_others_has_its_share_of_the_cores_and_a_log(tmp_path, capfd):
    program = program_of(tmp_path, "echo $OMP_NUM_THREADS; echo half of it done >&2")
    assert Steps(tmp_path).run(f"{program} collect", makes=tmp_path, num_cores=3) == "3\n"
    assert (tmp_path / "steps/collect.log").read_text() == "half of it done\n"
    assert "half of it" not in capfd.readouterr().err
    program_of(tmp_path, "echo there is no such zoo >&2; exit 2")
    with pytest.raises(SystemExit):
        Steps(tmp_path).run(f"{program} fit", makes=tmp_path, num_cores=3)
    assert capfd.readouterr().err == "there is no such zoo\n"


def test_steps_that_are_stopped_end_at_once_and_nothing_more_starts(tmp_path, capfd):
    program = program_of(tmp_path, "touch $2; exec sleep 60")
    steps, started = Steps(tmp_path), tmp_path / "started"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(steps.run, f"{program} collect {started}", makes=tmp_path, num_cores=1)
        while not started.exists():
            time.sleep(0.01)
        steps.stop()
        assert isinstance(running.exception(timeout=30), SystemExit)
    with pytest.raises(SystemExit):
        steps.run(f"{program} fit {tmp_path / 'never'}", makes=tmp_path)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("size", ["full", "quick"])
def test_held_out_tasks_of_the_demo_are_drawn_from_other_generators(size):
    tasks = yaml.safe_load((ROOT / "demo" / size / "collect.yaml").read_text(encoding="utf-8"))["tasks"]
    sources: dict[bool, set[str]] = {True: set(), False: set()}
    for task in tasks:
        sources[task.get("held_out", False)].add(task["source"].partition("?")[0])
    assert not sources[True] & sources[False]
    if size == "full":
        assert sum(task.get("held_out", False) for task in tasks) >= 3
        assert sum(not task.get("held_out", False) for task in tasks) >= 12
