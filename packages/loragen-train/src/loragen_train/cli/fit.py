"""The command ``loragen-train fit``: one training, or a dry run of it."""

import shutil
import signal
import subprocess
import sys

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

from loragen_train.configs.fit import FitConfig

__all__ = ["FIT"]


def _add_options(parser: ArgumentParser) -> None:
    resume_help = "Continue the newest unfinished experiment of this name, if there is one (auto), or that folder's."
    dry_help = "Build everything, take two steps, print sizes, memory and the time it will take, and write nothing."
    parser.add_argument("--resume", metavar="{auto,PATH}", help=resume_help)
    parser.add_argument("--dry-run", action="store_true", help=dry_help)


def _fit(config: FitConfig, options: Namespace) -> None:
    if options.dry_run:
        from loragen_train.training.dry_run import dry_run

        sys.stdout.write(f"{dry_run(config)}\n")
        return
    from loragen_train.training.fit import fit
    from loragen_train.training.resume import Interrupted

    try:
        folder = fit(config, resume=options.resume)
    except Interrupted as stop:
        if stop.signal_number == signal.SIGINT:
            raise KeyboardInterrupt from stop
        if stop.signal_number == signal.SIGUSR1:
            _requeue()
        # What a shell reports of a process that a signal ended.
        raise SystemExit(128 + stop.signal_number) from stop
    if folder is not None:
        sys.stdout.write(f"{folder}\n")


def _requeue() -> None:
    """Put the SLURM job that gave notice back into the queue; once it starts again, --resume auto goes on."""
    from loragen_train.training.environment import is_first_process, slurm_job

    scontrol = shutil.which("scontrol")
    if is_first_process() and scontrol is not None:
        subprocess.run([scontrol, "requeue", slurm_job()], check=False)  # noqa: S603  # SLURM's own words


FIT = Command(
    name="fit",
    help="train the generator on checkpoints and prompts",
    description="Train the generator on the tasks of a zoo and write an experiment folder with the bundle. --config is "
    "repeatable: of a key in two files the later one counts, and options count more than files. --zoo D is short for "
    "--data.zoo D, and --checkpoint-dir D for --data.checkpoint_dir D. With several devices start it as it is, or with "
    "torchrun or srun.",
    example="loragen-train fit --zoo zoo --training.max_epochs 200 --resume auto",
    run=_fit,
    config_class=FitConfig,
    add_options=_add_options,
    short_names={"--zoo": "--data.zoo", "--checkpoint-dir": "--data.checkpoint_dir"},
)
