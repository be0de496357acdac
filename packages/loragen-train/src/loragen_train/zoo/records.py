"""What a zoo keeps about itself, so that it is continued only as it was begun.

    <output_dir>/base_model.json                which base model, and a hash of its weights
    <output_dir>/initial_adapter/settings.json  what decided the initialisation, and the precision of the trainings
    <output_dir>/adapters/<task>/training.json  settings, loss curve, speed

One process at a time works on a zoo: the lock is the system's, which lets go of it when its holder dies.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from loragen_infer.files import write_json
from torch import nn

from loragen_train.configs.collect import CollectConfig, CollectTask, Precision
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo.train_lora import faster_precision

__all__ = [
    "check_base_model",
    "check_settings",
    "decide_precision",
    "only_process",
    "read_record",
    "shared_settings",
    "task_settings",
]

logger = logging.getLogger(__name__)


@contextmanager
def only_process(output_dir: Path) -> Iterator[None]:
    """Hold the lock of a zoo.

    Raises:
        LoragenTrainError: Another process holds it, or the folder cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".collect.lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LoragenTrainError(
            f"Another process is collecting into {output_dir}; wait for it, or choose another output_dir."
        ) from error
    except OSError as error:
        raise LoragenTrainError(
            f"{output_dir} cannot be written: {error.strerror or error}; choose another output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()


def shared_settings(config: CollectConfig) -> dict[str, Any]:
    """Return what decides the initialisation."""
    return {"base_model": config.base_model, "lora": asdict(config.lora), "seed": config.seed}


def task_settings(config: CollectConfig, task: CollectTask) -> dict[str, Any]:
    """Return what decides the weights of a task's adapter."""
    described = asdict(task)
    # Only where they are chosen, so that a zoo of before these keys existed can be continued.
    for key, default in (("prompt_column", None), ("response_column", None), ("split", "train")):
        if described[key] == default:
            del described[key]
    return {**shared_settings(config), "training": asdict(config.training), "task": described}


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        LoragenTrainError: It cannot be read, or holds something else.
    """
    way_out = f"remove {path.parent} to have it made again, or choose another output_dir"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoragenTrainError(f"{path} cannot be read: {error.strerror or error}; {way_out}.") from error
    except (ValueError, RecursionError) as error:
        raise LoragenTrainError(f"{path} is damaged ({str(error).splitlines()[0]}); {way_out}.") from error
    if not isinstance(record, dict):
        raise LoragenTrainError(f"{path} is damaged (it holds no JSON object); {way_out}.")
    return record


def check_settings(folder: Path, record_name: str, wanted: Mapping[str, Any]) -> None:
    """Compare what ``folder`` was made with, as its record says, with what is wanted now.

    Raises:
        LoragenTrainError: There is no record, it is damaged, or a setting differs.
    """
    file = folder / record_name
    if not file.is_file():
        raise LoragenTrainError(f"{folder} exists but was not written by collect; choose another output_dir.")
    found = read_record(file).get("settings")
    if not isinstance(found, dict):
        raise LoragenTrainError(
            f"{file} is damaged (it has no 'settings'); remove {folder} to have it made again, or choose another "
            "output_dir."
        )
    changed = next((key for key in wanted if found.get(key) != wanted[key]), None)
    if changed is not None:
        name, was, now = _first_difference(changed, found.get(changed), wanted[changed])
        raise LoragenTrainError(
            f"{folder} was made with other settings ({name}: {was}, and now {now}); remove it or choose another "
            "output_dir."
        )


def _first_difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            if was.get(key) != now.get(key):
                return _first_difference(f"{name}.{key}", was.get(key), now.get(key))
    return name, was, now


def check_base_model(output_dir: Path, source: str, model: nn.Module) -> None:
    """Note the weights that a zoo is trained on, or see that they are still those that it noted.

    Args:
        output_dir: The zoo.
        source: The base model as the configuration names it.
        model: The loaded model, without adapters.

    Raises:
        LoragenTrainError: They are others.
    """
    file = output_dir / "base_model.json"
    digest = _hash_weights(model)
    if not file.is_file():
        write_json(file, {"base_model": source, "weights_sha256": digest})
        return
    noted = read_record(file)
    if noted.get("weights_sha256") != digest:
        raise LoragenTrainError(
            f"The base model {source!r} is not what {output_dir} was begun with: its weights have changed since "
            f"{file} was written (for {noted.get('base_model')!r}); restore them or choose another output_dir."
        )


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def decide_precision(config: CollectConfig, output_dir: Path) -> Precision:
    """Return ``fp32`` or ``bf16``: the one chosen, or for ``auto`` the one that was measured once for this zoo."""
    if config.training.precision != "auto":
        return config.training.precision
    file = output_dir / "initial_adapter" / "settings.json"
    record = read_record(file)
    for known in ("fp32", "bf16"):
        if record.get("precision") == known:
            return known
    measured = faster_precision()
    logger.info("training.precision is auto: measured, and kept for this zoo: %s.", measured)
    write_json(file, {**record, "precision": measured})
    return measured
