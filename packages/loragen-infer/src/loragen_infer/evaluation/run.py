"""Measures whether generated adapters work, beside the baselines and controls that a claim needs.

Three stages: everything is read, so that what can be wrong with the files is found before the language model is loaded;
every row of every task is scored that no earlier run, and no other process on the same folder, has finished; and what
the finished rows say is computed and written.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.adapters.attach import adapter_attached
from loragen_infer.bundle import find_bundle
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.chart import draw_chart
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.examples import TaskInputs, read_inputs
from loragen_infer.evaluation.methods import Row, RowMaker
from loragen_infer.evaluation.results import Evaluation, ScoredTask, summarise, to_json
from loragen_infer.evaluation.scoring import ExampleScores, Scorer, mean_scores
from loragen_infer.evaluation.store import (
    FinishedRow,
    RowStore,
    fingerprint,
    fingerprint_of_adapter,
    fingerprint_of_model,
)
from loragen_infer.evaluation.training_tasks import Training, read_own_adapter, read_training
from loragen_infer.files import write_json
from loragen_infer.generator import LoraGenerator
from loragen_infer.models.base_model import load_base_model
from loragen_infer.progress import ProgressBar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_NEEDED = ("matplotlib", "peft", "sklearn")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is evaluated, read and checked."""

    tasks: list[TaskInputs]
    training: Training
    maker: RowMaker
    base_model: str
    remarks: list[str]


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A row of a task; of ``wrong prompts``, its part with the prompts of one other task."""

    inputs: TaskInputs
    row: str
    wrong_task: str | None


_Log = dict[tuple[str, str], list[tuple[FinishedRow, str]]]


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Score every row on every task, write ``evaluation.json`` and ``evaluation.png``, and return the results.

    A row that is finished under ``output_dir`` is not scored again; several processes may share the folder.

    Raises:
        LoragenInferError: A file cannot be read, the generator was trained on test examples or on a task that is said
            to be held out, an adapter does not fit the language model or gives it likelihoods that are not finite, or
            the folder cannot be written to.
    """
    output_dir = Path(config.output_dir)
    _check_before_long_work(output_dir)
    plan = _read(config)
    log = _score(config, plan)
    evaluation = _analyse(config, plan, log)
    draw_chart(evaluation, output_dir / "evaluation.png")
    write_json(output_dir / "evaluation.json", to_json(config, evaluation))
    return evaluation


def _read(config: EvaluateConfig) -> _Plan:
    tasks = [read_inputs(task, config) for task in config.tasks]
    for whose, path in _trained_adapters(config).items():
        read_own_adapter(whose, path)
    generator = LoraGenerator.from_pretrained(config.model, device=config.device)
    training = read_training(config, generator, find_bundle(Path(config.model)))
    for inputs in tasks:
        training.check(inputs)
    maker = RowMaker(config, generator, training, tasks)
    maker.check()
    base_model = config.base_model or generator.base_model
    if base_model is None:
        raise LoragenInferError("The generator does not know its language model; name it with --base-model.")
    near = [
        sentence
        for inputs in tasks
        for sentence in training.near_duplicates(inputs.task, generator.encoder.encode(inputs.prompts))
    ]
    return _Plan(
        tasks=tasks,
        training=training,
        maker=maker,
        base_model=base_model,
        remarks=[*training.unknown(config.tasks), *near],
    )


def _score(config: EvaluateConfig, plan: _Plan) -> _Log:
    """Return every row of every task by both names, in its parts; what another process is at comes last."""
    model, tokenizer = load_base_model(plan.base_model, device=config.device)
    for whose, path in _trained_adapters(config).items():
        with _named(f"The adapter of {whose}"), adapter_attached(model, read_own_adapter(whose, path)[0]):
            pass
    bench = _Bench(config, plan.maker, model, tokenizer)
    pending = [
        _Piece(inputs=inputs, row=row, wrong_task=wrong_task)
        for inputs in plan.tasks
        for row in plan.maker.names(inputs)
        for wrong_task in (plan.maker.wrong_tasks(inputs) if row == "wrong prompts" else [None])
    ]
    log: _Log = {}
    with ProgressBar("evaluate", total=len(pending), unit="row") as bar:
        for wait in (False, True):
            taken = []
            for piece in pending:
                found = bench.finish(piece, wait=wait)
                if found is None:
                    taken.append(piece)
                    continue
                task = piece.inputs.task.name
                log.setdefault((task, piece.row), []).append(found)
                bar.advance(task=task, row=piece.row, nll=f"{found[0].scores.nll:.3f}")
            if taken:
                logger.info("Waiting for another process, which scores %d of the rows.", len(taken))
            pending = taken
    return log


