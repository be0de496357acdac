"""The work behind ``loragen-infer generate --ray``: lays out the shards, has Ray Data make those that are missing.

Everything wrong with options and input is found before a worker starts. Only this process decides what belongs into the
output folder, which it holds the lock of; workers write whole shards. So whichever of them dies, what is finished
stays, and the same command goes on.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.files import locked
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.run import Outcome, load_generator, made_otherwise
from loragen_infer.progress import ProgressBar
from loragen_infer.sharded.config import ShardedConfig
from loragen_infer.sharded.prompt_source import Shard, find_files, plan_shards
from loragen_infer.sharded.shards import (
    CONFIG_NAME,
    MANIFEST_NAME,
    SHARDS,
    largest_shard_size,
    mark_of,
    shard_beyond,
    shard_name,
    write_config,
    write_manifest,
)
from loragen_infer.sharded.worker import ShardMaker, request_settings
from loragen_infer.words import counted

if TYPE_CHECKING:
    from loragen_infer.generator import LoraGenerator

__all__ = ["run_sharded"]

logger = logging.getLogger(__name__)

_LONGEST_ID = 100
# Shards are handed out in groups beyond this number, since Ray keeps a record of each.
_MAX_BLOCKS = 1000
# The plan of a shard takes a few hundred bytes; everything else goes through files.
_OBJECT_STORE = 100 * 2**20


def run_sharded(config: ShardedConfig) -> Outcome:
    """Generate what ``config`` asks for on a Ray cluster, or on the cores or GPUs of this machine.

    Where Ray is initialised already, that cluster does the work.

    Raises:
        LoragenInferError: As the messages say; what is finished by then is kept, and nothing is half-written.
    """
    _import_ray()
    options = _with_whole_paths(config.generate)
    output = Path(options.output or "")
    files = find_files(options.prompt_file or "", without=output)  # which an earlier run may have begun
    taken = f"Another process is writing to {output}; wait for it to end, or choose another --output."
    with locked(output, taken):
        _check_folder(output)
        shards = plan_shards(files, shard_size=config.shard_size)
        generator = load_generator(dataclasses.replace(options, device="cpu", compile=False))
        _check_shard_size(config, generator)
        fingerprint = generator.fingerprint
        settings = [*request_settings(options, generator), str(options.batch_size)]
        jobs = [(shard, shard.fingerprint(fingerprint, settings)) for shard in shards]
        done = _find_finished(output, jobs)
        write_config(output, generator.bundle.layout.config.to_peft())
        todo = [job for job in jobs if job[0].number not in done]
        made: set[int] = set()
        try:
            with ProgressBar("Generating", total=len(shards), unit="shard", done=len(done)) as progress:
                for number in _make(todo, options, fingerprint, config):
                    made.add(number)
                    progress.advance()
        finally:  # also after Ctrl+C: what is finished is listed
            if done or made:
                write_manifest(output, sorted(done | made))
    return Outcome(
        path=output,
        num_made=sum(shard.num_adapters for shard in shards if shard.number in made),
        num_kept=sum(shard.num_adapters for shard in shards if shard.number in done),
        num_parameters=generator.bundle.layout.num_values,
        base_model=generator.base_model,
    )


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import pyarrow  # noqa: F401
        import ray.data
    except ImportError as error:
        raise LoragenInferError(
            '--ray needs Ray Data, which is not installed: pip install "loragen-infer[ray]".'
        ) from error
    return ray


def _with_whole_paths(config: GenerateConfig) -> GenerateConfig:
    """``config`` with paths that mean the same in every working directory; names of the hub stay."""

    def whole(path: str) -> str:
        return str(Path(path).absolute()) if Path(path).exists() else path

    return dataclasses.replace(
        config,
        model=whole(config.model),
        output=str(Path(config.output or "").absolute()),
        condition_model=config.condition_model and whole(config.condition_model),
        cache_dir=config.cache_dir and str(Path(config.cache_dir).absolute()),
    )


def _check_folder(output: Path) -> None:
    """Raise LoragenInferError if something is in the folder that no run puts there; clear what killed ones left."""
    from lora_tokenizer.io.atomic import clear_leftovers, is_temporary

    for folder in (output, output / SHARDS):
        if folder.is_dir():
            clear_leftovers(folder)
    for path in output.iterdir():
        if path.name not in (".lock", CONFIG_NAME, MANIFEST_NAME, SHARDS) and not is_temporary(path):
            raise LoragenInferError(
                f"{output} holds {path.name}, which is no part of a sharded run; choose another --output."
            )


def _check_shard_size(config: ShardedConfig, generator: "LoraGenerator") -> None:
    largest = largest_shard_size(generator.mean_adapter().tensors, longest_id=_LONGEST_ID)
    if config.shard_size > largest:
        raise LoragenInferError(
            f"--shard-size is {config.shard_size}, but a safetensors file can name the tensors of {largest:,} such "
            "adapters only; give a smaller one."
        )


def _find_finished(output: Path, jobs: Sequence[tuple[Shard, str]]) -> set[int]:
    """The numbers of the shards that are there; raises LoragenInferError if any are of something else."""
    done = set()
    for shard, fingerprint in jobs:
        mark, is_finished = mark_of(output, shard.number)
        if mark not in (None, fingerprint):
            raise made_otherwise(output / shard_name(shard.number))
        if is_finished:
            done.add(shard.number)
    # A later one may have been finished before an earlier one, when a run on longer input was killed.
    if (beyond := shard_beyond(output, len(jobs))) is not None:
        raise made_otherwise(beyond)
    return done


def _make(
    jobs: Sequence[tuple[Shard, str]], options: GenerateConfig, fingerprint: str, config: ShardedConfig
) -> Iterator[int]:
    """Have workers make the shards, and yield the number of each one that is finished."""
    if not jobs:
        return
    ray = _import_ray()
    is_on_gpu = options.device != "cpu"
    with _cluster(config) as is_own:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        num_workers = min(_num_workers(config, is_on_gpu=is_on_gpu, is_own=is_own), len(jobs))
        rows = [{"shard": shard.to_json(), "fingerprint": mark} for shard, mark in jobs]
        num_blocks = min(len(rows), max(_MAX_BLOCKS, 8 * num_workers))
        finished = ray.data.from_items(rows, override_num_blocks=num_blocks).map_batches(
            ShardMaker,
            fn_constructor_args=(options, fingerprint),
            batch_size=1,
            # A worker that starts late finds work left, since none is queued at the others.
            compute=ray.data.ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
            **({"num_gpus": 1} if is_on_gpu else {"num_cpus": 1}),
        )
        warnings: list[str] = []
        try:
            for row in finished.iter_rows():
                if row["error"]:
                    raise LoragenInferError(row["error"])
                warnings += [row["warning"]] if row["warning"] else []
                yield int(row["number"])
        except ray.exceptions.RayTaskError:
            raise  # a defect, with the traceback of the worker
        except ray.exceptions.RayError as error:
            raise LoragenInferError(f"Ray gave up ({reason_of(error)}); run it again to go on.") from error
        finally:
            if warnings:
                shown = f"In {counted(len(warnings), 'shard')} there were warnings, of which the first is"
                logger.warning("%s: %s", shown, warnings[0])


@contextmanager
def _cluster(config: ShardedConfig) -> Iterator[bool]:
    """Be connected to the cluster that is asked for, or to one of this machine's own that ends with the block.

    Yields whether it is its own.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield False
        return
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": config.num_workers, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise LoragenInferError(
            f"Ray cannot be reached at {address} ({reason_of(error)}); start it there, or give another --ray-address."
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield address == "local"
    finally:
        ray.shutdown()


def _num_workers(config: ShardedConfig, *, is_on_gpu: bool, is_own: bool) -> int:
    ray = _import_ray()
    kind = "GPU" if is_on_gpu else "CPU"
    count = int(ray.cluster_resources().get(kind, 0))
    if not count and (is_own or config.num_workers is None):
        raise LoragenInferError(f"The Ray cluster has no {kind}; give another --device or --ray-address.")
    if not count:  # others may grow
        logger.warning("The Ray cluster has no %s yet; the work begins once it has.", kind)
    return config.num_workers or count
