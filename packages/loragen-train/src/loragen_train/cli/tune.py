"""The command ``loragen-train tune``."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command
from loragen_infer.samples import TUNE_FOLDS, TUNE_LEARNING_RATE, TUNE_STEPS

from loragen_train.errors import LoragenTrainError

__all__ = ["TUNE"]


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="A PEFT adapter, such as generate writes.")
    parser.add_argument("--samples", required=True, metavar="FILE", help="JSON lines with prompts and responses.")
    parser.add_argument("--output", required=True, metavar="DIR", help="Folder of the tuned adapter.")
    parser.add_argument("--steps", type=int, default=TUNE_STEPS, help="Most gradient steps.")
    parser.add_argument(
        "--folds",
        type=int,
        default=TUNE_FOLDS,
        help="Parts of the samples that are left out in turn to decide how many steps are taken (0: all are).",
    )
    parser.add_argument("--learning-rate", type=float, default=TUNE_LEARNING_RATE, help="Of the first step.")
    parser.add_argument("--batch-size", type=int, default=8, help="Most samples in a step.")
    parser.add_argument("--seed", type=int, default=0, help="Of the order of the samples.")
    parser.add_argument("--base-model", help="The language model (default: the one that the adapter names).")
    parser.add_argument("--device", default="cpu", help="Torch device, such as cpu or cuda.")
    parser.add_argument("--dtype", help="Load the language model in float32, bfloat16 or float16 (default: its own).")


def _tune(options: Namespace) -> None:
    from lora_tokenizer import find_adapter, read_adapter
    from loragen_infer.adapters.tuning import TuneSettings, tune_many
    from loragen_infer.files import check_writable
    from loragen_infer.models.base_model import load_base_model
    from loragen_infer.samples import read_examples
    from loragen_infer.words import counted

    output = Path(options.output)
    if output.exists():
        raise LoragenTrainError(f"{output} exists already; choose another --output or remove it.")
    check_writable(output.parent)  # before what takes long
    samples = read_examples(Path(options.samples))
    adapter = read_adapter(find_adapter(options.adapter))
    name = options.base_model or adapter.config.base_model_name_or_path
    if not name:
        raise LoragenTrainError(f"The adapter {options.adapter} names no base model; give --base-model.")
    settings = TuneSettings(
        num_steps=options.steps,
        num_folds=options.folds,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    model, tokenizer = load_base_model(name, dtype=options.dtype, device=options.device)
    (tuned,) = tune_many(model, tokenizer, [adapter], [samples], settings)
    tuned.adapter.save_pretrained(output)
    print(f"{output}: {options.adapter} after {counted(tuned.num_steps, 'step')} on {counted(len(samples), 'sample')}")


TUNE = Command(
    name="tune",
    help="go on from an adapter with a few gradient steps",
    description="Take a few gradient steps on solved samples, from a generated adapter or any other of LoRA factors.",
    example="loragen-train tune my-adapter --samples samples.jsonl --steps 16 --output my-tuned-adapter",
    run=_tune,
    add_options=_add_options,
)