def _analyse(config: EvaluateConfig, plan: _Plan, log: _Log) -> Evaluation:
    scored = []
    for inputs in plan.tasks:
        name, rows = inputs.task.name, plan.maker.names(inputs)
        scored.append(
            ScoredTask(
                task=name,
                held_out=plan.training.held_out(inputs.task),
                wrong_tasks=plan.maker.wrong_tasks(inputs),
                rows={row: mean_scores([finished.scores for finished, _ in log[name, row]]) for row in rows},
                costs={row: cost for row in rows if (cost := log[name, row][0][0].cost) is not None},
                notes={row: note for row in rows if (note := log[name, row][0][1])},
            )
        )
    return summarise(scored, num_resamples=config.num_resamples, seed=config.seed, remarks=plan.remarks)


class _Bench:
    """The language model and the examples; scores rows that are not finished."""

    def __init__(
        self,
        config: EvaluateConfig,
        maker: RowMaker,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self._config, self._maker, self._model, self._tokenizer = config, maker, model, tokenizer
        self._max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)
        self._fingerprint = fingerprint_of_model(model)
        self._store = RowStore(Path(config.output_dir))
        self._scorers: dict[tuple[str, bool], Scorer] = {}

    def finish(self, piece: _Piece, *, wait: bool) -> tuple[FinishedRow, str] | None:
        """Return a row, from the store or scored now, with its note; None while another process scores it."""
        row = self._maker.make(piece.inputs, piece.row, piece.wrong_task)
        task, name = piece.inputs.task.name, piece.row
        with _named(f"The row {name!r} of the task {task!r}"):
            scorer = self._scorer(piece.inputs, row)
            # The name is part of the key because the cost depends on how an adapter is made.
            device = str(self._model.device)
            key = fingerprint(name, fingerprint_of_adapter(row.adapter), scorer.fingerprint, self._fingerprint, device)
            with self._store.claim(key, wait=wait) as claimed:
                finished = self._store.read(task, name, key)
                if finished is None and claimed:
                    finished = FinishedRow(scores=self._score(scorer, row), cost=row.cost)
                    self._store.write(task, name, key, finished)
        return None if finished is None else (finished, row.note)

    def _scorer(self, inputs: TaskInputs, row: Row) -> Scorer:
        key = (inputs.task.name, bool(row.shots))
        if key not in self._scorers:
            # Those of other tasks would only take memory.
            self._scorers = {other: scorer for other, scorer in self._scorers.items() if other[0] == key[0]}
            self._scorers[key] = Scorer(
                self._tokenizer,
                inputs.examples,
                batch_size=self._config.batch_size,
                shots=row.shots,
                max_tokens=self._max_tokens,
            )
        return self._scorers[key]

    def _score(self, scorer: Scorer, row: Row) -> ExampleScores:
        if row.adapter is None:
            return scorer.score(self._model)
        with adapter_attached(self._model, row.adapter) as adapted:
            return scorer.score(adapted)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in an error of the block what it is about."""
    try:
        yield
    except LoragenInferError as error:
        raise LoragenInferError(f"{what}: {error}") from error


def _check_before_long_work(output_dir: Path) -> None:
    for module in _NEEDED:
        if find_spec(module) is None:
            raise LoragenInferError(f"Evaluating needs {module}; install it with: pip install 'loragen-infer[eval]'.")
    if output_dir.exists() and not output_dir.is_dir():
        raise LoragenInferError(f"output_dir {output_dir} is a file; give the folder to write the results to.")


def _trained_adapters(config: EvaluateConfig) -> dict[str, Path]:
    """By whose they are, the adapters that the rows ``own`` and ``joint`` need."""
    found = {}
    if "own" in config.wanted_rows:
        found = {f"the task {task.name!r}": Path(task.adapter) for task in config.tasks if task.adapter is not None}
    if "joint" in config.wanted_rows and config.joint_adapter is not None:
        found["joint_adapter"] = Path(config.joint_adapter)
    return found
