"""The command ``loragen-train collect``."""

import json

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

from loragen_train.configs.collect import CollectConfig

__all__ = ["COLLECT"]


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="Print folder, time, speed and quality of each task as JSON."
    )


def _collect(config: CollectConfig, options: Namespace) -> None:
    from loragen_train.zoo.collect import collect
    from loragen_train.zoo.records import read_record

    folders = collect(config)
    if not options.json:
        print(*folders, sep="\n")
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
