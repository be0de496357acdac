"""Scores the rows of all tasks on one language model, as many adapters together as a pass has room for."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loragen_infer.adapters import TuneSettings, tune_many
from loragen_infer.adapters.tuning import TUNING_VERSION
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.applying import Applier
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.examples import TaskInputs
from loragen_infer.evaluation.methods import Row, RowMaker
from loragen_infer.evaluation.scoring import SCORING_VERSION, Scorer
from loragen_infer.evaluation.store import (
    Cost,
    FinishedRow,
    RowKey,
    RowStore,
    fingerprint,
    fingerprint_of_adapter,
    fingerprint_of_model,
)
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RowScorer", "named"]

logger = logging.getLogger(__name__)


class _Piece(NamedTuple):
    """One row of one task; of ``wrong prompts`` with the prompts of one other task."""

    place: int
    row: str
    wrong_task: str | None


class RowScorer:
    """Scores the rows of all tasks on one language model."""

    def __init__(
        self,
        config: EvaluateConfig,
        tasks: Sequence[TaskInputs],
        maker: RowMaker,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self._config, self._tasks, self._maker, self._model, self._tokenizer = config, tasks, maker, model, tokenizer
        self.applier = Applier(model)
        self._model_key = fingerprint_of_model(model)
        self._max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)
        tokens_per_pass = config.tokens_per_pass
        if tokens_per_pass == "auto":  # noqa: S105  # no password
            tokens_per_pass = 512 if model.device.type == "cpu" else 16_384
        self._tokens_per_pass = tokens_per_pass
        # Of one task without and with shots; more would only take memory.
        self._scorer_of = lru_cache(maxsize=2)(self._make_scorer)

    def finish(self) -> dict[str, dict[str, list[tuple[FinishedRow, str]]]]:
        """Return the finished rows by task and row, each with its note; of ``wrong prompts`` a part per other task.

        What another process is at comes last.
        """
        store = RowStore(Path(self._config.output_dir))
        pieces = [
            _Piece(place, row, wrong_task)
            for place, inputs in enumerate(self._tasks)
            for row in self._maker.names(inputs)
            for wrong_task in (self._maker.wrong_tasks(inputs) if row == "wrong prompts" else [None])
        ]
        finished: dict[_Piece, tuple[FinishedRow, str]] = {}
        with ProgressBar("evaluate", total=len(pieces), unit="row") as bar:
            for wait in (False, True):
                pending = [piece for piece in pieces if piece not in finished]
                if pending and wait:
                    logger.info("Waiting for another process, which scores %d of the rows.", len(pending))
                for group, rows, scorer in self._groups(pending, one_by_one=wait):
                    keys = [self._key_of(piece, row, scorer) for piece, row in zip(group, rows, strict=True)]
                    found = store.finish(keys, partial(self._score, group, rows, scorer), wait=wait)
                    for piece, row, done in zip(group, rows, found, strict=True):
                        if done is not None:
                            finished[piece] = done, row.note
                            bar.advance(task=self._name(piece), row=piece.row, nll=f"{done.scores.nll:.3f}")
        by_task: dict[str, dict[str, list[tuple[FinishedRow, str]]]] = {}
        for piece in pieces:
            by_task.setdefault(self._name(piece), {}).setdefault(piece.row, []).append(finished[piece])
        return by_task

    def _groups(
        self, pieces: Sequence[_Piece], *, one_by_one: bool
    ) -> Iterator[tuple[list[_Piece], list[Row], Scorer]]:
        """Yield rows to score together: of one task, and as many as make the best of a pass."""
        group: list[_Piece] = []
        rows: list[Row] = []
        for index, piece in enumerate(pieces):
            row = self._maker.make(self._tasks[piece.place], piece.row, piece.wrong_task)
            with self._named(piece):
                scorer = self._scorer_of(piece.place, row.shots)
            if row.adapter is None:
                yield [piece], [row], scorer
                continue
            group, rows = [*group, piece], [*rows, row]
            following = pieces[index + 1 : index + 2]
            is_last = not following or following[0].place != piece.place
            if is_last or one_by_one or len(group) >= scorer.num_together:
                yield group, rows, scorer
                group, rows = [], []

    def _score(
        self, pieces: Sequence[_Piece], rows: Sequence[Row], scorer: Scorer, missing: list[int]
    ) -> Iterator[FinishedRow]:
        chosen = self._tuned([pieces[place] for place in missing], [rows[place] for place in missing])
        adapters = [row.adapter for row in chosen if row.adapter is not None]
        scores = self.applier.score(scorer, adapters) if adapters else [scorer.score(self._model)]
        for place, row, found in zip(missing, chosen, scores, strict=True):
            with self._named(pieces[place]):
                found.check()
            yield FinishedRow(scores=found, cost=row.cost)

    def _tuned(self, pieces: list[_Piece], rows: list[Row]) -> list[Row]:
        """The rows with their adapters tuned, of those that are to be."""
        places = [place for place, row in enumerate(rows) if row.tuned_on]
        if not places:
            return rows
        started, cpu_started = time.perf_counter(), time.process_time()
        with self._named(*(pieces[place] for place in places)):
            found = tune_many(
                self._model,
                self._tokenizer,
                [adapter for place in places if (adapter := rows[place].adapter) is not None],
                [rows[place].tuned_on for place in places],
                self._tune_settings,
            )
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        tuned = list(rows)
        for place, one in zip(places, found, strict=True):
            cost = rows[place].cost or Cost(seconds=0.0, cpu_seconds=0.0)
            cost = Cost(
                seconds=cost.seconds + seconds / len(places),
                cpu_seconds=(cost.cpu_seconds or 0.0) + cpu_seconds / len(places),
                num_steps=one.num_steps,
            )
            tuned[place] = replace(rows[place], adapter=one.adapter, cost=cost)
        return tuned

    @property
    def _tune_settings(self) -> TuneSettings:
        config = self._config
        return TuneSettings(
            num_steps=config.tune_steps,
            num_folds=config.tune_folds,
            learning_rate=config.tune_learning_rate,
            seed=config.seed,
        )

    def _key_of(self, piece: _Piece, row: Row, scorer: Scorer) -> RowKey:
        # The name is part of the key because the cost depends on how an adapter is made.
        parts: list[Any] = [SCORING_VERSION, piece.row, fingerprint_of_adapter(row.adapter)]
        parts += [scorer.fingerprint, self._model_key]
        if row.tuned_on:
            settings = self._tune_settings
            folds = [settings.num_folds] if settings.num_folds > 1 else []
            parts += [TUNING_VERSION, settings.num_steps, settings.learning_rate, settings.seed, *folds]
            parts += [[[example.prompt, example.response] for example in row.tuned_on]]
        key = fingerprint(*parts, str(self._model.device))
        return RowKey(self._name(piece), piece.row, key)

    def _make_scorer(self, place: int, shots: tuple[Example, ...]) -> Scorer:
        return Scorer(
            self._tokenizer,
            self._tasks[place].examples,
            tokens_per_pass=self._tokens_per_pass,
            shots=shots,
            max_tokens=self._max_tokens,
        )

    def _name(self, piece: _Piece) -> str:
        return self._tasks[piece.place].task.name

    def _named(self, *pieces: _Piece) -> AbstractContextManager[None]:
        """For pieces of one task."""
        return named(self._tasks[pieces[0].place], *(piece.row for piece in pieces))


@contextmanager
def named(inputs: TaskInputs, *rows: str) -> Iterator[None]:
    """Say in an error of the block what it is about."""
    try:
        yield
    except LoragenInferError as error:
        which = f"row{'s' if len(rows) > 1 else ''} {', '.join(map(repr, rows))}"
        raise LoragenInferError(f"The {which} of the task {inputs.task.name!r}: {error}") from error
