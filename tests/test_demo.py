"""What an earlier run of the demo has finished is used again where nothing that it depends on has changed."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = [
    f"{program} {name}"
    for program, names in (
        ("loragen-train", ("collect", "fit")),
        ("loragen-infer", ("generate", "evaluate")),
    )
    for name in names
]


@pytest.mark.parametrize(
    ("package", "again"),
    [
        ("hyperconv", ["fit", "generate", "evaluate"]),
        ("loragen-train", ["collect", "fit", "generate", "evaluate"]),
        (None, []),
    ],
)
def test_a_step_of_the_demo_depends_on_the_packages_that_it_uses(tmp_path, package, again):
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "demo" / "run.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=shutil.ignore_patterns("tests", "*.pyc"))
    keys = []
    for _ in range(2):
        steps = demo.Steps(tmp_path, tmp_path / "packages")
        keys.append([steps.key(command) for command in COMMANDS])
        if package is not None:
            (tmp_path / "packages" / package / "src" / "changed.py").write_text("changed = True\n")
    changed = [command.split()[1] for command, *pair in zip(COMMANDS, *keys, strict=True) if pair[0] != pair[1]]
    assert changed == again
