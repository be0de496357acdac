"""The commands ``loragen-train analyze``, of a whole zoo, and ``test-tokenizer``, of one checkpoint."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command
from loragen_infer.words import counted

from loragen_train.configs.collect import check_positive
from loragen_train.errors import LoragenTrainError

__all__ = ["ANALYZE", "TEST_TOKENIZER"]


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How checkpoints are read and cut into tokens."""

    max_tokens: int | Literal["auto"] = 512
    """Number of tokens that there may be, or auto for as many as it takes."""
    token_dim: int = 384
    """Values per token."""
    lora_alpha: float | None = None
    """Alpha of all checkpoints, in place of what they say; needed where they do not, as Lightning's may not."""

    def __post_init__(self) -> None:
        check_positive("", **vars(self))


def _add_common_options(parser: ArgumentParser) -> None:
    parser.add_argument("--allow-bin", action="store_true", help="Read .bin files too (no code in them is run).")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def _add_analyze_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint-dir", required=True, help="Folder of checkpoints, whose sub-folders are tasks.")
    parser.add_argument("--plot", metavar="DIR", help="Also write similarity.png and projection.png to this folder.")
    _add_common_options(parser)


def _analyze(config: ReadingConfig, options: Namespace) -> None:
    from loragen_train.analysis.analyze import analyze_zoo
    from loragen_train.analysis.views import as_text, draw_analysis

    zoo = analyze_zoo(Path(options.checkpoint_dir), **asdict(config), allow_bin=options.allow_bin)
    plots = [] if options.plot is None else draw_analysis(zoo, Path(options.plot))
    if options.json:
        print(json.dumps({**zoo, "plots": [str(path) for path in plots]}, indent=2, ensure_ascii=False))
        return
    print(as_text(zoo), *plots, sep="\n")


ANALYZE = Command(
    name="analyze",
    help="look into a zoo of checkpoints",
    description="Print what the checkpoints below a folder hold and how alike they are: modules, sizes, norms, spread, "
    "similarity between checkpoints and tasks, outliers. Files that cannot be read are named; they stop nothing.",
    example="loragen-train analyze --checkpoint-dir zoo/adapters --max-tokens 600 --plot plots",
    run=_analyze,
    config_class=ReadingConfig,
    add_options=_add_analyze_options,
)


def _add_test_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="PEFT folder, .safetensors, .pt, .pth, .ckpt or .bin file.")
    _add_common_options(parser)


def _test_tokenizer(config: ReadingConfig, options: Namespace) -> None:
    from lora_tokenizer import check_round_trip, inspect_adapter

    from loragen_train.analysis.analyze import size_of

    read_options = {"lora_alpha": config.lora_alpha, "allow_bin": options.allow_bin, "token_dim": config.token_dim}
    report = inspect_adapter(options.checkpoint, **read_options)
    size = size_of(report, config.max_tokens)
    content = {"checkpoint": options.checkpoint, **asdict(config), "fingerprint": report.fingerprint, **size}
    if options.json and not size["fits"]:
        print(json.dumps({**content, "ok": False}, indent=2, ensure_ascii=False))
    # Where it does not fit, this is the error that says what would.
    proof = check_round_trip(options.checkpoint, max_tokens=config.max_tokens, **read_options)
    equal = {name: getattr(proof, name) for name in ("tokens_equal", "files_equal", "layout_equal")}
    if options.json:
        print(json.dumps({**content, "ok": proof.ok, **equal}, indent=2, ensure_ascii=False))
    if not proof.ok:
        lost = ", ".join(name for name, holds in equal.items() if not holds)
        raise LoragenTrainError(f"{options.checkpoint} is not the same after a round trip ({lost}); please report it.")
    if not options.json:
        rows, per_row, width = size["grid"]
        print(
            f"{options.checkpoint}: {counted(size['num_modules'], 'module')}, r {'/'.join(map(str, size['ranks']))}, "
            f"{counted(size['num_parameters'], 'value')}\n{counted(size['num_tokens'], 'token')} of {width} "
            f"({counted(rows, 'row')} of {per_row}), padding {size['padding']:.2%}\n"
            "Equal to the bit after encoding and decoding, and after writing and reading the files."
        )


TEST_TOKENIZER = Command(
    name="test-tokenizer",
    help="see whether a checkpoint fits the token grid and survives it",
    description="Turn a checkpoint into tokens and back, through the files that PEFT loads too, and compare to the "
    "bit. If it does not fit: exit code 1, and what would fit.",
    example="loragen-train test-tokenizer --checkpoint zoo/adapters/gcd/checkpoint-48 --max-tokens 600",
    run=_test_tokenizer,
    config_class=ReadingConfig,
    add_options=_add_test_options,
)
