"""Misuse of the commands: one clear sentence each, the right exit code, no traceback."""

import subprocess
from pathlib import Path

import pytest
from quick_start import Workspace


def assert_one_sentence(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    said = [line for line in done.stderr.splitlines() if "error:" in line]
    assert done.returncode == exit_code, done.stderr
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in said[0] for word in words), said[0]


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ("--model nowhere --prompt x", 1, ["nowhere", "does not exist"]),
        ("--model config --prompt x", 1, ["config", "generator.safetensors"]),
        ("--model experiments/zoo_* --prompt-file empty.txt", 1, ["empty.txt", "empty"]),
        ("--model experiments/zoo_* --prompt ' '", 1, ["no text"]),
        ("--model experiments/zoo_*", 2, ["--prompt"]),
    ],
)
def test_generate(workspace: Workspace, options: str, exit_code: int, words: list[str]) -> None:
    (workspace.path / "empty.txt").write_text("\n", encoding="utf-8")
    done = workspace.run(f"loragen-infer generate {options} --output unwanted")
    assert_one_sentence(done, exit_code, *words)
    assert not (workspace.path / "unwanted").exists()


def test_generate_does_not_overwrite(workspace: Workspace) -> None:
    done = workspace.run("loragen-infer generate --model experiments/zoo_* --prompt x --output my-adapter")
    assert_one_sentence(done, 1, "my-adapter", "exists")


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ("--training.max_epoch 3", 2, ["max_epoch", "training.max_epochs"]),
        ("--training.max_epochs many", 2, ["max_epochs", "int", "many"]),
        ("--training.learning_rate -1", 2, ["training.learning_rate", "-1"]),
        ("--config nowhere.yaml", 2, ["nowhere.yaml"]),
        ("--config misspelt.yaml", 2, ["misspelt.yaml", "modle", "model"]),
        ("--data.zoo nowhere", 1, ["nowhere", "zoo.json"]),
        (
            "--data.zoo null --data.tasks '[{name: x, checkpoint_dir: zoo}]' --data.prompts_dir nowhere",
            1,
            ["nowhere/train_prompts.jsonl"],
        ),
        (
            "--data.zoo null --data.tasks '[{name: x, checkpoint_dir: zoo}]' --data.prompts_dir emptied",
            1,
            ["emptied/train_prompts.jsonl", "empty"],
        ),
        ("--data.tasks '[{name: sums, checkpoint_dir: my_tasks}]'", 2, ["data.zoo", "data.tasks"]),
        ("--model.max_seq_len 512", 1, ["600", "512"]),
    ],
)
def test_fit(workspace: Workspace, options: str, exit_code: int, words: list[str]) -> None:
    (workspace.path / "misspelt.yaml").write_text("modle: {hidden_dim: 3}\n", encoding="utf-8")
    (workspace.path / "emptied").mkdir(exist_ok=True)
    (workspace.path / "emptied/train_prompts.jsonl").touch()
    experiments = sorted((workspace.path / "experiments").iterdir())
    done = workspace.run(f"loragen-train fit --config config/generator_config.yaml {options}")
    assert_one_sentence(done, exit_code, *words)
    assert sorted((workspace.path / "experiments").iterdir()) == experiments


def test_fit_on_a_folder_without_lora(workspace: Workspace) -> None:
    tasks = "[{name: sums, checkpoint_dir: my_tasks, prompts: my_tasks/sums.jsonl}]"
    options = f"--data.zoo null --data.tasks '{tasks}'"
    done = workspace.run(f"loragen-train fit --config config/generator_config.yaml {options}")
    assert_one_sentence(done, 1, "my_tasks")


def test_a_truncated_checkpoint_is_named(workspace: Workspace, tmp_path: Path) -> None:
    workspace.run(f"cp -r zoo {tmp_path}/zoo")
    broken = sorted(tmp_path.glob("zoo/adapters/sums/*/adapter_model.safetensors"))[0]
    broken.write_bytes(broken.read_bytes()[:5000])
    done = workspace.run(f"loragen-train fit --config config/generator_config.yaml --data.zoo {tmp_path}/zoo")
    assert_one_sentence(done, 1, str(broken.parent))


def test_a_truncated_bundle_is_named(workspace: Workspace, tmp_path: Path) -> None:
    bundle = (workspace.experiment / "results/final_model/generator.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(bundle[: len(bundle) // 2])
    done = workspace.run(f"loragen-infer generate --model {tmp_path}/cut.safetensors --prompt x --output unwanted")
    assert_one_sentence(done, 1, "cut.safetensors")


def test_collect_with_other_settings_on_the_same_folder(workspace: Workspace) -> None:
    done = workspace.run("loragen-train collect --config config/collect.yaml --lora.r 8")
    assert_one_sentence(done, 1, "zoo/adapters/sums", "lora")
    done = workspace.run(
        "loragen-train collect --config config/collect.yaml --base-model nowhere/at/all --output-dir z"
    )
    assert_one_sentence(done, 1, "nowhere/at/all")


def test_verbose_shows_the_traceback(workspace: Workspace) -> None:
    done = workspace.run("loragen-infer generate --model nowhere --prompt x --output unwanted --verbose")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
