"""Measures whether generated adapters work: reads everything, scores each row of each task, and says what they say.

What can be wrong with the files is found before the language model is loaded.
"""

from importlib.util import find_spec
from pathlib import Path

from loragen_infer.bundle import find_bundle
from loragen_infer.errors import LoragenInferError
from loragen_infer.evaluation.chart import draw_chart
from loragen_infer.evaluation.config import EvaluateConfig
from loragen_infer.evaluation.examples import TaskInputs, read_inputs
from loragen_infer.evaluation.methods import GIVEN_ROWS, RowMaker
from loragen_infer.evaluation.results import Evaluation, TaskResult, summarise, to_json
from loragen_infer.evaluation.row_scorer import RowScorer, named
from loragen_infer.evaluation.scoring import mean_scores
from loragen_infer.evaluation.training_tasks import Training, read_training
from loragen_infer.evaluation.zoo_tasks import hashes_of_joint, with_tasks_of_zoo
from loragen_infer.files import write_json
from loragen_infer.generator import LoraGenerator
from loragen_infer.models.base_model import load_base_model
from loragen_infer.words import counted

__all__ = ["evaluate"]

_NEEDED = ("matplotlib", "peft")


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
    seen_by_joint = frozenset[str]()
    if config.zoo is not None:
        seen_by_joint = hashes_of_joint(config, config.zoo)
        config = with_tasks_of_zoo(config, config.zoo, generator.bundle.training_tasks)
    training = read_training(config, generator, bundle)
    tasks, remarks = _read_tasks(config, training, seen_by_joint)
    for inputs in tasks:
        training.check(inputs)
        remarks += training.near_duplicates(inputs.task, generator.encoder.encode(inputs.prompts))
    maker = RowMaker(config, generator, training, tasks)
    maker.check()
    from_files = [(inputs, row) for inputs in tasks for row in maker.names(inputs) if row in GIVEN_ROWS]
    for inputs, row in from_files:
        maker.given(inputs, row)
    base_model = config.base_model or generator.base_model
    if base_model is None:
        raise LoragenInferError("The generator does not know its language model; name it with --base-model.")

    model, tokenizer = load_base_model(
        base_model, dtype=config.dtype, device=config.device, device_map=config.device_map
    )
    scoring = RowScorer(config, tasks, maker, model, tokenizer)
    try:
        for inputs, row in from_files:
            with named(inputs, row):
                scoring.applier.check(maker.given(inputs, row)[0])
        finished = scoring.finish()
    finally:
        scoring.applier.remove()

    results = []
    for inputs in tasks:
        rows = finished[inputs.task.name]
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


def _read_tasks(
    config: EvaluateConfig, training: Training, seen_by_joint: frozenset[str]
) -> tuple[list[TaskInputs], list[str]]:
    """What each task is evaluated with, and a sentence on every one that has examples which do not count.

    Tasks of a zoo may have samples in common: what one is tested on, the adapter of another may have been trained on.
    """
    shown, seen = training.shown, training.seen | seen_by_joint
    tasks = [read_inputs(task, config, shown=shown, seen=seen) for task in config.tasks]
    remarks = training.unknown(config.tasks)
    for inputs in tasks:
        if inputs.num_seen:
            number = counted(inputs.num_seen, "test example")
            why = "that the generator or an adapter was trained on, for this task or another"
            remarks.append(
                f"The task {inputs.task.name!r} is tested without {number} {why}."
                if inputs.examples
                else f"The task {inputs.task.name!r} is left out: it has no test example but {number} {why}."
            )
    if not (left_over := [inputs for inputs in tasks if inputs.examples]):
        raise LoragenInferError(
            "The generator was trained on every test example of every task; name other files under test."
        )
    return left_over, remarks
