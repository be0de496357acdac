"""What a zoo notes about its base model, its initialisation and its tasks, so that it is continued only as begun."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loragen_infer.files import write_json
from loragen_infer.zoo import INITIAL_NAME
from torch import nn
from torch.utils.benchmark import Timer

from loragen_train.configs.collect import CollectConfig, CollectTask, Precision
from loragen_train.errors import LoragenTrainError

__all__ = [
    "OtherSettingsError",
    "check_base_model",
    "check_settings",
    "decide_precision",
    "faster_precision",
    "hash_weights",
    "note_base_model",
    "num_folds_of_joint",
    "read_record",
    "samples_of_joint",
    "shared_settings",
    "task_settings",
    "tasks_of_joint",
]

logger = logging.getLogger(__name__)

_BASE_MODEL_FILE = "base_model.json"


def shared_settings(config: CollectConfig) -> dict[str, Any]:
    """Return what decides the initialisation."""
    return {"base_model": config.base_model, "lora": asdict(config.lora), "seed": config.seed}


def task_settings(config: CollectConfig, task: CollectTask) -> dict[str, Any]:
    """Return what decides the weights of a task's adapter."""
    described, training = asdict(task), asdict(config.training)
    for key in ("adapters_at_once", "tokens_per_pass", "gradient_checkpointing", "device_map"):
        del training[key]  # which change the weights by rounding at most
    # Who may see an adapter changes none of its weights.
    del described["own_adapter"]
    described["held_out"] = False
    # So that a zoo of before these keys existed can be continued.
    if task.split == "train":
        del described["split"]
    if config.training.too_long == "error":
        del training["too_long"]
    return {**shared_settings(config), "training": training, "task": described}


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise LoragenTrainError(
            f"{path} is missing or damaged ({error}); remove {path.parent} to have it made again, or choose another "
            "output_dir."
        ) from error


class OtherSettingsError(LoragenTrainError):
    """What is there was made with other settings than are wanted now."""

    def __init__(self, folder: Path, difference: str) -> None:
        super().__init__(
            f"{folder} was made with other settings ({difference}); remove it or choose another output_dir."
        )
        self.folder = folder
        self.difference = difference
        """The first one, which begins with the setting's name."""


def check_settings(record: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a folder that was made with other settings than are wanted now, as its ``record`` says.

    Raises:
        OtherSettingsError: It was.
        LoragenTrainError: There is no record, or it is damaged.
    """
    folder = record.parent
    if not record.is_file():
        raise LoragenTrainError(f"{folder} exists but was not written by collect; choose another output_dir.")
    noted = read_record(record).get("settings")
    found = {key: noted.get(key) for key in wanted} if isinstance(noted, dict) else {}
    difference = _first_difference("", found, dict(wanted))
    if difference is not None:
        raise OtherSettingsError(folder, difference)


def tasks_of_joint(folder: Path) -> list[str]:
    """Return the names of the tasks that the joint adapter (or that of a fold) in ``folder`` was trained on, as far as
    a record tells."""
    return list(samples_of_joint(folder))


def samples_of_joint(folder: Path) -> dict[str, str]:
    """Return, by those tasks, the SHA-256 of the file of samples of each."""
    tasks = _settings_of(folder).get("tasks")
    return tasks if isinstance(tasks, dict) else {}


def num_folds_of_joint(folder: Path) -> int:
    """Return how many folds the joint adapter in ``folder`` is the mean of; 1 for one that was trained as a whole."""
    noted = _settings_of(folder).get("joint_folds")
    return noted if isinstance(noted, int) else 1


def _settings_of(folder: Path) -> dict[str, Any]:
    record = folder / "training.json"
    settings = read_record(record).get("settings") if record.is_file() else None
    return settings if isinstance(settings, dict) else {}


def _first_difference(name: str, was: Any, now: Any) -> str | None:
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return None if was == now else f"{name}: {was}, and now {now}"
    inner = (_first_difference(f"{name}.{key}".lstrip("."), was.get(key), now.get(key)) for key in {**was, **now})
    return next((difference for difference in inner if difference is not None), None)


def check_base_model(output_dir: Path, name: str, digest: str, *, lies_at: str) -> None:
    """Refuse a base model of another ``name`` or with another ``digest`` of its weights than the zoo has noted."""
    file = output_dir / _BASE_MODEL_FILE
    noted = read_record(file) if file.is_file() else {"base_model": name, "weights_sha256": digest}
    if (noted.get("base_model"), noted.get("weights_sha256")) != (name, digest):
        what = "another name" if noted.get("weights_sha256") == digest else "other weights"
        raise LoragenTrainError(
            f"The base model {lies_at!r} is not what {output_dir} was begun with: {file} notes {what} (of "
            f"{noted.get('base_model')!r}); put that model back, or make another zoo."
        )


def note_base_model(output_dir: Path, name: str, digest: str) -> None:
    """Note the name of the base model and the hash of its weights, if nothing is noted yet."""
    file = output_dir / _BASE_MODEL_FILE
    if not file.is_file():
        write_json(file, {"base_model": name, "weights_sha256": digest})


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of all weights of ``model``."""
    digest = hashlib.sha256()
    for name, stored in sorted(model.state_dict().items()):
        # In whichever of the floating-point types they were loaded.
        value = stored.float() if stored.is_floating_point() else stored
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def decide_precision(config: CollectConfig, output_dir: Path) -> Precision:
    """Return ``fp32`` or ``bf16``: the one chosen, or for ``auto`` the one that was measured once for this zoo."""
    if config.training.precision != "auto":
        return config.training.precision
    file = output_dir / INITIAL_NAME / "settings.json"
    record = read_record(file)
    known: Precision | None = record.get("precision")
    if known is None:
        known = faster_precision()
        logger.info("training.precision is auto: measured, and kept for this zoo: %s.", known)
        write_json(file, {**record, "precision": known})
    return known


def faster_precision() -> Precision:
    """``bf16`` if a matrix product of the size of a small layer takes under 3/4 of the time in bfloat16."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    def seconds(dtype: torch.dtype) -> float:
        names = {"matrix": torch.ones(1024, 1024, dtype=dtype, device=device)}
        timer = Timer("(matrix @ matrix).sum()", globals=names, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=0.1).median)

    return "bf16" if seconds(torch.bfloat16) < 0.75 * seconds(torch.float32) else "fp32"
