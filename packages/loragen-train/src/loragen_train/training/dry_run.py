"""Tries a configuration: everything is built, the trainer takes two steps, and nothing is written."""

from lightning.pytorch import seed_everything

from loragen_train.configs.fit import FitConfig
from loragen_train.training.build import build_setup
from loragen_train.training.callbacks import MachineUse
from loragen_train.training.environment import cache_folder
from loragen_train.training.trainer import check_hardware, make_trainer, run_trainer

__all__ = ["dry_run"]


def dry_run(config: FitConfig) -> str:
    """Build everything that ``config`` describes, take two steps of its training on one device, and say what it takes.

    Raises:
        LoragenTrainError, LoragenInferError, LoraTokenizerError: As :func:`loragen_train.training.fit.fit`.
    """
    training = config.training
    seed_everything(training.seed, workers=True, verbose=False)
    num_processes = check_hardware(config)
    with cache_folder(config, keep=False) as cache_dir:
        setup = build_setup(config, cache_dir)
        trainer = make_trainer(
            config,
            **{"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "enable_checkpointing": False},
            **{"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 0, "callbacks": [MachineUse()]},
        )
        run_trainer(trainer, setup, config)
        num_batches = -(-len(setup.pairs.train_dataloader()) // num_processes)
    # They are of the second epoch, whose only step needs no warming up.
    metrics = trainer.callback_metrics
    memory_mib = metrics.get("gpu_memory_mib", metrics["rss_mib"])
    seconds_per_batch = config.data.batch_size / metrics["samples_per_second"].item()
    num_steps = -(-num_batches // training.accumulate_grad_batches) * training.max_epochs
    num_trained = sum(value.numel() for value in setup.module.parameters() if value.requires_grad)
    hours, rest = divmod(round(seconds_per_batch * num_batches * training.max_epochs), 3600)
    return (
        f"{len(setup.zoo.tasks)} checkpoints, {setup.module.generator.num_parameters():,} parameters in the generator "
        f"({num_trained:,} are trained)\n"
        f"loss {metrics['train_loss']:.4f}, {memory_mib:,.0f} MiB of memory\n"
        f"{num_steps:,} steps, about {hours} h {rest // 60} min {rest % 60} s without validation"
    )
