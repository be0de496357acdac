"""Reads a data set with the ``datasets`` library: ``DATASET/CONFIG`` of the hub, or a local folder that it can read.

The library is an extra (``loragen-train[hf]``) and is imported when it is needed. Its retries and its tracebacks become
one sentence.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loragen_train.errors import LoragenTrainError

__all__ = ["read_hub_dataset"]


def read_hub_dataset(name: str, *, split: str) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a data set, in order.

    Args:
        name: ``DATASET`` or ``DATASET/CONFIG``, where the data set is ``organisation/name`` or a folder. Two parts are
            first taken for organisation and name.
        split: Which of its splits; the library's slices work too (``train[:1000]``).

    Raises:
        LoragenTrainError: The library is missing; there is no such data set, configuration or split; or the data set is
            not on the disk and the hub cannot be reached or may not be asked.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise LoragenTrainError(
            f"The source hf:{name} needs datasets; install it with: pip install 'loragen-train[hf]'."
        ) from error
    reasons: list[str] = []
    offline = False
    # What the libraries log is of retries, and ends in an error if there is one.
    logging.disable(logging.CRITICAL)
    try:
        for path, config in _readings(name):
            try:
                rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(path, config, split=split)
            except (DatasetsError, OSError, ValueError) as error:
                offline = offline or isinstance(error, ConnectionError)
                reasons.append((str(error).strip() or repr(error)).splitlines()[0].rstrip("."))
            else:
                return rows
    finally:
        logging.disable(logging.NOTSET)
    if offline:
        forbidden = os.environ.get("HF_HUB_OFFLINE", "0").lower() in {"1", "true", "yes", "on"}
        cause = "HF_HUB_OFFLINE forbids the hub" if forbidden else "the hub cannot be reached"
        raise LoragenTrainError(
            f"The data set hf:{name} is neither a folder nor in the cache of downloaded data sets, and {cause}; "
            f"{'unset HF_HUB_OFFLINE' if forbidden else 'connect'}, or give a JSON/JSONL file."
        )
    raise LoragenTrainError(f"The data set hf:{name} (split {split!r}) cannot be read: {reasons[0]}.")


def _readings(name: str) -> list[tuple[str, str | None]]:
    """What ``name`` may mean: data set and configuration, the likeliest first."""
    path = Path(name).expanduser()
    if path.exists():
        return [(str(path), None)]
    head, _, config = name.rpartition("/")
    # Where the configurations of a folder are listed; without it a misspelt path would have its whole parent read.
    if head and (path.parent / "README.md").is_file():
        return [(str(path.parent), config)]
    if name.startswith((".", "/", "~")):
        raise LoragenTrainError(f"The data set hf:{name} does not exist; give a folder or the name of one on the hub.")
    if name.count("/") == 1:
        return [(name, None), (head, config)]
    return [(head, config) if head else (name, None)]
