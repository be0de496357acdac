"""Finished rows on disk, as ``<output_dir>/rows/<task>.<row>.<key>.json``, so that a stopped evaluation goes on.

The key is a fingerprint of all that decides the scores: adapter, sequences, the language model's weights, device, and
what stands for the code: ``scoring.SCORING_VERSION``, and of a tuned row ``adapters.tuning.TUNING_VERSION`` too.
How much goes through the model at once is left out: it changes no more than round-off, and who has run out of memory
should be able to go on with less. A process that scores rows holds their locks, which the system lets go of when the
process dies; another one on the same folder scores other rows meanwhile.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout
from lora_tokenizer.io.atomic import clear_leftovers

from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.scoring import ExampleScores
from loragen_infer.files import write_json

if TYPE_CHECKING:
    from lora_tokenizer import LoraAdapter
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Cost", "FinishedRow", "RowKey", "RowStore", "fingerprint", "fingerprint_of_adapter", "fingerprint_of_model"]

logger = logging.getLogger(__name__)

_FORMAT = 1
_NOT_THE_MODEL = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What making one adapter takes: wall-clock time, that of all processor cores together, if it is known, and the
    gradient steps of tuning, if it was tuned."""

    seconds: float
    cpu_seconds: float | None = None
    num_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """The scores of one row on one task, and what making its adapter took, where there is one and it is known."""

    scores: ExampleScores
    cost: Cost | None


class RowKey(NamedTuple):
    """What a row is kept under: the names of its task and its own, and its fingerprint."""

    task: str
    row: str
    key: str


class RowStore:
    """The finished rows below one output folder, in which ``rows`` is made."""

    def __init__(self, output_dir: Path) -> None:
        self._folder = output_dir / "rows"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for folder in (output_dir, self._folder):
                clear_leftovers(folder)
        except OSError as error:
            raise LoragenInferError(
                f"output_dir {output_dir} cannot be written to: {error.strerror or error}; choose another place."
            ) from error

    def finish(
        self, rows: Sequence[RowKey], score: Callable[[list[int]], Iterable[FinishedRow]], *, wait: bool = False
    ) -> list[FinishedRow | None]:
        """Return rows, from the disk or scored now together and kept there; None for one that another process scores.

        Args:
            rows: The rows.
            score: Yields the finished rows of those places in ``rows``, each of which is kept as it comes.
            wait: Wait for another process instead; of a single row, since two processes might wait for each other.
        """
        assert not wait or len(rows) == 1, "see above"  # noqa: S101
        found: list[FinishedRow | None] = [None] * len(rows)
        try:
            with ExitStack() as stack:
                missing = []
                for place, row in enumerate(rows):
                    try:
                        lock = stack.enter_context(FileLock(self._folder / f".{row.key}.lock", blocking=wait))
                    except Timeout:
                        continue
                    found[place] = _read(self._path(row))
                    if found[place] is None:
                        missing.append(place)
                    else:
                        lock.release()
                scored = score(missing) if missing else ()
                for place, finished in zip(missing, scored, strict=True):
                    row, found[place] = rows[place], finished
                    content = {"format": _FORMAT, "task": row.task, "row": row.row, **asdict(finished)}
                    write_json(self._path(row), content)
        except OSError as error:
            raise LoragenInferError(f"{self._folder} cannot be written to: {error.strerror or error}.") from error
        return found

    def _path(self, row: RowKey) -> Path:
        # The name is for people; the key alone says what it is.
        plain_task, plain_row = (re.sub(r"[^A-Za-z0-9_-]+", "-", name) for name in (row.task, row.row))
        return self._folder / f"{plain_task[:60]}.{plain_row}.{row.key}.json"


def _read(path: Path) -> FinishedRow | None:
    """A finished row; None where it is not there or not readable, of which a warning tells."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        scores: dict[str, Any] = {
            name: None if values is None else tuple(values) for name, values in content["scores"].items()
        }
        cost = None if content["cost"] is None else Cost(**content["cost"])
        return FinishedRow(scores=ExampleScores(**scores), cost=cost)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s) and scored again.", path, error)
        return None


def fingerprint(*parts: Any) -> str:
    """Return 24 hexadecimal digits over plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def fingerprint_of_adapter(adapter: "LoraAdapter | None") -> str | None:
    """Return 64 hexadecimal digits over every value and setting of ``adapter``; None for no adapter."""
    if adapter is None:
        return None
    # Where the base model lies does not matter to what the adapter does.
    fields = {**asdict(adapter.config), "base_model_name_or_path": None, "revision": None}
    return _digest(json.dumps(fields, sort_keys=True), adapter.tensors.items())


def fingerprint_of_model(model: "PreTrainedModel") -> str:
    """Return 64 hexadecimal digits over the settings and every weight of ``model``."""
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_THE_MODEL}
    return _digest(json.dumps(settings, sort_keys=True, default=str), model.state_dict().items())


def _digest(head: str, tensors: "Iterable[tuple[str, Tensor]]") -> str:
    import torch

    digest = hashlib.sha256(head.encode())
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
