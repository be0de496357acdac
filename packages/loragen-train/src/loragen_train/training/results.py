"""Writes what a training leaves: the bundle of the best weights, the means of the tasks, and how well they are met."""

from pathlib import Path

import torch
from loragen_infer.bundle import BUNDLE_NAME, TORCH_BUNDLE_NAME, GeneratorBundle, TrainingTasks
from loragen_infer.encoder import PromptEncoder
from loragen_infer.evaluation import TASK_MEANS_NAME, TaskMeansWriter
from loragen_infer.files import atomic_folder, write_json

from loragen_train.configs.fit import FitConfig
from loragen_train.experiments.folder import FINAL_MODEL
from loragen_train.training.build import TrainingSetup
from loragen_train.training.validate import Validation, embeddings

__all__ = ["write_results"]


def write_results(
    setup: TrainingSetup, config: FitConfig, folder: Path, *, weights: Path | None, device: torch.device
) -> None:
    """Validate on ``device`` and write ``results/`` of the experiment.

    Args:
        setup: The training, as it ended.
        config: Its configuration.
        folder: The experiment.
        weights: Checkpoint of the weights to use; None: those that the training ended with.
        device: Where to validate.

    Raises:
        LoragenInferError: The disk refuses.
    """
    module, zoo = setup.module, setup.zoo
    if weights is not None:
        module.load_state_dict(torch.load(weights, weights_only=True, mmap=True, map_location="cpu")["state_dict"])
    # The bundle is of float32 whatever was trained in, and that is what is validated.
    module.float().eval().to(device)
    num_tokens, token_dim = zoo.stats.mean.shape
    with atomic_folder(folder / FINAL_MODEL) as part:
        validation = Validation(setup)
        with TaskMeansWriter(part / TASK_MEANS_NAME, num_tokens=num_tokens, token_dim=token_dim) as writer:
            for task, mean_NW in zoo.task_means():
                writer.add(task, embeddings(module, setup.table.train[task]), mean_NW)
                validation.add(task, mean_NW)
        module.cpu()
        bundle = _bundle(setup, config)
        for name in (BUNDLE_NAME, TORCH_BUNDLE_NAME):
            bundle.save(part / name)
        write_json(folder / "results" / "validation.json", validation.result())


def _bundle(setup: TrainingSetup, config: FitConfig) -> GeneratorBundle:
    encoder, is_trained = setup.encoder, not config.model.freeze_text_encoder
    return GeneratorBundle(
        generator=setup.module.generator,
        layout=setup.zoo.layout,
        stats=setup.zoo.stats,
        **encoder.record,
        text_encoder_state=encoder.module.state_dict() if isinstance(encoder, PromptEncoder) and is_trained else None,
        training_tasks=_training_tasks(setup),
    )


def _training_tasks(setup: TrainingSetup) -> TrainingTasks:
    """All tasks that the generator has seen something of; the joint adapter that it starts from may have seen more."""
    shown, learned = setup.prompts.train_hashes, setup.sample_hashes
    return TrainingTasks(
        names=tuple(dict.fromkeys([*setup.prompts.train, *shown, *learned])),
        prompt_hashes={task: found for task, found in shown.items() if found},
        sample_hashes={task: found for task, found in learned.items() if found},
    )
