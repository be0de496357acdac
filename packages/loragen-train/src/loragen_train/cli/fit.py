"""The command ``loragen-train fit``: one training, a dry run of it, or several configurations one after another."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

from loragen_train.configs.fit import FitConfig

__all__ = ["FIT", "fit_each"]


def _add_options(parser: ArgumentParser) -> None:
    each_help = "Train several configurations one after another; one that fails does not stop the rest."
    resume_help = "Continue the newest unfinished experiment of this name, if there is one (auto), or that folder's."
    dry_help = "Build everything, run one batch, print sizes, memory and the time it will take, and write nothing."
    parser.add_argument("--resume", metavar="{auto,PATH}", help=resume_help)
    parser.add_argument("--dry-run", action="store_true", help=dry_help)
    # Taken out of the words by fit_each before they are parsed; here it is for --help.
    parser.add_argument("--each", nargs="+", metavar="CONFIG", help=each_help)


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
    from loragen_train.training.build import is_first_process

    scontrol = shutil.which("scontrol")
    if is_first_process() and scontrol is not None:
        subprocess.run([scontrol, "requeue", os.environ["SLURM_JOB_ID"]], check=False)  # noqa: S603  # SLURM's own words


FIT = Command(
    name="fit",
    help="train the generator on checkpoints and prompts",
    description="Train the generator and write an experiment folder with the bundle. --config is repeatable: of a key "
    "in two files the later one counts, and options count more than files. --checkpoint-dir D is short for "
    "--data.checkpoint_dir D. With several devices start it as it is, or with torchrun or srun.",
    example="loragen-train fit --config config/generator_config.yaml --training.max_epochs 200 --resume auto",
    run=_fit,
    config_class=FitConfig,
    add_options=_add_options,
    short_names={"--checkpoint-dir": "--data.checkpoint_dir"},
)


def fit_each(words: Sequence[str]) -> int:
    """Run ``fit`` for every file after ``--each``, with the other words, and return the exit code of the whole.

    Each run is a process of its own, so that not even one that is killed takes the others along.
    """
    start = list(words).index("--each")
    configs = []
    for word in words[start + 1 :]:
        if word.startswith("-"):
            break
        configs.append(word)
    others = [*words[:start], *words[start + 1 + len(configs) :]]
    if not configs:
        sys.stderr.write("loragen-train fit: error: --each needs at least one configuration file\n")
        return 2
    codes = {}
    for number, config in enumerate(configs, start=1):
        sys.stderr.write(f"[{number}/{len(configs)}] {config}\n")
        try:
            codes[config] = subprocess.run(  # noqa: S603  # this program, with words of its own user
                [sys.executable, "-m", "loragen_train.cli.main", *others, "--config", config], check=False
            ).returncode
        except KeyboardInterrupt:
            sys.stderr.write("loragen-train fit: interrupted; what is finished is kept.\n")
            return 130
        if codes[config] == 130:
            return 130
    for config, code in codes.items():
        sys.stderr.write(f"{config}: {'done' if code == 0 else f'failed with exit code {code}'}\n")
    return 0 if not any(codes.values()) else 1
