"""The command line ``loragen-train``: collect, prepare and fit."""

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
    source_help = "JSON/JSONL files, one task each; a task is called after its file, or NAME with NAME=FILE."
    parser.add_argument("--source", nargs="+", required=True, help=source_help)
    parser.add_argument("--output-dir", default="data", help="Folder to write to.")
    parser.add_argument("--samples-per-prompt", type=int, default=4, help="Number of samples joined to one prompt.")
    parser.add_argument("--test-ratio", type=float, default=0.1, help="Share of the prompts kept for validation.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the combinations and of the split.")


def _prepare(options: Namespace) -> None:
    from loragen_train.prepare import prepare

    manifest = prepare(
        options.source,
        Path(options.output_dir),
        samples_per_prompt=options.samples_per_prompt,
        test_ratio=options.test_ratio,
        seed=options.seed,
    )
    for name, task in manifest["tasks"].items():
        counts = f"{task['num_train_prompts']} train and {task['num_val_prompts']} validation prompts"
        print(f"{name}: {task['num_samples']} samples, {counts}")


def _fit(config: FitConfig) -> None:
    from loragen_train.fit import fit

    print(fit(config))


if __name__ == "__main__":
    sys.exit(main())
