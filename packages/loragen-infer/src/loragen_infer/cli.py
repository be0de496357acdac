"""The command line ``loragen-infer``: generate and evaluate."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from loragen_infer.command_line import Command, UsageError, run_command_line
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluate_config import EvaluateConfig

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (default: the process's) and return the exit code."""
    generate = Command(
        name="generate",
        help="prompts in, a PEFT adapter folder out",
        description="Write one PEFT adapter folder for the task that the prompts describe.",
        example='loragen-infer generate --model experiments/zoo_20260101_120000 --prompt "What is 17 + 25?" '
        '--prompt "What is 3 + 88?" --output-dir my-adapter',
        run=_generate,
        add_options=_add_generate_options,
    )
    evaluate = Command(
        name="evaluate",
        help="a table and a picture of how well the adapters work",
        description="Score generated adapters against their baselines on examples with answers.",
        example="loragen-infer evaluate --config config/evaluate.yaml --model experiments/zoo_20260101_120000",
        run=_evaluate,
        config_class=EvaluateConfig,
    )
    description = "Write a LoRA adapter from a few prompts, and measure that it works."
    return run_command_line("loragen-infer", description, [generate, evaluate], argv)


def _add_generate_options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="A bundle, a final_model folder or an experiment folder.")
    parser.add_argument("--prompt", action="append", default=[], help="A prompt of the task (repeatable).")
    parser.add_argument("--prompt-file", help="A text file with one prompt per line, or a JSON/JSONL file.")
    parser.add_argument("--output-dir", required=True, help="Adapter folder to write; it must not exist yet.")
    parser.add_argument("--device", default="cpu", help="Torch device, such as cpu or cuda.")


def _generate(options: Namespace) -> None:
    prompts = list(options.prompt)
    if options.prompt_file is not None:
        prompts += _read_prompt_file(Path(options.prompt_file))
    if not prompts:
        raise UsageError("there is no prompt; give --prompt at least once, or --prompt-file")
    output_dir = Path(options.output_dir)
    if output_dir.exists():
        raise UsageError(f"--output-dir {output_dir} exists already; choose another or remove it")

    from lora_tokenizer import write_adapter

    from loragen_infer.generator import LoraGenerator

    generator = LoraGenerator.from_pretrained(options.model, device=options.device)
    adapter = generator.generate(prompts)
    write_adapter(adapter, output_dir)
    base = adapter.config.base_model_name_or_path
    print(f"{output_dir}: {adapter.num_parameters:,} parameters for {base} from {len(prompts)} prompts")


def _read_prompt_file(path: Path) -> list[str]:
    if path.suffix in {".json", ".jsonl"}:
        from loragen_infer.examples import read_examples

        return [example.prompt for example in read_examples(path, need_response=False)]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoragenInferError(f"The prompt file {path} cannot be read as text: {error}.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise LoragenInferError(f"The prompt file {path} is empty; it needs one prompt per line.")
    return prompts


def _evaluate(config: EvaluateConfig) -> None:
    from loragen_infer.evaluate import evaluate
    from loragen_infer.results import format_table

    results = evaluate(config)
    output_dir = Path(config.output_dir)
    print(format_table(results))
    print(f"Written: {output_dir / 'evaluation.json'}, {output_dir / 'evaluation.png'}")


if __name__ == "__main__":
    sys.exit(main())
