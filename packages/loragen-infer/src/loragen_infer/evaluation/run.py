"""Measures whether generated adapters work, beside the baselines and controls that a claim needs.

Everything that can be wrong with the files is found before the language model is loaded; then every row of every task
is scored that no earlier run, and no other process on the same folder, has finished.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.adapters.attach import adapter_attached
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.chart import draw_chart
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask
from loragen_infer.evaluation.examples import TestExample, read_test_examples
from loragen_infer.evaluation.methods import Row, RowMaker
from loragen_infer.evaluation.results import Evaluation, ScoredTask, summarise, to_json
from loragen_infer.evaluation.scoring import ExampleScores, Scorer
from loragen_infer.evaluation.store import (
    FinishedRow,
    RowStore,
    fingerprint,
    fingerprint_of_adapter,
    fingerprint_of_model,
)
from loragen_infer.evaluation.training_tasks import (
    is_held_out,
    read_own_adapter,
    read_task_prompts,
    read_training_tasks,
)
from loragen_infer.files import write_json
from loragen_infer.generator import LoraGenerator
from loragen_infer.models.base_model import load_base_model
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import Example, read_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_NEEDED = ("matplotlib", "peft", "sklearn")


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Score every row on every task, write ``evaluation.json`` and ``evaluation.png``, and return the results.

    A row that is finished under ``output_dir`` is not scored again; several processes may share the folder.

    Raises:
        LoragenInferError: A file cannot be read, an adapter does not fit the language model or gives it likelihoods
            that are not finite, or the folder cannot be written to.
    """
    output_dir = Path(config.output_dir)
    _check_before_long_work(output_dir)
    prompts = {
        task.name: read_task_prompts(task.name, Path(task.prompts))[: config.num_prompts] for task in config.tasks
    }
    examples = {task.name: read_test_examples(task)[: config.num_examples] for task in config.tasks}
    shots = {
        task.name: _read_shots(Path(task.shots), config.num_shots, task, examples[task.name])
        for task in config.tasks
        if task.shots is not None and "few-shot" in config.wanted_rows
    }
    trained = _trained_adapters(config)
    for whose, path in trained.items():
        read_own_adapter(whose, path)
    generator = LoraGenerator.from_pretrained(config.model, device=config.device)
    training = read_training_tasks(config, generator)
    maker = RowMaker(config, generator, training, prompts, shots)
    maker.check()
    name = config.base_model or generator.base_model
    if name is None:
        raise LoragenInferError("The generator does not know its language model; name it with --base-model.")
    model, tokenizer = load_base_model(name, device=config.device)
    for whose, path in trained.items():
        with _named(f"The adapter of {whose}"), adapter_attached(model, read_own_adapter(whose, path)[0]):
            pass

    finished = _finish_rows(config, maker, _Bench(config, maker, examples, model, tokenizer))
    scored = [
        ScoredTask(
            task=task.name,
            held_out=is_held_out(task, training),
            wrong_task=maker.wrong_task(task),
            rows={row: finished[task.name, row][0].scores for row in maker.names(task)},
            costs={row: cost for row in maker.names(task) if (cost := finished[task.name, row][0].cost) is not None},
            notes={row: note for row in maker.names(task) if (note := finished[task.name, row][1])},
        )
        for task in config.tasks
    ]
    evaluation = summarise(scored, num_resamples=config.num_resamples, seed=config.seed)
    draw_chart(evaluation, output_dir / "evaluation.png")
    write_json(output_dir / "evaluation.json", to_json(config, evaluation))
    return evaluation


class _Bench:
    """The language model and the examples; scores rows that are not finished."""

    def __init__(
        self,
        config: EvaluateConfig,
        maker: RowMaker,
        examples: Mapping[str, Sequence[TestExample]],
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self._config, self._maker, self._examples = config, maker, examples
        self._model, self._tokenizer = model, tokenizer
        self._max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)
        self._fingerprint = fingerprint_of_model(model)
        self._store = RowStore(Path(config.output_dir))

    def finish(self, task: EvaluateTask, name: str, *, wait: bool) -> tuple[FinishedRow, str] | None:
        """Return a row, from the store or scored now, with its note; None while another process scores it."""
        row = self._maker.make(task, name)
        with _named(f"The row {name!r} of the task {task.name!r}"):
            scorer = Scorer(
                self._tokenizer,
                self._examples[task.name],
                batch_size=self._config.batch_size,
                shots=row.shots,
                max_tokens=self._max_tokens,
            )
            # The name is part of the key because the cost depends on how an adapter is made.
            device = str(self._model.device)
            key = fingerprint(name, fingerprint_of_adapter(row.adapter), scorer.sequences, self._fingerprint, device)
            with self._store.claim(key, wait=wait) as claimed:
                finished = self._store.read(task.name, name, key)
                if finished is None and claimed:
                    finished = FinishedRow(scores=self._score(scorer, row), cost=row.cost)
                    self._store.write(task.name, name, key, finished)
        return None if finished is None else (finished, row.note)

    def _score(self, scorer: Scorer, row: Row) -> ExampleScores:
        if row.adapter is None:
            return scorer.score(self._model)
        with adapter_attached(self._model, row.adapter) as adapted:
            return scorer.score(adapted)


def _finish_rows(
    config: EvaluateConfig, maker: RowMaker, bench: _Bench
) -> dict[tuple[str, str], tuple[FinishedRow, str]]:
    """Return every row of every task by both names; what another process is at comes last."""
    pending = [(task, row) for task in config.tasks for row in maker.names(task)]
    done: dict[tuple[str, str], tuple[FinishedRow, str]] = {}
    with ProgressBar("evaluate", total=len(pending), unit="row") as bar:
        for wait in (False, True):
            taken = []
            for task, row in pending:
                found = bench.finish(task, row, wait=wait)
                if found is None:
                    taken.append((task, row))
                    continue
                done[task.name, row] = found
                bar.advance(task=task.name, row=row, nll=f"{found[0].scores.nll:.3f}")
            if taken:
                logger.info("Waiting for another process, which scores %d of the rows.", len(taken))
            pending = taken
    return done


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


def _read_shots(path: Path, num_shots: int, task: EvaluateTask, tested: Sequence[TestExample]) -> list[Example]:
    shots = read_examples(path)[:num_shots]
    if len(shots) < num_shots:
        raise LoragenInferError(f"{path} has {len(shots)} examples, but num_shots is {num_shots}; lower it.")
    prompts = {example.prompt for example in tested}
    for shot in shots:
        if shot.prompt in prompts:
            raise LoragenInferError(
                f"{path} would show {shot.prompt[:60]!r} with its response, but the task {task.name!r} is tested on "
                "it; name a file of other examples under shots."
            )
    return shots


def _trained_adapters(config: EvaluateConfig) -> dict[str, Path]:
    """By whose they are, the adapters that the rows ``own`` and ``joint`` need."""
    found = {}
    if "own" in config.wanted_rows:
        found = {f"the task {task.name!r}": Path(task.adapter) for task in config.tasks if task.adapter is not None}
    if "joint" in config.wanted_rows and config.joint_adapter is not None:
        found["joint_adapter"] = Path(config.joint_adapter)
    return found
