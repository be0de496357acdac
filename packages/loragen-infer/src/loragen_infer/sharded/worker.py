"""What runs on every core or GPU of a cluster: a generator that makes one shard after the other.

A shard is made as a whole by one worker, in the batches in which one process would make it, so that its bytes depend on
nothing but the input, the generator and the kind of processor.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tokenizer.errors import LoraTokenizerError

from loragen_infer.errors import LoragenInferError
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.prompt_file import settings_of
from loragen_infer.generation.run import load_generator
from loragen_infer.sharded.prompt_source import Shard
from loragen_infer.sharded.shards import mark_of, write_shard

if TYPE_CHECKING:
    from loragen_infer.generator import LoraGenerator

__all__ = ["ShardMaker", "request_settings"]


class ShardMaker:
    """The function that Ray Data maps over the shards.

    Args:
        config: The options of generation, with paths that hold on every machine.
        generator_fingerprint: That of the generator which the shards are laid out for.
    """

    def __init__(self, config: GenerateConfig, generator_fingerprint: str) -> None:
        self._config, self._fingerprint = config, generator_fingerprint
        self._generator: LoraGenerator | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the one shard in ``batch``; what came of it goes back as a row, also a sentence for the user."""
        shard, fingerprint = Shard.from_json(str(batch["shard"][0])), str(batch["fingerprint"][0])
        error, warnings = "", _Warnings()
        logger = logging.getLogger("loragen_infer")
        logger.addHandler(warnings)
        try:
            # Where a worker was killed, shards that were handed to it together are asked for again.
            if mark_of(Path(self._config.output or ""), shard.number) != (fingerprint, True):
                self.make(shard, fingerprint)
        except (LoragenInferError, LoraTokenizerError) as failure:
            error = str(failure)
        finally:
            logger.removeHandler(warnings)
        return {"number": [shard.number], "error": [error], "warning": [" ".join(warnings.messages)]}

    def make(self, shard: Shard, fingerprint: str) -> None:
        """Generate and write the adapters of a shard."""
        requests, config = shard.read(), self._config
        generator = self._loaded()
        settings = request_settings(config, generator)
        with generator.encoder.one_truncation_warning():
            adapters = list(
                generator.generate_many(
                    (request.prompts for request in requests), batch_size=config.batch_size, scale=config.scale
                )
            )
        rows = [
            {
                "id": request.id,
                "fingerprint": request.fingerprint(self._fingerprint, settings),
                "scale": config.scale,
                "num_prompts": len(request.prompts),
                "base_model": generator.base_model,
            }
            for request in requests
        ]
        named = zip((request.id for request in requests), adapters, strict=True)
        write_shard(Path(config.output or ""), shard.number, named, rows, fingerprint)

    def _loaded(self) -> "LoraGenerator":
        if self._generator is None:
            import torch

            # One core is what a worker has, and sums in another number of threads may round otherwise.
            torch.set_num_threads(1)
            generator = load_generator(self._config)
            if generator.fingerprint != self._fingerprint:
                raise LoragenInferError(
                    f"{self._config.model} is another generator on a worker ({generator.fingerprint}) than where the "
                    f"run was started ({self._fingerprint}); give a path that all machines share."
                )
            self._generator = generator
        return self._generator


class _Warnings(logging.Handler):
    """Keeps what is said meanwhile, which would end in a log file of the worker's machine."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def request_settings(config: GenerateConfig, generator: "LoraGenerator") -> list[str]:
    """Return what a request's fingerprint covers besides prompts and generator: as where it is one adapter's folder."""
    return settings_of(kind="peft", scale=config.scale, base_model=generator.base_model, omit_prompts=False)
