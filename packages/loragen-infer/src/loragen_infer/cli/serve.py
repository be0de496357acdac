"""``loragen-infer serve``: adapters over HTTP."""

import os
from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace

from loragen_infer.cli.command_line import UsageError
from loragen_infer.errors import LoragenInferError
from loragen_infer.serving.config import ServeConfig

__all__ = ["add_serve_options", "run_serve_command"]

_DEFAULTS = {field.name: field.default for field in fields(ServeConfig)}


def add_serve_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", required=True, help="A bundle, a final_model folder or an experiment folder.")
    for name, kind, text in (
        ("store", str, "Folder of the adapters, which several servers may share."),
        ("host", str, "Address to listen on; 0.0.0.0 answers other machines."),
        ("port", int, "Port to listen on; 0 for a free one."),
        (
            "max_adapters",
            int,
            "Most adapters that are kept; those used least recently go first (None: as last set, or 10,000).",
        ),
        ("max_batch_size", int, "Most requests whose adapters are made together."),
        ("batch_timeout", float, "Seconds that a request waits for others to share its forward pass."),
        ("max_prompts", int, "Most prompts of a request."),
        ("max_prompt_characters", int, "Longest prompt."),
        ("max_body_bytes", int, "Largest body of a request."),
        ("max_queue", int, "Most requests that wait at once."),
        ("drain_seconds", int, "How long open requests are waited for after SIGTERM."),
        ("device", str, "Torch device, such as cpu or cuda."),
        ("dtype", str, "The generator computes in float32, bfloat16 or float16."),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=_DEFAULTS[name], help=text)
    parser.add_argument("--token", help="What clients send as Authorization: Bearer (default: $LORAGEN_TOKEN, if set).")
    parser.add_argument("--vllm", help="Address of a running vLLM to load adapters into (its key: $VLLM_API_KEY).")
    parser.add_argument("--revision", help="Branch, tag or commit of the model on the hub.")
    parser.add_argument("--condition-model", help="The base model, for a model that is conditioned on its states.")
    parser.add_argument("--cache-dir", help="Folder of an embedding cache, which training may share.")


def run_serve_command(options: Namespace) -> None:
    """Serve until SIGTERM or Ctrl+C."""
    values = {name: options[name] for name in _DEFAULTS}
    # An empty one is refused, not taken for none: that would let everyone in.
    token = os.environ.get("LORAGEN_TOKEN") if options.token is None else options.token
    try:
        config = ServeConfig(**{**values, "token": token})
    except LoragenInferError as error:
        raise UsageError(str(error)) from error
    from loragen_infer.serving.run import run_serve

    run_serve(config, say=lambda line: print(line, flush=True))
