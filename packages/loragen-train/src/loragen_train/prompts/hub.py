"""Reads data sets of the Hugging Face hub through ``datasets``: from the hub, its cache, or a local folder."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loragen_train.errors import LoragenTrainError

__all__ = ["first_line", "quiet", "read_data_set", "unreachable"]


def read_data_set(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a split of the data set ``name``: a folder or a name of the hub, either with ``/CONFIG``."""
    import datasets
    from datasets.exceptions import DatasetsError

    errors: list[Exception] = []
    with quiet():
        for path, config in _readings(name):
            try:
                rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(path, config, split=split)
            except (DatasetsError, OSError, RuntimeError, ValueError) as error:
                errors.append(error)
            else:
                return rows
    if any(isinstance(error, ConnectionError) for error in errors):
        raise unreachable(f"The data set hf:{name} is neither a folder nor")
    raise LoragenTrainError(f"The data set hf:{name} (split {split!r}) cannot be read: {first_line(errors[0])}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be logged: what these libraries log is of retries, and ends in an error if there is one."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def unreachable(subject: str) -> LoragenTrainError:
    """Return the error of what is not on this machine and cannot be downloaded."""
    return LoragenTrainError(
        f"{subject} in the cache of downloaded data sets, and the hub cannot be reached, or HF_HUB_OFFLINE forbids it; "
        "allow it, or give a JSON/JSONL file."
    )


def first_line(error: BaseException) -> str:
    """Return what another library's ``error`` says, to be put into a sentence."""
    said = "" if isinstance(error, KeyError) else str(error).strip()  # a KeyError says the key alone
    return (said or repr(error)).splitlines()[0].rstrip(".")


def _readings(name: str) -> list[tuple[str, str | None]]:
    """What ``name`` may mean: data set (a folder, or ``organisation/name``) and configuration, the likeliest first."""
    path = Path(name).expanduser()
    if path.exists():
        return [(str(path), None)]
    head, _, config = name.rpartition("/")
    # Where the configurations of a folder are listed; without it a misspelt path would have its whole parent read.
    if head and (path.parent / "README.md").is_file():
        return [(str(path.parent), config)]
    if name.startswith((".", "/", "~")):
        raise LoragenTrainError(f"The data set hf:{name} does not exist; give a folder or the name of one on the hub.")
    readings: list[tuple[str, str | None]] = [(name, None)] if name.count("/") < 2 else []
    return [*readings, (head, config)] if head else readings
