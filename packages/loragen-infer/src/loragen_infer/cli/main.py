"""The command line ``loragen-infer``: its commands, and what each of them calls."""

from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from hyperconv.errors import HyperConvError
from jsonargparse import ArgumentParser, Namespace
from lora_tokenizer.errors import LoraTokenizerError

from loragen_infer.cli.command_line import Command, UsageError, run_command_line
from loragen_infer.cli.compare import add_compare_options, run_compare
from loragen_infer.cli.demo import DEMO
from loragen_infer.cli.merge import add_merge_options, run_merge
from loragen_infer.cli.serve import add_serve_options, run_serve_command
from loragen_infer.cli.sharded import add_ray_options, sharded_config
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.samples import TUNE_FOLDS, TUNE_LEARNING_RATE, TUNE_STEPS

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (default: the process's) and return the exit code."""
    return run_command_line(
        "loragen-infer",
        "Write a LoRA adapter from a few prompts, and measure that it works.",
        [
            Command(
                name="generate",
                help="prompts in, PEFT adapters out",
                description="Write a PEFT adapter for the task that the prompts describe, or one per line of a file.",
                example='loragen-infer generate --model experiments/zoo_20260101_120000 --prompt "What is 17 + 25?" '
                '--prompt "What is 3 + 88?" --output my-adapter',
                run=_generate,
                add_options=_add_generate_options,
            ),
            Command(
                name="verify",
                help="a strict check that an adapter fits its base model and does something",
                description="Check each tensor of an adapter against its base model, and that it has an effect.",
                example="loragen-infer verify my-adapter --base-model HuggingFaceTB/SmolLM2-135M-Instruct",
                run=_verify,
                add_options=_add_verify_options,
            ),
            Command(
                name="info",
                help="what a bundle holds",
                description="Show config, layout, sizes, encoder, base model, fingerprint, versions of a bundle.",
                example="loragen-infer info experiments/zoo_20260101_120000",
                run=_info,
                add_options=_add_info_options,
            ),
            Command(
                name="serve",
                help="adapters over HTTP",
                description="Answer POST /adapters with an adapter for the prompts, made once and kept on disk.",
                example="loragen-infer serve --model experiments/zoo_20260101_120000 --store adapters",
                run=run_serve_command,
                add_options=add_serve_options,
            ),
            Command(
                name="evaluate",
                help="a table and a picture of how well the adapters work",
                description="Score generated adapters against their baselines on examples with answers.",
                example="loragen-infer evaluate --zoo zoo --model experiments/zoo_20260101_120000",
                run=_evaluate,
                config_class=EvaluateConfig,
                add_options=_add_evaluate_options,
            ),
            DEMO,
            Command(
                name="compare",
                help="base model and adapters answering side by side",
                description="Let the base model and adapters on it answer the same prompts, and show what each says.",
                example="loragen-infer compare my-adapter another-adapter --prompts questions.jsonl",
                run=run_compare,
                add_options=add_compare_options,
            ),
            Command(
                name="merge",
                help="several adapters as one",
                description="Write one PEFT adapter that does what several do together, each by its weight.",
                example="loragen-infer merge adapters/sums adapters/words --weights 0.7 0.3 --output merged",
                run=run_merge,
                add_options=add_merge_options,
            ),
        ],
        argv,
        errors=(LoragenInferError, LoraTokenizerError, HyperConvError),
        loggers=("loragen_infer", "lora_tokenizer", "hyperconv"),
        version=version("loragen-infer"),
    )


def _add_generate_options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="A bundle, a final_model folder or an experiment folder.")
    parser.add_argument(
        "--prompt", dest="prompts", action="append", default=[], help="A prompt of the task (repeatable)."
    )
    parser.add_argument(
        "--description",
        dest="descriptions",
        action="append",
        default=[],
        help="What the task is, in words: a prompt like any other (repeatable).",
    )
    parser.add_argument(
        "--prompt-file",
        help="One adapter per line: a text file of prompts, a .jsonl or .json file with prompt or prompts and maybe "
        "id, or - for standard input.",
    )
    parser.add_argument("--pool", action="store_true", help="Take the whole prompt file as one task.")
    parser.add_argument(
        "--output",
        "--output-dir",
        help="Where to: the adapter (default: adapters/ and the fingerprint of prompts, model and options), or for a "
        "prompt file, which needs it, the folder of the adapters or one .pt file.",
    )
    parser.add_argument(
        "--format", help="peft, safetensors, pt or tokens (default: what --output ends in, otherwise peft)."
    )
    parser.add_argument("--revision", help="Branch, tag or commit of the model on the hub.")
    parser.add_argument("--base-model", help="The base model that the adapters name (default: as the model says).")
    parser.add_argument(
        "--condition-model",
        help="Folder, .gguf file or hub name of the base model, for a model that is conditioned on its states.",
    )
    parser.add_argument("--omit-prompts", action="store_true", help="Leave the prompts out of card and manifest.")
    parser.add_argument("--scale", type=float, default=1.0, help="Factor on the effect of the adapters.")
    parser.add_argument("--tune", metavar="FILE", help="Tune the adapter on solved samples: JSON lines with responses.")
    parser.add_argument("--tune-steps", type=int, default=TUNE_STEPS, help="Most gradient steps of --tune.")
    parser.add_argument(
        "--tune-folds",
        type=int,
        default=TUNE_FOLDS,
        help="Parts of the samples that are left out in turn to decide how many steps --tune takes (0: all of them).",
    )
    parser.add_argument("--tune-learning-rate", type=float, default=TUNE_LEARNING_RATE, help="Learning rate of --tune.")
    parser.add_argument("--batch-size", type=int, default=16, help="Adapters generated together.")
    parser.add_argument("--cache-dir", help="Folder of an embedding cache, which training may share.")
    parser.add_argument("--device", default="cpu", help="Torch device, such as cpu or cuda.")
    parser.add_argument("--dtype", default="float32", help="The generator computes in float32, bfloat16 or float16.")
    parser.add_argument("--compile", action="store_true", help="Compile the generator with torch.compile.")
    parser.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="Push the adapter to that repository of the hub too."
    )
    parser.add_argument("--private", action="store_true", help="Make the repository of --push-to-hub a private one.")
    add_ray_options(parser)


