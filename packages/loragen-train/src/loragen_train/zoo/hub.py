"""Brings adapters from the hub into its cache: only the files that an adapter consists of, several at a time."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from loragen_infer.errors import reason_of
from loragen_infer.progress import ProgressBar

from loragen_train.errors import LoragenTrainError

__all__ = ["fetch_adapters"]

_CONFIG, _WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# The hub's client lets what its HTTP library says of a broken connection through; this is that library's base class.
_ConnectionBroken: Any = HfHubHTTPError.__mro__[1]

Repository = tuple[str, str | None]
"""Id and revision."""


def fetch_adapters(
    repositories: Iterable[Repository], *, num_workers: int
) -> tuple[dict[Repository, Path], dict[Repository, str]]:
    """Return the folder in the hub's cache of each repository, and a sentence for each that is none or has no adapter.

    What is in the cache is not downloaded again, and an interrupted download goes on; with ``HF_HUB_OFFLINE=1`` only
    the cache is asked. Nothing of a repository is run.
    """
    wanted = list(dict.fromkeys(repositories))
    folders: dict[Repository, Path] = {}
    problems: dict[Repository, str] = {}
    if not wanted:
        return folders, problems
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()  # a bar for every file would hide the one below
    pool = ThreadPoolExecutor(num_workers)
    try:
        with ProgressBar("download", total=len(wanted), unit="adapter") as bar:
            futures = {pool.submit(_fetch, *repository): repository for repository in wanted}
            for future in as_completed(futures):
                try:
                    folders[futures[future]] = future.result()
                except LoragenTrainError as error:
                    problems[futures[future]] = str(error)
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)
        if not were_disabled:
            enable_progress_bars()
    return folders, problems


def _fetch(repository: str, revision: str | None) -> Path:
    at = f" at revision {revision}" if revision else ""
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[_CONFIG, *_WEIGHTS]))
    except RevisionNotFoundError as error:
        raise LoragenTrainError(f"{repository} has no revision {revision!r} on the hub; correct it.") from error
    except RepositoryNotFoundError as error:
        raise LoragenTrainError(
            f"{repository} is neither a path nor a repository of the hub that you may read; correct the name, or log "
            "in with: hf auth login."
        ) from error
    except LocalEntryNotFoundError as error:
        raise LoragenTrainError(
            f"{repository}{at} is neither a path nor wholly in the hub cache, and the hub cannot be reached, or "
            "HF_HUB_OFFLINE forbids it; allow it, or give a folder."
        ) from error
    except HFValidationError as error:
        raise LoragenTrainError(f"{repository!r} is neither a path nor a valid name of the hub; correct it.") from error
    except (_ConnectionBroken, OSError, ValueError, RuntimeError) as error:
        raise LoragenTrainError(f"{repository}{at} cannot be downloaded: {reason_of(error)}; try again.") from error
    missing = [_CONFIG] if not (folder / _CONFIG).is_file() else []
    missing += [] if any((folder / name).is_file() for name in _WEIGHTS) else [_WEIGHTS[0]]
    if missing:
        raise LoragenTrainError(
            f"{repository}{at} is no LoRA adapter, or not wholly in the hub cache: it has no {missing[0]}."
        )
    return folder
