"""``loragen-infer merge``: several adapters of one base model as one."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from loragen_infer.cli.command_line import UsageError
from loragen_infer.errors import LoragenInferError

__all__ = ["add_merge_options", "run_merge"]


def add_merge_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="PEFT adapter folders of one base model.")
    parser.add_argument(
        "--weights", type=list[str], required=True, help="A factor for each adapter, such as --weights 0.7 0.3."
    )
    parser.add_argument("--output", required=True, help="Folder to write the merged adapter to.")
    parser.add_argument(
        "--combination",
        choices=("cat", "linear", "svd"),
        default="cat",
        help="As PEFT's add_weighted_adapter: cat is exact and adds up the ranks, svd is the best of the highest rank, "
        "linear adds A and B by themselves, which is rough and needs equal ranks.",
    )


def run_merge(options: Namespace) -> None:
    """Merge and print what came out."""
    weights = [_number(text) for text in options.weights]
    if len(weights) != len(options.adapters):
        raise UsageError(
            f"--weights has {len(weights)} numbers for {len(options.adapters)} adapters; give one for each, after them"
        )
    from lora_tokenizer import read_adapter

    from loragen_infer.adapters.merging import merge_adapters
    from loragen_infer.adapters.vllm_rules import check_vllm
    from loragen_infer.files import check_writable, is_free

    output = Path(options.output)
    check_writable(output.parent)
    if not is_free(output):
        raise LoragenInferError(f"{output} exists already; choose another --output or remove it.")
    adapters = [read_adapter(Path(adapter)) for adapter in options.adapters]
    merged = merge_adapters(adapters, weights, combination=options.combination)
    merged.save_pretrained(output)
    report = check_vllm(merged)
    takes = "; ".join(report.refused) or f"--max-lora-rank {report.max_lora_rank}"
    base = merged.config.base_model_name_or_path or "an unknown base model"
    print(
        f"{options.output}: {len(adapters)} adapters merged by {options.combination} to rank {merged.config.r} "
        f"({merged.num_parameters:,} parameters, for {base}); vLLM: {takes}"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--weights has {text!r}, where a number belongs; give the adapters before it") from error
