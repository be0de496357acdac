"""The command ``loragen-train report``."""

import json
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from loragen_infer.cli.command_line import Command

__all__ = ["REPORT"]


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="Folders that fit has written.")
    parser.add_argument("--output", default="report.html", help="The page to write.")
    parser.add_argument("--plots", metavar="DIR", help="Folder of the PNG files; by default named after the page.")
    parser.add_argument("--json", action="store_true", help="Print the paths and the metrics as JSON.")


def _report(options: Namespace) -> None:
    from loragen_train.experiments.report import write_report

    plots = None if options.plots is None else Path(options.plots)
    written = write_report([Path(folder) for folder in options.experiments], Path(options.output), plots=plots)
    if options.json:
        print(json.dumps(written, indent=2, ensure_ascii=False))
        return
    for experiment in written["experiments"]:
        for sentence in experiment["missing"]:
            sys.stderr.write(f"{experiment['name']}: {sentence}\n")
    print(written["report"])


REPORT = Command(
    name="report",
    help="show one or several trainings as a page with pictures",
    description="Write loss and metric curves, errors of every module and predicted against target values, several "
    "experiments side by side, as PNG files and one HTML page. What an experiment does not have (yet) is named.",
    example="loragen-train report experiments/mine_20260101_120000 --output report.html",
    run=_report,
    add_options=_add_options,
)
