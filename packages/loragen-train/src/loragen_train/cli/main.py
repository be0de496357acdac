"""The command line ``loragen-train``, from ``collect`` to ``tune``."""

from collections.abc import Sequence
from importlib.metadata import version

from hyperconv.errors import HyperConvError
from lora_tokenizer.errors import LoraTokenizerError
from loragen_infer.cli.command_line import run_command_line
from loragen_infer.errors import LoragenInferError

from loragen_train.cli.analyze import ANALYZE, TEST_TOKENIZER
from loragen_train.cli.collect import COLLECT
from loragen_train.cli.fit import FIT
from loragen_train.cli.import_zoo import IMPORT
from loragen_train.cli.joint import JOINT
from loragen_train.cli.prepare import PREPARE
from loragen_train.cli.report import REPORT
from loragen_train.cli.tune import TUNE
from loragen_train.errors import LoragenTrainError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with ``argv`` (default: the process's) and return the exit code."""
    return run_command_line(
        "loragen-train",
        "Train a generator of LoRA adapters on a zoo of them.",
        [COLLECT, IMPORT, JOINT, PREPARE, ANALYZE, TEST_TOKENIZER, FIT, REPORT, TUNE],
        argv,
        errors=(LoragenTrainError, LoragenInferError, LoraTokenizerError, HyperConvError),
        loggers=("loragen_train", "loragen_infer", "lora_tokenizer", "hyperconv"),
        version=version("loragen-train"),
    )
