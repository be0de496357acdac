"""Trains a generator: zoo and prompts in, an experiment folder with the bundle out.

<output_dir>/<name>_YYYYMMDD_HHMMSS/config.yaml            the full configuration
                                    checkpoints/           Lightning checkpoints: the best, and last.ckpt
                                    csv_logs/metrics.csv   losses per epoch
                                    results/final_model/   the bundle
"""

import logging
import math
import signal
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
import yaml
from hyperconv import GeneratorConfig, HyperConvGenerator
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from loragen_infer.bundle import BUNDLE_NAME, GeneratorBundle
from loragen_infer.encoder import PromptEncoder
from loragen_infer.progress import ProgressBar

from loragen_train.config import FitConfig
from loragen_train.data import ZooDataModule
from loragen_train.errors import LoragenTrainError
from loragen_train.module import GeneratorModule
from loragen_train.zoo import Zoo, read_prompts, read_zoo

__all__ = ["fit"]

logger = logging.getLogger(__name__)


def fit(config: FitConfig) -> Path:
    """Train the generator that ``config`` describes and return the experiment folder.

    Raises:
        LoragenTrainError: Prompts and checkpoints do not belong together, or the training diverged.
        LoragenInferError: A prompt file or the text encoder cannot be read.
        LoraTokenizerError: A checkpoint cannot be read or does not fit the token grid.
    """
    started = time.perf_counter()
    seed_everything(config.training.seed, workers=True, verbose=False)
    prompts_dir = Path(config.data.prompts_dir)
    train = read_prompts(prompts_dir / "train_prompts.jsonl")
    val = read_prompts(prompts_dir / "val_prompts.jsonl")
    if missing := sorted(set(train) ^ set(val)):
        raise LoragenTrainError(f"The task {missing[0]!r} is in only one of the two prompt files in {prompts_dir}.")
    zoo = read_zoo(config.data, config.model, list(train))
    use_accelerator = torch.accelerator.is_available() and config.training.accelerator != "cpu"
    device = torch.accelerator.current_accelerator() if use_accelerator else "cpu"
    encoder = PromptEncoder(config.model.text_encoder_name, device=str(device))
    data = ZooDataModule(
        zoo,
        train={task: encoder.encode(prompts) for task, prompts in train.items()},
        val={task: encoder.encode(prompts) for task, prompts in val.items()},
        config=config.data,
        seed=config.training.seed,
    )
    generator = _build_generator(config, zoo, encoder.embedding_dim)
    folder = _make_experiment_folder(Path(config.output_dir), config.name)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
    logger.info(
        "%d checkpoints of %d tasks, %d tokens of %d values; the generator has %.1f M parameters. Experiment: %s",
        *(len(zoo.tasks), len(train), zoo.layout.num_tokens, zoo.layout.token_dim),
        *(generator.config.num_parameters() / 1e6, folder),
    )
    try:
        trainer = _trainer(config, folder)
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LoragenTrainError(
            f"training.accelerator={config.training.accelerator!r} or training.precision={config.training.precision!r} "
            f"is nothing that Lightning can use here: {reason}"
        ) from error
    module = GeneratorModule(generator, zoo.layout.mask(), config.training)
    _run(trainer, module, data)
    val_loss = float(trainer.callback_metrics["val_loss"])
    # The last epochs may come after the last validation, so a finite val_loss says nothing of the weights.
    is_finite = math.isfinite(val_loss) and all(value.isfinite().all() for value in generator.parameters())
    if not is_finite:
        raise LoragenTrainError(
            f"The training diverged (its weights or val_loss, {val_loss}, are not finite); lower "
            f"training.learning_rate, which is {config.training.learning_rate}."
        )
    bundle = GeneratorBundle(
        generator=generator.eval(),
        layout=zoo.layout,
        stats=zoo.stats,
        text_encoder_name=config.model.text_encoder_name,
    )
    saved = bundle.save(folder / "results" / "final_model" / BUNDLE_NAME)
    logger.info("val_loss %.4f after %.0f s. Generator: %s", val_loss, time.perf_counter() - started, saved)
    return folder


def _run(trainer: Trainer, module: GeneratorModule, data: ZooDataModule) -> None:
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        # Lightning turns Ctrl+C into exit code 1 and leaves the process deaf to the next one.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from error


def _build_generator(config: FitConfig, zoo: Zoo, condition_dim: int) -> HyperConvGenerator:
    num_layers, tokens_per_layer, token_dim = zoo.layout.grid
    return HyperConvGenerator(
        GeneratorConfig(
            condition_dim=condition_dim,
            hidden_dim=config.model.hidden_dim,
            grid=(num_layers, tokens_per_layer),
            output_dim=token_dim,
            num_hyperconv_blocks=config.model.num_hyperconv_blocks,
            kernel_size=config.model.kernel_size,
        )
    )


def _make_experiment_folder(output_dir: Path, name: str) -> Path:
    """Make a folder that no other run has, even one started in the same second."""
    stem = f"{name}_{datetime.now():%Y%m%d_%H%M%S}"
    for suffix in ("", *(f"_{number}" for number in range(2, 1000))):
        folder = output_dir / (stem + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise LoragenTrainError(f"{folder} cannot be made: {error.strerror}; choose another output_dir.") from error
        return folder
    raise LoragenTrainError(f"{output_dir} has a thousand experiments called {stem}; choose another name.")


def _trainer(config: FitConfig, folder: Path) -> Trainer:
    training = config.training
    epochs_between_validations = max(1, training.max_epochs // 10)
    return Trainer(
        default_root_dir=folder,
        accelerator=training.accelerator,
        devices=1,
        precision=training.precision,  # type: ignore[arg-type]  # Lightning refuses a wrong one by name
        max_epochs=training.max_epochs,
        check_val_every_n_epoch=epochs_between_validations,
        reload_dataloaders_every_n_epochs=1,
        deterministic=True,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=CSVLogger(folder, name="", version="csv_logs"),
        callbacks=[
            ModelCheckpoint(
                dirpath=folder / "checkpoints",
                filename="{epoch}-{val_loss:.4f}",
                monitor="val_loss",
                save_last=True,
            ),
            _EpochProgress(),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _EpochProgress(Callback):
    """One bar over all epochs: epochs of a small zoo are too short for a bar each."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = ProgressBar("fit", total=trainer.max_epochs or 0, unit="epoch")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {
            name: f"{trainer.callback_metrics[name].item():.4f}"
            for name in ("train_loss", "val_loss")
            if name in trainer.callback_metrics
        }
        self._bar.advance(**shown)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()
