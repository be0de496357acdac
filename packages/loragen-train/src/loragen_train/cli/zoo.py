"""The commands of ``loragen-train`` around ``fit``: collect, prepare, analyze, test-tokenizer and report.

Imports nothing heavy, so that ``--help`` is fast.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

from loragen_train.configs.collect import CollectConfig
from loragen_train.errors import LoragenTrainError

__all__ = ["ANALYZE", "COLLECT", "PREPARE", "REPORT", "TEST_TOKENIZER"]


def _say(line: str) -> None:
    # A name of a file may hold bytes that are no text.
    sys.stdout.write(f"{line.encode(errors='replace').decode()}\n")


def _say_json(value: Any) -> None:
    _say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _add_collect_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print folder, time and speed of each task as JSON.")


def _collect(config: CollectConfig, options: Namespace) -> None:
    from loragen_train.zoo.collect import collect
    from loragen_train.zoo.records import read_record

    folders = collect(config)
    if options.json:
        keys = ("seconds", "cpu_seconds", "tokens_per_second", "loss")
        records = {folder: read_record(folder / "training.json") for folder in folders}
        _say_json(
            [
                {"task": folder.name, "folder": str(folder), **{key: record.get(key) for key in keys}}
                for folder, record in records.items()
            ]
        )
        return
    for folder in folders:
        _say(str(folder))


COLLECT = Command(
    name="collect",
    help="train LoRA checkpoints for several tasks",
    description="Train a zoo of LoRA adapters, all from one initialisation. Tasks that are finished are kept, one that "
    "was interrupted goes on after its last checkpoint. Prints the folder of each task.",
    example="loragen-train collect --config config/collect.yaml",
    run=_collect,
    config_class=CollectConfig,
    add_options=_add_collect_options,
)


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
    from loragen_train.prompts.combine import prepare

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
        _say_json(manifest)
        return
    for name, task in manifest["tasks"].items():
        counts = f"{task['num_train_prompts']} train and {task['num_val_prompts']} validation prompts"
        _say(f"{name}: {task['num_samples']} samples, {counts}")


PREPARE = Command(
    name="prepare",
    help="write train_prompts.jsonl and val_prompts.jsonl",
    description="Combine the samples of each task into prompts, and split the prompts into two files.",
    example="loragen-train prepare --source zoo/train/gcd.jsonl zoo/train/lcm.jsonl --output-dir data",
    run=_prepare,
    add_options=_add_prepare_options,
)


def _number_or_auto(text: str | int) -> int | str:
    if text == "auto" or (str(text).isdigit() and int(text) > 0):
        return "auto" if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 nor 'auto'")


def _add_reading_options(parser: ArgumentParser) -> None:
    tokens_help = "Number of tokens that there may be, or auto for as many as it takes."
    parser.add_argument("--max-tokens", type=_number_or_auto, default=512, help=tokens_help)
    parser.add_argument("--token-dim", type=int, default=384, help="Values per token.")
    parser.add_argument("--lora-alpha", type=float, help="Alpha, where a checkpoint does not say it.")
    parser.add_argument("--allow-bin", action="store_true", help="Read .bin files too (no code in them is run).")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def _reading_options(options: Namespace) -> dict[str, Any]:
    return {"lora_alpha": options.lora_alpha, "allow_bin": options.allow_bin}


def _add_analyze_options(parser: ArgumentParser) -> None:
    folder_help = "Folder of checkpoints; its sub-folders are the tasks."
    parser.add_argument("--checkpoint-dir", required=True, help=folder_help)
    parser.add_argument("--plot", metavar="DIR", help="Also write similarity.png and projection.png to this folder.")
    _add_reading_options(parser)


def _analyze(options: Namespace) -> None:
    from loragen_train.analysis.analyze import analyze_zoo
    from loragen_train.analysis.views import as_text, draw_analysis

    zoo = analyze_zoo(
        Path(options.checkpoint_dir),
        max_tokens=options.max_tokens,
        token_dim=options.token_dim,
        read_options=_reading_options(options),
    )
    plots = [] if options.plot is None else draw_analysis(zoo, Path(options.plot))
    if options.json:
        _say_json({**zoo.to_json(), "plots": [str(path) for path in plots]})
        return
    _say(as_text(zoo))
    for path in plots:
        _say(str(path))


ANALYZE = Command(
    name="analyze",
    help="look into a zoo of checkpoints",
    description="Print what the checkpoints below a folder hold and how alike they are: modules, sizes, norms, spread, "
    "similarity between checkpoints and tasks, outliers. Files that cannot be read are named; they stop nothing.",
    example="loragen-train analyze --checkpoint-dir zoo/adapters --max-tokens 600 --plot plots",
    run=_analyze,
    add_options=_add_analyze_options,
)


def _add_test_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="PEFT folder, .safetensors, .pt, .pth, .ckpt or .bin file.")
    _add_reading_options(parser)


def _test_tokenizer(options: Namespace) -> None:
    from loragen_train.analysis.round_trip import try_tokenizer

    found = try_tokenizer(
        Path(options.checkpoint),
        max_tokens=options.max_tokens,
        token_dim=options.token_dim,
        read_options=_reading_options(options),
    )
    if options.json:
        _say_json(found)
    if not found["fits"]:
        width = found["fitting_token_dim"]
        also = "" if width is None else f"; it would fit with --token-dim {width}, too"
        raise LoragenTrainError(f"{options.checkpoint}: {found['error']}{also}.")
    if not found["ok"]:
        lost = ", ".join(key for key in ("tokens_equal", "files_equal", "layout_equal") if not found[key])
        raise LoragenTrainError(f"{options.checkpoint} is not the same after a round trip ({lost}); please report it.")
    if not options.json:
        rows, per_row, width = found["grid"]
        limit = "" if found["max_tokens"] == "auto" else f" of {found['max_tokens']:,}"
        _say(
            f"{options.checkpoint}: {found['num_modules']} modules, r {'/'.join(map(str, found['ranks']))}, "
            f"{found['num_parameters']:,} values\n"
            f"{found['num_tokens']:,}{limit} tokens of {width} ({rows} rows of {per_row}), padding "
            f"{found['padding']:.2%}\n"
            "Equal to the bit after encoding and decoding, and after writing and reading the files."
        )


TEST_TOKENIZER = Command(
    name="test-tokenizer",
    help="see whether a checkpoint fits the token grid and survives it",
    description="Turn a checkpoint into tokens and back, through the files that PEFT loads too, and compare to the "
    "bit. If it does not fit: exit code 1, and what would fit.",
    example="loragen-train test-tokenizer --checkpoint zoo/adapters/gcd/checkpoint-48 --max-tokens 600",
    run=_test_tokenizer,
    add_options=_add_test_options,
)


def _add_report_options(parser: ArgumentParser) -> None:
    plots_help = "Folder of the PNG files; by default the name of the page, with _plots for its suffix."
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="Folders that fit has written.")
    parser.add_argument("--output", default="report.html", help="The page to write.")
    parser.add_argument("--plots", metavar="DIR", help=plots_help)
    parser.add_argument("--json", action="store_true", help="Print the paths and the metrics as JSON.")


def _report(options: Namespace) -> None:
    from loragen_train.experiments.report import write_report

    plots = None if options.plots is None else Path(options.plots)
    written = write_report([Path(folder) for folder in options.experiments], Path(options.output), plots=plots)
    if options.json:
        _say_json(written)
        return
    for experiment in written["experiments"]:
        for sentence in experiment["missing"]:
            sys.stderr.write(f"{experiment['name']}: {sentence}\n")
    _say(written["report"])


REPORT = Command(
    name="report",
    help="show one or several trainings as a page with pictures",
    description="Write loss and metric curves, errors of every module and predicted against target values, several "
    "experiments side by side, as PNG files and one HTML page that needs nothing but itself. What an experiment does "
    "not have (yet) is named.",
    example="loragen-train report experiments/mine_20260101_120000 --output report.html",
    run=_report,
    add_options=_add_report_options,
)
