"""The options of ``loragen-infer generate --ray``."""

from jsonargparse import ArgumentParser, Namespace

from loragen_infer.errors import LoragenInferError
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.sharded.config import SHARD_SIZE, ShardedConfig

__all__ = ["add_ray_options", "sharded_config"]

_OPTIONS = ("ray_address", "num_workers", "shard_size")


def add_ray_options(parser: ArgumentParser) -> None:
    """Add ``--ray`` and what goes with it to the options of generate."""
    parser.add_argument(
        "--ray",
        action="store_true",
        help="Have Ray Data make the adapters of JSONL and Parquet files (a file, folder or pattern as --prompt-file), "
        "many to a file, in a folder of shards.",
    )
    parser.add_argument(
        "--ray-address", help="A running cluster, such as auto or HOST:6379 (default: RAY_ADDRESS, or this machine)."
    )
    parser.add_argument("--num-workers", type=int, help="Processes of --ray (default: one for every core or GPU).")
    parser.add_argument("--shard-size", type=int, help=f"Adapters in a file of --ray (default: {SHARD_SIZE}).")


def sharded_config(config: GenerateConfig, options: Namespace) -> ShardedConfig | None:
    """Return what is asked for beside ``config``, or None without ``--ray``.

    Raises:
        LoragenInferError: Options that do not go together.
    """
    given = {name: options[name] for name in _OPTIONS if options[name] is not None}
    if options.ray:
        return ShardedConfig(generate=config, **given)
    if given:
        option = next(iter(given)).replace("_", "-")
        raise LoragenInferError(f"--{option} goes with --ray only; add that, or leave it away")
    return None
