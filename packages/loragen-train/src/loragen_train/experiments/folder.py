"""The folder of an experiment: how it is named, what says how it was made, and where a run resumes from.

<output_dir>/<name>_YYYYMMDD_HHMMSS/config.yaml                    the full configuration, with its provenance
                                    checkpoints/                   Lightning checkpoints: the best, last.ckpt, and where
                                                                   held-out tasks are watched start.ckpt
                                    csv_logs/metrics.csv           metrics by step and epoch
                                    tensorboard_logs/, swanlab_logs/
                                    results/validation.json        errors by module and task
                                    results/final_model/           the bundle, and the means of the training tasks
                                    failed.txt                     why the training is not to be continued
"""

import logging
import platform
import subprocess
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from loragen_infer.files import atomic_file

from loragen_train.configs.fit import FitConfig
from loragen_train.errors import LoragenTrainError

__all__ = [
    "FAILED",
    "FINAL_MODEL",
    "LAST_CHECKPOINT",
    "START_CHECKPOINT",
    "check_unchanged",
    "describe_versions",
    "differences",
    "find_unfinished",
    "make_experiment_folder",
    "mark_failed",
    "recorded_provenance",
    "write_config",
]

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
START_CHECKPOINT = Path("checkpoints") / "start.ckpt"
FINAL_MODEL = Path("results") / "final_model"
FAILED = Path("failed.txt")
"""Says why a training is not to be continued."""
# What a training may be continued with, since it decides nothing of its result.
_FREE_TO_CHANGE = (
    "data.cache_dir",
    "data.cache_tokenized",
    "training.num_workers",
    "training.checkpoint_every_n_steps",
)
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
    """Make a folder that no other run has, even one started in the same second."""
    stem = f"{name}_{datetime.now():%Y%m%d_%H%M%S}"
    folder, number = output_dir / stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = output_dir / f"{stem}_{number}"
        except OSError as error:
            raise LoragenTrainError(f"{folder} cannot be made: {error.strerror}; choose another output_dir.") from error


def write_config(folder: Path, config: FitConfig, provenance: dict[str, Any]) -> None:
    """Write ``config.yaml``, which ``fit --config`` takes to repeat the run."""
    content = {**config.record(), "provenance": provenance}
    with atomic_file(folder / "config.yaml") as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def recorded_provenance(folder: Path) -> dict[str, Any]:
    """Return the provenance in ``config.yaml`` of an experiment; empty where it has none."""
    return _read_config(folder).get("provenance") or {}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no keys and values")  # damaged, as the others are
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LoragenTrainError(f"{folder / 'config.yaml'} cannot be read ({error}); resume needs it.") from error
    return content


def describe_versions() -> dict[str, str | None]:
    """The versions of what takes part in a training, and the git commit of the working folder, if it has one."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        commit = None
    versions = {package: version(package) for package in _PACKAGES}
    return {**versions, "python": platform.python_version(), "git_commit": commit}


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Name what two nested mappings differ in, key by key.

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


def mark_failed(folder: Path, reason: str) -> None:
    """Note that the experiment is not to be continued, and why."""
    with atomic_file(folder / FAILED) as part:
        part.write_text(reason + "\n", encoding="utf-8")


def find_unfinished(resume: str, output_dir: Path, name: str) -> Path | None:
    """Return the experiment folder that ``--resume`` means.

    ``auto`` means the newest experiment of this name that has a checkpoint, no final model and did not fail, or None;
    anything else is the path of an experiment folder or of its last.ckpt.

    Raises:
        LoragenTrainError: The path holds no checkpoint, or its run is finished, or has failed.
    """
    if resume == "auto":
        folders = sorted(output_dir.glob(f"{name}_????????_??????*"), reverse=True)
        return next((folder for folder in folders if _why_not_to_continue(folder) is None), None)
    path = Path(resume)
    folder = path.parent.parent if path.is_file() else path
    if path.is_file() and path.name != LAST_CHECKPOINT.name:
        raise LoragenTrainError(
            f"--resume {resume} holds weights only; give {folder / LAST_CHECKPOINT}, or the experiment folder."
        )
    if (reason := _why_not_to_continue(folder)) is not None:
        raise LoragenTrainError(f"--resume {resume}{reason}")
    return folder


def _why_not_to_continue(folder: Path) -> str | None:
    if not (folder / LAST_CHECKPOINT).is_file():
        return f" holds no {LAST_CHECKPOINT}; give an experiment folder or auto."
    model = folder / FINAL_MODEL
    if (folder / FAILED).is_file():
        reason = (folder / FAILED).read_text(encoding="utf-8").strip()
        kept = f" What was best by then is in {model}." if model.is_dir() else ""
        return f": this experiment has failed: {reason}{kept} Start a new one."
    if model.is_dir():
        return f": this experiment is finished; its model is {model}."
    return None


def check_unchanged(config: FitConfig, folder: Path, *, refuse: bool) -> None:
    """Refuse, or warn of, what differs from the configuration that the experiment was begun with."""
    before, now = _read_config(folder), config.record()
    changes = [
        difference
        for section in ("data", "model", "training")
        for difference in differences(before.get(section, {}), now[section], f"{section}.")
        if not difference.startswith(_FREE_TO_CHANGE)
    ]
    if changes and refuse:
        raise LoragenTrainError(
            f"{folder} was begun with another configuration: {'; '.join(changes)}. Continue it all the same with "
            f"--resume {folder}, or begin anew without --resume."
        )
    for change in changes:
        logger.warning("Resuming with a changed configuration: %s.", change)
