"""Groups of adapters that are trained at once: which belong together, which were begun, and what becomes of them."""

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from lora_tokenizer import read_adapter
from lora_tokenizer.names import join_name
from loragen_infer.adapters import AdapterStack
from loragen_infer.files import atomic_folder, write_json
from loragen_infer.zoo import INITIAL_NAME
from safetensors.torch import save_file

from loragen_train.configs.collect import CollectConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo import records
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.items import AdapterTask
from loragen_train.zoo.train_lora import TrainedAdapters, train_adapters

__all__ = ["begun_groups", "plan_groups", "remove_group", "train_group"]

logger = logging.getLogger(__name__)

_BEGUN = "begun.json"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def plan_groups(mean_lengths: Mapping[str, float], size: int) -> list[list[str]]:
    """Return the names of tasks in groups of at most ``size``, those whose samples are of like length together, so that
    little is padded."""
    ordered = sorted(mean_lengths, key=lambda name: mean_lengths[name])
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def begun_groups(unfinished: Path) -> dict[Path, list[str]]:
    """Return the folders below ``unfinished`` of trainings that were begun, with the names of their tasks."""
    found = {}
    for file in sorted(unfinished.glob(f"adapters.*/{_BEGUN}")):
        try:
            found[file.parent] = list(json.loads(file.read_text(encoding="utf-8"))["tasks"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # whoever is to train its first task next finds it and starts over
    return found


def train_group(
    tasks: Sequence[AdapterTask],
    config: CollectConfig,
    output_dir: Path,
    frozen: FrozenModel,
    fabric: Fabric,
    *,
    num_steps: int,
) -> dict[str, str]:
    """Train the adapters of ``tasks`` at once and write their folders; return what went wrong, by task.

    Goes on with what lies in ``unfinished/``, if it was begun with the same tasks, settings and samples.
    """
    folder = output_dir / "unfinished" / tasks[0].folder.relative_to(output_dir).as_posix().replace("/", ".")
    begun = {
        "tasks": {task.name: task.decided_by for task in tasks},
        "precision": records.decide_precision(config, output_dir),
        "num_steps": num_steps,
    }
    _begin(folder, begun)
    frozen.choose_attention([items for task in tasks for items in (task.train, task.test)])
    initial = read_adapter(output_dir / INITIAL_NAME)
    trained = train_adapters(tasks, frozen, config, initial=initial, num_steps=num_steps, folder=folder, fabric=fabric)
    failures = {}
    judged = [] if all(trained.diverged) else frozen.judge(trained.last, [task.test for task in tasks])
    for index, task in enumerate(tasks):
        if trained.diverged[index]:
            failures[task.name] = (
                f"The training of {task.name} diverged; lower training.learning_rate, which is "
                f"{config.training.learning_rate}."
            )
        elif not task.folder.is_dir():  # there is one where a process ended between two tasks of its group
            record = {
                **task.decided_by,
                "precision": begun["precision"],
                "quality": None if (quality := judged[index]) is None else asdict(quality),
            }
            record |= _work(index, tasks, trained, config.training.save_every)
            _write_adapter(task.folder, index, trained.checkpoints, output_dir / INITIAL_NAME, record)
            logger.info("%s", _summary(task.name, record))
    remove_group(folder)
    return failures


def remove_group(folder: Path) -> None:
    """Remove the folder of a training that has come to its end."""
    shutil.rmtree(folder)
    with suppress(OSError):  # the folders of other processes may be beside it, also from this moment on
        folder.parent.rmdir()


def _begin(folder: Path, begun: Mapping[str, Any]) -> None:
    file = folder / _BEGUN
    try:
        is_same = records.read_record(file) == begun
    except LoragenTrainError:
        is_same = False
    if is_same:
        return
    if folder.is_dir():
        logger.warning("%s was begun with other settings or samples, or is damaged; it starts over.", folder)
        shutil.rmtree(folder)
    write_json(file, begun)


def _work(index: int, tasks: Sequence[AdapterTask], trained: TrainedAdapters, save_every: int) -> dict[str, Any]:
    """What the training of one adapter took, its share of the group's time being that of its tokens, and its losses."""
    share = trained.num_tokens[index] / sum(trained.num_tokens)
    losses = [of_step[index] for of_step in trained.losses]
    steps = range(save_every, len(losses) + 1, save_every)
    return {
        "seconds": round(share * trained.seconds, 1),
        "cpu_seconds": round(share * trained.cpu_seconds, 1),
        "num_tokens": trained.num_tokens[index],
        "tokens_per_second": round(sum(trained.num_tokens) / trained.seconds, 1),
        "trained_with": [task.name for task in tasks],
        "loss": [{"step": step, "loss": sum(losses[step - save_every : step]) / save_every} for step in steps],
    }


def _summary(name: str, record: Mapping[str, Any]) -> str:
    speed = f"{name}: {record['seconds']:.0f} s at {record['tokens_per_second']:.0f} tokens/s"
    quality = record["quality"]
    if quality is None:
        return f"{speed}."
    return f"{speed}; NLL per response token {quality['nll']:.3f}, without the adapter {quality['base_nll']:.3f}."


def _write_adapter(
    folder: Path, index: int, checkpoints: Mapping[int, AdapterStack], initial: Path, record: Mapping[str, Any]
) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    with atomic_folder(folder) as part:
        for step, stack in checkpoints.items():
            checkpoint = part / f"checkpoint-{step}"
            checkpoint.mkdir()
            tensors = {
                join_name(module, f"{factor}.weight"): of_factor[module][index].clone()
                for factor, of_factor in (("lora_A", stack.a_Kri), ("lora_B", stack.b_Kor))
                for module in of_factor
            }
            save_file(tensors, checkpoint / _WEIGHTS, metadata={"format": "pt"})
            shutil.copyfile(initial / _CONFIG, checkpoint / _CONFIG)
        write_json(part / "training.json", {**record, "versions": versions})
