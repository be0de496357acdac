"""The command ``loragen-train import``."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

from loragen_train.configs.importing import ImportConfig

__all__ = ["IMPORT"]


def _add_options(parser: ArgumentParser) -> None:
    skip_help = "Note what cannot be used in zoo.json, as a task's failure, instead of stopping without a zoo."
    parser.add_argument("--skip-unusable", action="store_true", help=skip_help)
    parser.add_argument("--overwrite", action="store_true", help="Replace the zoo.json that is there.")
    parser.add_argument("--json", action="store_true", help="Print what is in the zoo as JSON.")


def _import(config: ImportConfig, options: Namespace) -> None:
    from loragen_infer.words import counted
    from loragen_infer.zoo import MANIFEST_NAME

    from loragen_train.zoo.importing import import_zoo

    manifest = import_zoo(config, skip_unusable=options.skip_unusable, overwrite=options.overwrite)
    file = Path(config.output_dir) / MANIFEST_NAME
    failures = {task.name: task.failure for task in manifest.tasks if task.failure is not None}
    num_adapters = sum(len(task.adapters) for task in manifest.tasks)
    if options.json:
        described = {
            "zoo": str(file),
            "base_model": manifest.base_model,
            "lora": manifest.lora,
            "canonical": manifest.canonical,
            "num_tasks": len(manifest.tasks),
            "num_held_out": len(manifest.held_out_tasks),
            "num_adapters": num_adapters,
            "failures": failures,
        }
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return
    failed = f"; {counted(len(failures), 'task')} failed" if failures else ""
    held_out = f", {len(manifest.held_out_tasks)} of them held out" if manifest.held_out_tasks else ""
    print(
        f"{file}: {counted(len(manifest.tasks), 'task')}{held_out}, {counted(num_adapters, 'adapter')} of "
        f"{manifest.base_model}, canonical: {manifest.canonical}{failed}"
    )


IMPORT = Command(
    name="import",
    help="make a zoo of adapters that exist already",
    description="Check adapters from folders, files or the hub, and write zoo.json with the prompts of their tasks, "
    "from a table or from two folders. Adapters stay where they are; of the hub only LoRA files are downloaded.",
    example="loragen-train import --table tasks.csv --output-dir zoo --num-test 32",
    run=_import,
    config_class=ImportConfig,
    add_options=_add_options,
)
