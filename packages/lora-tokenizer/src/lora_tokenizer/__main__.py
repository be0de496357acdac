"""`python -m lora_tokenizer`: `inspect` shows what is in a checkpoint, `round-trip` proves that tokens keep all of it.

Exit codes: 0 done, 1 failed (or NaN or Inf found, or something lost), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_tokenizer.inspecting import AdapterReport, RoundTripReport


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_tokenizer", description="Look at LoRA checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="modules, shapes, norms and token counts of a checkpoint",
        description="Print modules, shapes, r, dtype, norms of A, B and B·A, NaN/Inf and token counts of a checkpoint.",
        epilog="example: python -m lora_tokenizer inspect runs/checkpoint-9 --token-dim 384 --json",
    )
    round_trip = commands.add_parser(
        "round-trip",
        help="encode and decode a checkpoint, through files too, and compare to the bit",
        description="Encode a checkpoint, decode it, write it for PEFT, read it again, and compare to the bit.",
        epilog="example: python -m lora_tokenizer round-trip last.ckpt --lora-alpha 16",
    )
    for command in (inspect, round_trip):
        command.add_argument("path", help="PEFT folder, .safetensors, .pt, .pth, .ckpt or .bin file")
        command.add_argument(
            "--token-dim",
            type=_int_or_auto,
            default=384,
            help="values per token, or auto for the widest, up to 1024, that divides all rows (default: 384)",
        )
        command.add_argument("--transpose-b", action="store_true", help="lay B out as r rows, as A is")
        command.add_argument("--lora-alpha", type=float, help="alpha, in place of what the checkpoint says")
        command.add_argument("--adapter-name", help="which adapter, where the checkpoint holds several")
        command.add_argument("--prefix", help="what to cut off the front of every tensor name")
        command.add_argument("--allow-bin", action="store_true", help="read .bin files (no code in them is run)")
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _int_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    options = vars(_parser().parse_args(arguments))
    command, as_json = options.pop("command"), options.pop("json")
    # after --help, which must not wait for torch
    from lora_tokenizer import LoraTokenizerError, check_round_trip, inspect_adapter

    try:
        if command == "inspect":
            report = inspect_adapter(**options)
            sys.stdout.write(_as_json(report) if as_json else _as_table(report))
            return 1 if report.num_nonfinite else 0
        proof = check_round_trip(**options, max_tokens="auto")
    except LoraTokenizerError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(_as_json(proof) if as_json else _as_sentence(proof))
    return 0 if proof.ok else 1


def _as_sentence(proof: RoundTripReport) -> str:
    parts = {"tokens": proof.tokens_equal, "files": proof.files_equal, "layout": proof.layout_equal}
    lost = [name for name, is_equal in parts.items() if not is_equal]
    verdict = f"NOT the same after the round trip: {', '.join(lost)}" if lost else "the same to the bit"
    return f"{proof.report.path}: {proof.report.num_tokens:,} tokens of {proof.report.token_dim}, {verdict}\n"


def _as_json(report: AdapterReport | RoundTripReport) -> str:
    return json.dumps(_without_nan(dataclasses.asdict(report)), indent=2) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no Inf; they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _as_table(report: AdapterReport) -> str:
    rows = [("module", "r", "scaling", "A", "B", "dtype", "|A|", "|B|", "|s·B·A|", "NaN/Inf")]
    for m in report.modules:
        shapes = ("x".join(map(str, m.shape_a)), "x".join(map(str, m.shape_b)))
        norms = (f"{m.norm_a:.4g}", f"{m.norm_b:.4g}", f"{m.norm_delta:.4g}")
        rows.append((m.module, str(m.r), f"{m.scaling:.4g}", *shapes, m.dtype, *norms, str(m.num_nonfinite)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in ([*zip(row, widths, strict=True)] for row in rows)
    ]
    rows_l, tokens_h, _ = report.grid
    lines += [
        "",
        f"{report.path}: base model {report.config['base_model_name_or_path']}, r {report.config['r']}, "
        f"alpha {report.config['lora_alpha']:g}, {len(report.modules)} modules, {report.num_parameters:,} values "
        f"({', '.join(report.dtypes)}), NaN/Inf {report.num_nonfinite}",
        f"{report.num_tokens:,} tokens of {report.token_dim} ({rows_l} rows of {tokens_h}), padding "
        f"{report.padding:.2%}, layout {report.fingerprint}",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
