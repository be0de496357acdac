"""The command ``loragen-train collect``."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

from loragen_train.configs.collect import CollectConfig

__all__ = ["COLLECT"]


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="Print folder, time, speed and quality of each task as JSON."
    )


def _collect(config: CollectConfig, options: Namespace) -> None:
    from loragen_train.zoo.collect import TasksFailedError, collect

    try:
        _print(collect(config), as_json=options.json)
    except TasksFailedError as error:
        _print(error.folders, as_json=options.json)
        raise


def _print(folders: list[Path], *, as_json: bool) -> None:
    from loragen_train.zoo.records import read_record

    if not as_json:
        print("".join(f"{folder}\n" for folder in folders), end="")
        return
    keys = ("seconds", "cpu_seconds", "tokens_per_second", "quality", "loss")
    records = {folder: read_record(folder / "training.json") for folder in folders}
    described = [
        {"task": folder.name, "folder": str(folder), **{key: record.get(key) for key in keys}}
        for folder, record in records.items()
    ]
    print(json.dumps(described, indent=2))


COLLECT = Command(
    name="collect",
    help="train LoRA checkpoints for several tasks",
    description="Train a zoo of LoRA adapters, all from one initialisation, many at once. Tasks that are finished are "
    "kept, what was interrupted goes on after its last checkpoint, and a task that fails stops no other. Processes may "
    "share a zoo. Writes zoo.json, and prints the folder of each task.",
    example="loragen-train collect --config config/collect.yaml",
    run=_collect,
    config_class=CollectConfig,
    add_options=_add_options,
)
