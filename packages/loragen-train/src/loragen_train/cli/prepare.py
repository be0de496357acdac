"""The command ``loragen-train prepare``."""

import json

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command
from loragen_infer.words import counted

from loragen_train.configs.prepare import PrepareConfig

__all__ = ["PREPARE"]


def _add_options(parser: ArgumentParser) -> None:
    source_help = (
        "JSON/JSONL files, reasoning-gym:NAME, hf:DATASET/CONFIG or lm-eval:TASK, one task each; NAME=SOURCE names the "
        "task."
    )
    parser.add_argument("--source", nargs="+", required=True, help=source_help)
    parser.add_argument("--overwrite", action="store_true", help="Replace other prompts in the folder.")
    parser.add_argument("--json", action="store_true", help="Print the manifest instead of a line per task.")


def _prepare(config: PrepareConfig, options: Namespace) -> None:
    from loragen_train.prompts.combine import prepare, unused_samples

    manifest = prepare(options.source, config, overwrite=options.overwrite)
    if options.json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    for name, task in manifest["tasks"].items():
        unused = unused_samples(**{key: task[key] for key in ("num_duplicates", "num_test_examples", "num_left_over")})
        print(
            f"{name}: {counted(task['num_samples'], 'sample')}, {counted(task['num_train_prompts'], 'train prompt')} "
            f"and {counted(task['num_val_prompts'], 'validation prompt')}{unused}"
        )


PREPARE = Command(
    name="prepare",
    help="write train_prompts.jsonl and val_prompts.jsonl",
    description="Combine the samples of each task into prompts, and split the prompts into two files. Test examples of "
    "a zoo are left out.",
    example="loragen-train prepare --source zoo/train/gcd.jsonl zoo/train/lcm.jsonl --output-dir data",
    run=_prepare,
    config_class=PrepareConfig,
    add_options=_add_options,
)
