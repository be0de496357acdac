"""The folder of an experiment: how it is named, what says how it was made, and where a run resumes from.

<output_dir>/<name>_YYYYMMDD_HHMMSS/config.yaml                    the full configuration, with its provenance
                                    checkpoints/                   Lightning checkpoints: the best, and last.ckpt
                                    csv_logs/metrics.csv           metrics by step and epoch
                                    tensorboard_logs/, swanlab_logs/
                                    results/validation.json        errors by module and task
                                    results/final_model/           the bundle
"""

import hashlib
import platform
import shutil
import subprocess
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from loragen_infer.files import atomic_file

from loragen_train.configs.fit import FitConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["FINAL_MODEL", "LAST_CHECKPOINT", "describe_versions", "find_last", "make_experiment_folder", "write_config"]

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
FINAL_MODEL = Path("results") / "final_model"

_PACKAGES = (
    "hyperconv",
    "lightning",
    "lora-tokenizer",
    "loragen-infer",
    "loragen-train",
    "sentence-transformers",
    "torch",
)


def make_experiment_folder(output_dir: Path, name: str) -> Path:
    """Make a folder that no other run has, even one started in the same second.

    Raises:
        LoragenTrainError: The folder cannot be made.
    """
    stem = f"{name}_{datetime.now():%Y%m%d_%H%M%S}"
    for suffix in ("", *(f"_{number}" for number in range(2, 1000))):
        folder = output_dir / (stem + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise LoragenTrainError(f"{folder} cannot be made: {error.strerror}; choose another output_dir.") from error
        return folder
    raise LoragenTrainError(f"{output_dir} has a thousand experiments called {stem}; choose another name.")


def write_config(folder: Path, config: FitConfig, provenance: dict[str, Any]) -> None:
    """Write ``config.yaml``, which ``fit --config`` takes to repeat the run."""
    content = {**asdict(config), "provenance": provenance}
    with atomic_file(folder / "config.yaml") as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def describe_versions() -> dict[str, str | None]:
    """The versions of what takes part in a training, and the git commit of the working folder, if it has one."""
    versions: dict[str, str | None] = {package: version(package) for package in _PACKAGES}
    return {**versions, "python": platform.python_version(), "git_commit": _git_commit()}


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    try:
        head = _output(git, "rev-parse", "HEAD")
        return head + (" with changes" if _output(git, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _output(program: str, *arguments: str) -> str:
    finished = subprocess.run(  # noqa: S603  # git, with arguments from above
        [program, *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return finished.stdout.strip()


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Name what two provenances differ in, key by key.

    Example:
        >>> differences({"versions": {"torch": "2.12", "python": "3.11"}}, {"versions": {"torch": "2.13"}})
        ['versions.torch was 2.12 and is 2.13', 'versions.python was 3.11 and is None']
    """
    found = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old} and is {new}")
    return found


def digest(parts: list[str]) -> str:
    """SHA-256 over several texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find_last(resume: str, output_dir: Path, name: str) -> Path | None:
    """Return the experiment folder that ``--resume`` means, or None where ``auto`` finds no unfinished one.

    Args:
        resume: ``auto`` for the newest experiment of this name that has a checkpoint and no final model, or the path of
            an experiment folder or of its last.ckpt.
        output_dir: Where experiments are.
        name: Name of the experiment.

    Raises:
        LoragenTrainError: The path holds no checkpoint, or its run is finished.
    """
    if resume == "auto":
        folders = sorted(output_dir.glob(f"{name}_????????_??????*"), reverse=True)
        return next((folder for folder in folders if _is_unfinished(folder)), None)
    path = Path(resume)
    folder = path.parent.parent if path.is_file() else path
    if not (folder / LAST_CHECKPOINT).is_file():
        raise LoragenTrainError(f"--resume {resume} holds no {LAST_CHECKPOINT}; give an experiment folder or auto.")
    if (folder / FINAL_MODEL).is_dir():
        raise LoragenTrainError(f"--resume {resume}: this experiment is finished; its model is {folder / FINAL_MODEL}.")
    return folder


def _is_unfinished(folder: Path) -> bool:
    return (folder / LAST_CHECKPOINT).is_file() and not (folder / FINAL_MODEL).is_dir()
