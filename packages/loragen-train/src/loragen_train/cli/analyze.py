"""The commands ``loragen-train analyze``, of a whole zoo, and ``test-tokenizer``, of one checkpoint."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command, UsageError
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
    parser.add_argument("zoo", nargs="?", help="Folder with a zoo.json, as collect and import write it.")
    parser.add_argument("--checkpoint-dir", help="In place of a zoo: checkpoints, whose folders are the tasks.")
    parser.add_argument("--plot", metavar="DIR", help="Also write similarity.png and projection.png to this folder.")
    _add_common_options(parser)


def _one_of(zoo: str | None, other: str | None, option: str) -> None:
    if (zoo is None) == (other is None):
        raise UsageError(f"Give either the folder of a zoo or {option}.")


def _analyze(config: ReadingConfig, options: Namespace) -> None:
    from loragen_train.analysis.analyze import analyze_zoo
    from loragen_train.analysis.views import as_text, draw_analysis

    _one_of(options.zoo, options.checkpoint_dir, "--checkpoint-dir")
    zoo = analyze_zoo(Path(options.zoo or options.checkpoint_dir), **asdict(config), allow_bin=options.allow_bin)
    plots = [] if options.plot is None else draw_analysis(zoo, Path(options.plot))
    if options.json:
        print(json.dumps({**zoo, "plots": [str(path) for path in plots]}, indent=2, ensure_ascii=False))
        return
    print(as_text(zoo), *plots, sep="\n")


ANALYZE = Command(
    name="analyze",
    help="look into a zoo of checkpoints",
    description="Print what the checkpoints of a zoo hold and how alike they are: modules, sizes, norms, spread, "
    "similarity between checkpoints and tasks, outliers. Files that cannot be read are named; they stop nothing.",
    example="loragen-train analyze zoo --max-tokens 600 --plot plots",
    run=_analyze,
    config_class=ReadingConfig,
    add_options=_add_analyze_options,
)


def _add_test_options(parser: ArgumentParser) -> None:
    parser.add_argument("zoo", nargs="?", help="Folder with a zoo.json, whose checkpoints are all tested.")
    parser.add_argument("--checkpoint", help="In place of a zoo: PEFT folder, .safetensors, .pt, .ckpt or .bin file.")
    _add_common_options(parser)


def _test_tokenizer(config: ReadingConfig, options: Namespace) -> None:
    from lora_tokenizer import check_round_trip

    from loragen_train.analysis.analyze import size_of
    from loragen_train.analysis.round_trips import lost_in
    from loragen_train.analysis.views import size_text

    _one_of(options.zoo, options.checkpoint, "--checkpoint")
    if options.zoo is not None:
        _test_zoo(config, options)
        return
    read_options = {"lora_alpha": config.lora_alpha, "allow_bin": options.allow_bin, "token_dim": config.token_dim}
    proof = check_round_trip(options.checkpoint, max_tokens="auto", **read_options)
    size = size_of(proof.report, config.max_tokens)
    equal = {name: getattr(proof, name) for name in ("tokens_equal", "files_equal", "layout_equal")}
    if options.json:
        verdict = {"ok": proof.ok and size["fits"], "fingerprint": proof.report.fingerprint, **equal}
        content = {"checkpoint": options.checkpoint, **asdict(config), **size, **verdict}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    if not size["fits"]:  # the error says what would
        check_round_trip(options.checkpoint, max_tokens=config.max_tokens, **read_options)
    if not proof.ok:
        raise LoragenTrainError(
            f"{options.checkpoint} is not the same after a round trip ({lost_in(proof)}); please report it."
        )
    if not options.json:
        print(f"{options.checkpoint}: {size_text(size)}")
        print("Equal to the bit after encoding and decoding, and after writing and reading the files.")


def _test_zoo(config: ReadingConfig, options: Namespace) -> None:
    from loragen_train.analysis.round_trips import check_zoo
    from loragen_train.analysis.views import size_text

    found = check_zoo(Path(options.zoo), **asdict(config), allow_bin=options.allow_bin)
    if options.json:
        content = {"zoo": options.zoo, **asdict(config), **found, "ok": not found["failures"]}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        lines = [f"{options.zoo}: {counted(found['num_checkpoints'], 'checkpoint')}", *map(size_text, found["sizes"])]
        print(*lines, *(f"{path}: {reason}" for path, reason in found["failures"].items()), sep="\n")
    if found["failures"]:
        which = f"{len(found['failures'])} of the {counted(found['num_checkpoints'], 'checkpoint')} of {options.zoo}"
        path, reason = next(iter(found["failures"].items()))
        raise LoragenTrainError(f"{which} do not fit or cannot be read; the first, {path}: {reason}")
    if not options.json:
        print("All equal to the bit after encoding and decoding, and after writing and reading the files.")


TEST_TOKENIZER = Command(
    name="test-tokenizer",
    help="see whether checkpoints fit the token grid and survive it",
    description="Turn a checkpoint, or all of a zoo, into tokens and back, through the files that PEFT loads too, and "
    "compare to the bit. If one does not fit: exit code 1, and what would fit.",
    example="loragen-train test-tokenizer --checkpoint zoo/adapters/gcd/checkpoint-48 --max-tokens 600",
    run=_test_tokenizer,
    config_class=ReadingConfig,
    add_options=_add_test_options,
)
