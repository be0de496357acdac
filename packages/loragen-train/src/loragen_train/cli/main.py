"""The command line ``loragen-train``: collect, prepare, analyze, test-tokenizer, fit and report."""

import sys
from collections.abc import Sequence

from loragen_infer.cli.command_line import run_command_line

from loragen_train.cli.analyze import ANALYZE, TEST_TOKENIZER
from loragen_train.cli.collect import COLLECT
from loragen_train.cli.fit import FIT
from loragen_train.cli.prepare import PREPARE
from loragen_train.cli.report import REPORT

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (default: the process's) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    description = "Train a generator of LoRA adapters on a zoo of them."
    commands = [COLLECT, PREPARE, ANALYZE, TEST_TOKENIZER, FIT, REPORT]
    return run_command_line("loragen-train", description, commands, words)
