"""The options of ``loragen-infer generate --ray`` and which of them go together, without loading anything."""

from dataclasses import dataclass

from loragen_infer.errors import LoragenInferError
from loragen_infer.generation.config import GenerateConfig

__all__ = ["SHARD_SIZE", "ShardedConfig"]

SHARD_SIZE = 256
"""Adapters in a shard, by default."""


@dataclass(frozen=True, kw_only=True)
class ShardedConfig:
    """What to generate into shards, and on which machines.

    Raises:
        LoragenInferError: Options that contradict each other, or a value out of range.
    """

    generate: GenerateConfig
    """What to generate, how, and where to: a prompt file, folder or glob pattern, and a folder of shards."""
    ray_address: str | None = None
    """Address of a running Ray cluster, such as ``auto`` or ``HOST:6379``; None: RAY_ADDRESS, or this machine alone."""
    num_workers: int | None = None
    """Processes that generate, each on one core or GPU; None: as many as there are."""
    shard_size: int = SHARD_SIZE
    """Adapters in a shard: what a worker holds in memory, and what is done again after it was killed."""

    def __post_init__(self) -> None:
        config = self.generate
        if not config.is_batch or config.prompt_file == "-":
            raise LoragenInferError("--ray makes an adapter of each line of JSONL or Parquet files; give --prompt-file")
        if config.output is None or config.push_to_hub is not None:
            raise LoragenInferError("--ray writes shards into a folder; give one for --output, without --push-to-hub")
        if config.format is not None or config.kind != "peft":
            raise LoragenInferError("--ray writes shards into a folder; leave --format away and give one for --output")
        if self.shard_size < 1 or self.shard_size % config.batch_size:
            # Other batches would be other bytes than those of one process.
            raise LoragenInferError(
                f"--shard-size is {self.shard_size}, where a multiple of --batch-size ({config.batch_size}) belongs"
            )
        if self.num_workers is not None and self.num_workers < 1:
            raise LoragenInferError(f"--num-workers is {self.num_workers}, where a number from 1 belongs")
        if ":" in config.device:
            raise LoragenInferError(f"--device is {config.device}, but Ray chooses among the GPUs; give cuda")
