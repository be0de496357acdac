"""The command ``compare``: base model and adapters answer the same prompts, side by side."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_compare_options", "run_compare"]


def add_compare_options(parser: ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="PEFT adapter folders.")
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="A text file with a prompt per line, or JSON lines with prompt and maybe response, which is then scored.",
    )
    parser.add_argument("--base-model", help="The base model (default: the one that the adapters name).")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="Longest answer.")
    parser.add_argument("--dtype", help="Load the base model in float32, bfloat16 or float16 (default: its own).")
    parser.add_argument("--device", default="cpu", help="Torch device, such as cpu or cuda.")
    parser.add_argument("--json", action="store_true", help="Print the answers as JSON.")


def run_compare(options: Namespace) -> None:
    """Compare, and print the answers."""
    import json
    import shutil
    from dataclasses import asdict

    from loragen_infer.comparing import compare, format_comparison, read_prompts

    comparison = compare(
        [Path(adapter) for adapter in options.adapters],
        read_prompts(Path(options.prompts)),
        base_model=options.base_model,
        max_new_tokens=options.max_new_tokens,
        device=options.device,
        dtype=options.dtype,
    )
    if options.json:
        print(json.dumps({**asdict(comparison), "mean_nll": comparison.mean_nll()}, indent=2, ensure_ascii=False))
    else:
        print(format_comparison(comparison, width=shutil.get_terminal_size().columns))
