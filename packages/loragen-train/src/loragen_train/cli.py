"""The command line ``loragen-train``: collect, prepare and fit."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.command_line import Command, run_command_line

from loragen_train.collect_config import CollectConfig
from loragen_train.config import FitConfig

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (default: the process's) and return the exit code."""
    collect = Command(
        name="collect",
        help="train LoRA checkpoints for several tasks",
        description="Train a zoo of LoRA adapters, all from one initialisation; tasks that are finished are kept.",
        example="loragen-train collect --config config/collect.yaml",
        run=_collect,
        config_class=CollectConfig,
    )
    prepare = Command(
        name="prepare",
        help="write train_prompts.jsonl and val_prompts.jsonl",
        description="Combine the samples of each task into prompts, and split the prompts into two files.",
        example="loragen-train prepare --source zoo/train/gcd.jsonl zoo/train/lcm.jsonl --output-dir data",
        run=_prepare,
        add_options=_add_prepare_options,
    )
    fit = Command(
        name="fit",
        help="train the generator on checkpoints and prompts",
        description="Train the generator and write an experiment folder with the bundle.",
        example="loragen-train fit --config config/generator_config.yaml --training.max_epochs 200",
        run=_fit,
        config_class=FitConfig,
    )
    description = "Train a generator of LoRA adapters on a zoo of them."
    return run_command_line("loragen-train", description, [collect, prepare, fit], argv)


def _collect(config: CollectConfig) -> None:
    from loragen_train.collect import collect

    for folder in collect(config):
        print(folder)


def _add_prepare_options(parser: ArgumentParser) -> None:
    source_help = (
        "JSON/JSONL files, reasoning-gym:NAME or hf:DATASET/CONFIG, one task each; a task is called after its source, "
        "or NAME with NAME=SOURCE."
    )
    number_help = "Different samples to take of each source; reasoning-gym needs it, of others it is the most."
    response_help = "Column of the responses, which are counted and never written; if given, every row must have it."
    parser.add_argument("--source", nargs="+", required=True, help=source_help)
    parser.add_argument("--output-dir", default="data", help="Folder to write to.")
    parser.add_argument("--samples-per-prompt", type=int, default=4, help="Number of samples joined to one prompt.")
    parser.add_argument("--test-ratio", type=float, default=0.1, help="Share of the prompts kept for validation.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the combinations and of the split.")
    parser.add_argument("--num-samples", type=int, help=number_help)
    parser.add_argument("--prompt-column", help="Column of the prompts, if it is none of the usual ones.")
    parser.add_argument("--response-column", help=response_help)
    parser.add_argument("--split", default="train", help="Split to take of data sets of the hub.")
    parser.add_argument("--json", action="store_true", help="Print the manifest instead of a line per task.")


def _prepare(options: Namespace) -> None:
    from loragen_train.prepare import prepare

    manifest = prepare(
        options.source,
        Path(options.output_dir),
        samples_per_prompt=options.samples_per_prompt,
        test_ratio=options.test_ratio,
        seed=options.seed,
        num_samples=options.num_samples,
        prompt_column=options.prompt_column,
        response_column=options.response_column,
        split=options.split,
    )
    if options.json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    for name, task in manifest["tasks"].items():
        counts = f"{task['num_train_prompts']} train and {task['num_val_prompts']} validation prompts"
        print(f"{name}: {task['num_samples']} samples, {counts}")


def _fit(config: FitConfig) -> None:
    from loragen_train.fit import fit

    print(fit(config))


if __name__ == "__main__":
    sys.exit(main())
