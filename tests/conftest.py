"""A user's workspace in which the README's quick start has been run, word by word, on real parts and small numbers."""

import shutil

import pytest
import yaml
from quick_start import ROOT, Workspace, readme_block, write_tasks


@pytest.fixture(scope="session")
def fresh_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The repository's config files with small numbers, and a user's three tasks."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    shutil.copytree(ROOT / "config", workspace.path / "config")
    write_tasks(workspace.path / "my_tasks")
    tasks = yaml.safe_load((ROOT / "config/collect.yaml").read_text(encoding="utf-8"))["tasks"]
    for task in tasks:
        task |= {"num_train": 24, "num_test": 4}
    workspace.change("collect.yaml", tasks=tasks, training__max_steps=6, training__save_every=3, training__keep_last=2)
    workspace.change("generator_config.yaml", training__max_epochs=5, data__cache_dir="cache")
    workspace.change("evaluate.yaml", tune_steps=2)
    return workspace


@pytest.fixture(scope="session")
def workspace(fresh_workspace: Workspace) -> Workspace:
    """The workspace after the four commands of the README's quick start."""
    commands = readme_block("quick-start").strip().splitlines()
    assert [command.split()[1] for command in commands] == ["collect", "fit", "generate", "evaluate"]
    for command in commands:
        done = fresh_workspace.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return fresh_workspace
