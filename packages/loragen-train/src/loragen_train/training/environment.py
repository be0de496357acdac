"""Where a training runs: its place among several processes, its SLURM job, its cache."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loragen_train.configs.fit import FitConfig

__all__ = ["cache_folder", "is_first_process", "slurm_job"]


@contextmanager
def cache_folder(config: FitConfig, *, keep: bool = True) -> Iterator[Path]:
    """Yield the folder for tokens and embeddings; a temporary one where nothing shall be kept."""
    if keep and config.data.cache_tokenized:
        chosen = config.data.cache_dir or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/loragen"
        yield Path(chosen).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="loragen-") as folder:
        yield Path(folder)


def is_first_process() -> bool:
    """Whether this is the process that writes, by the variables of torchrun, SLURM or Lightning's own launcher."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ:
        return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"
    return os.environ.get("SLURM_PROCID", "0") == "0"


def slurm_job() -> str:
    """The SLURM job of this process as ``scontrol`` calls it; of a job array only this process's member."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]
