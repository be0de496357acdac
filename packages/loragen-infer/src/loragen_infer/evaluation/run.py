"""Measures whether generated adapters work: reads everything, scores each row of each task, and says what they say.

What can be wrong with the files is found before the language model is loaded.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.adapters.attach import adapter_attached
from loragen_infer.bundle import find_bundle
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.chart import draw_chart
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.examples import TaskInputs, read_inputs
from loragen_infer.evaluation.methods import TRAINED_ROWS, Row, RowMaker
from loragen_infer.evaluation.results import Evaluation, TaskResult, summarise, to_json
from loragen_infer.evaluation.scoring import Scorer, mean_scores
from loragen_infer.evaluation.store import (
    FinishedRow,
    RowStore,
    fingerprint,
    fingerprint_of_adapter,
    fingerprint_of_model,
)
from loragen_infer.evaluation.training_tasks import read_training
from loragen_infer.evaluation.zoo_tasks import with_tasks_of_zoo
from loragen_infer.files import write_json
from loragen_infer.generator import LoraGenerator
from loragen_infer.models.base_model import load_base_model
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

_NEEDED = ("matplotlib", "peft")

# By task and row, each with its note; of ``wrong prompts`` a part for every other task.
_Finished = dict[tuple[str, str], list[tuple[FinishedRow, str]]]


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Score every row on every task, write ``evaluation.json`` and ``evaluation.png``, and return the results.

    A row that is finished under ``output_dir`` is not scored again; several processes may share the folder.

    Raises:
        LoragenInferError: A file cannot be read, the generator was trained on test examples or on a task that is said
            to be held out, an adapter does not fit the language model or gives it likelihoods that are not finite, or
            the folder cannot be written to.
    """
    output_dir = Path(config.output_dir)
    for module in _NEEDED:
        if find_spec(module) is None:
            raise LoragenInferError(f"Evaluating needs {module}; install it with: pip install 'loragen-infer[eval]'.")
    if output_dir.exists() and not output_dir.is_dir():
        raise LoragenInferError(f"output_dir {output_dir} is a file; give the folder to write the results to.")
    given, bundle = config, find_bundle(config.model)
    generator = LoraGenerator.from_pretrained(bundle, device=config.device, condition_model=config.base_model)
    if config.zoo is not None:
        config = with_tasks_of_zoo(config, config.zoo, generator.bundle.training_tasks)
    training = read_training(config, generator, bundle)
    seen = training.seen
    tasks = [read_inputs(task, config, seen=seen) for task in config.tasks]
    remarks = training.unknown(config.tasks)
    for inputs in tasks:
        training.check(inputs)
        remarks += training.near_duplicates(inputs.task, generator.encoder.encode(inputs.prompts))
    maker = RowMaker(config, generator, training, tasks)
    maker.check()
    trained = [(inputs, row) for inputs in tasks for row in maker.names(inputs) if row in TRAINED_ROWS]
    for inputs, row in trained:
        maker.trained(inputs, row)
    base_model = config.base_model or generator.base_model
    if base_model is None:
        raise LoragenInferError("The generator does not know its language model; name it with --base-model.")

    model, tokenizer = load_base_model(
        base_model, dtype=config.dtype, device=config.device, device_map=config.device_map
    )
    for inputs, row in trained:
        with _named(inputs, row), adapter_attached(model, maker.trained(inputs, row)[0]):
            pass
    finished = _score_rows(config, tasks, maker, model, tokenizer)

    results = []
    for inputs in tasks:
        rows = {row: finished[inputs.task.name, row] for row in maker.names(inputs)}
        results.append(
            TaskResult(
                task=inputs.task.name,
                held_out=training.held_out(inputs.task),
                wrong_tasks=maker.wrong_tasks(inputs),
                rows={row: mean_scores([part.scores for part, _ in parts]) for row, parts in rows.items()},
                costs={row: cost for row, parts in rows.items() if (cost := parts[0][0].cost) is not None},
                notes={row: note for row, parts in rows.items() if (note := parts[0][1])},
            )
        )
    evaluation = summarise(results, num_resamples=config.num_resamples, seed=config.seed, remarks=remarks)
    draw_chart(evaluation, output_dir / "evaluation.png")
    write_json(output_dir / "evaluation.json", to_json(given, evaluation))
    return evaluation


def _score_rows(
    config: EvaluateConfig,
    tasks: Sequence[TaskInputs],
    maker: RowMaker,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> _Finished:
    """Score what is not finished; what another process is at comes last."""
    store, model_key = RowStore(Path(config.output_dir)), fingerprint_of_model(model)
    max_tokens: int | None = getattr(model.config, "max_position_embeddings", None)

    @lru_cache(maxsize=2)  # of one task without and with shots; more would only take memory
    def scorer_of(place: int, shots: tuple[Example, ...]) -> Scorer:
        examples = tasks[place].examples
        return Scorer(tokenizer, examples, batch_size=config.batch_size, shots=shots, max_tokens=max_tokens)

    finished: _Finished = defaultdict(list)
    pending = [
        (place, row, wrong_task)
        for place, inputs in enumerate(tasks)
        for row in maker.names(inputs)
        for wrong_task in (maker.wrong_tasks(inputs) if row == "wrong prompts" else [None])
    ]
    with ProgressBar("evaluate", total=len(pending), unit="row") as bar:
        for wait in (False, True):
            taken = []
            for piece in pending:
                place, name, wrong_task = piece
                task = tasks[place].task.name
                row = maker.make(tasks[place], name, wrong_task)
                with _named(tasks[place], name):
                    scorer = scorer_of(place, row.shots)
                    # The name is part of the key because the cost depends on how an adapter is made.
                    key = fingerprint(
                        name, fingerprint_of_adapter(row.adapter), scorer.fingerprint, model_key, str(model.device)
                    )
                    found = store.finish(task, name, key, partial(_score, scorer, model, row), wait=wait)
                if found is None:
                    taken.append(piece)
                    continue
                finished[task, name].append((found, row.note))
                bar.advance(task=task, row=name, nll=f"{found.scores.nll:.3f}")
            if taken:
                logger.info("Waiting for another process, which scores %d of the rows.", len(taken))
            pending = taken
    return finished


def _score(scorer: Scorer, model: "PreTrainedModel", row: Row) -> FinishedRow:
    if row.adapter is None:
        return FinishedRow(scores=scorer.score(model), cost=None)
    with adapter_attached(model, row.adapter) as adapted:
        return FinishedRow(scores=scorer.score(adapted), cost=row.cost)


@contextmanager
def _named(inputs: TaskInputs, row: str) -> Iterator[None]:
    """Say in an error of the block what it is about."""
    try:
        yield
    except LoragenInferError as error:
        raise LoragenInferError(f"The row {row!r} of the task {inputs.task.name!r}: {error}") from error