def _generate(options: Namespace) -> None:
    from loragen_infer.generation.run import run_generate

    values = {field.name: options[field.name] for field in fields(GenerateConfig)}
    try:
        config = GenerateConfig(**{**values, "prompts": (*options.prompts, *options.descriptions)})
        sharded = sharded_config(config, options)
    except LoragenInferError as error:
        raise UsageError(str(error)) from error
    if sharded is None:
        outcome = run_generate(config)
    else:
        from loragen_infer.sharded.run import run_sharded

        outcome = run_sharded(sharded)
    kept = f", {outcome.num_kept:,} were there already" if outcome.num_kept else ""
    adapters = "adapter" if outcome.num_made == 1 else "adapters"
    print(
        f"{outcome.path}: {outcome.num_made:,} {adapters} made{kept} "
        f"({outcome.num_parameters:,} parameters each, for {outcome.base_model or 'an unknown base model'})"
    )
    if outcome.commit_url is not None:
        print(f"Pushed: {outcome.commit_url}")


def _add_verify_options(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", help="A PEFT adapter folder.")
    parser.add_argument("--base-model", help="The base model (default: the one that the adapter names).")
    parser.add_argument("--dtype", help="Load the base model in float32, bfloat16 or float16 (default: its own).")
    parser.add_argument("--device", default="cpu", help="Torch device, such as cpu or cuda.")
    parser.add_argument("--device-map", help="Spread the base model over devices, such as auto, instead of --device.")
    parser.add_argument("--json", action="store_true", help="Print the report as JSON.")


def _verify(options: Namespace) -> None:
    import json
    from dataclasses import asdict

    from loragen_infer.adapters.verify import format_report, verify_adapter

    report = verify_adapter(
        Path(options.adapter),
        base_model=options.base_model,
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
    )
    print(json.dumps({**asdict(report), "passed": report.passed}, indent=2) if options.json else format_report(report))
    if not report.passed:
        failed = [check.name for check in report.checks if check.passed is False]
        raise LoragenInferError(f"{options.adapter} fails {len(failed)} of the checks: {', '.join(failed)}.")


def _add_info_options(parser: ArgumentParser) -> None:
    parser.add_argument("bundle", help="A bundle, a final_model folder or an experiment folder.")
    parser.add_argument("--json", action="store_true", help="Print it as JSON.")


def _info(options: Namespace) -> None:
    import json

    from loragen_infer.bundle.info import describe_bundle, format_description

    description = describe_bundle(Path(options.bundle))
    print(json.dumps(description, indent=2) if options.json else format_description(description))


def _add_evaluate_options(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print the results as JSON instead of tables.")


def _evaluate(config: EvaluateConfig, options: Namespace) -> None:
    from loragen_infer.evaluation.report import format_evaluation
    from loragen_infer.evaluation.run import evaluate

    evaluation = evaluate(config)
    if options.json:
        import json

        from loragen_infer.evaluation.results import to_json

        print(json.dumps(to_json(config, evaluation), indent=2, ensure_ascii=False))
        return
    output_dir = Path(config.output_dir)
    print(format_evaluation(evaluation))
    print(f"Written: {output_dir / 'evaluation.json'}, {output_dir / 'evaluation.png'}")
