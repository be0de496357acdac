"""Writes what ``loragen-train report`` shows: PNG files, and one HTML page that needs nothing but itself."""

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from loragen_infer.files import atomic_file

from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.figures import Picture, draw_report
from loragen_train.experiments.reader import Experiment, read_experiments

__all__ = ["write_report"]

# It loads nothing, and is forbidden to.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 82rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; } .missing { color: #8a4b00; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
"""
_SECTIONS = {
    "curves": "Losses and metrics",
    "modules": "Error of every module",
    "values": "Predicted against target",
    "system": "The machine",
}
_NUM_WORST = 20


def write_report(folders: Sequence[Path], output: Path, *, plots: Path | None = None) -> dict[str, Any]:
    """Write a report on the experiments in ``folders`` to the HTML file ``output``, and its pictures as PNG files.

    Args:
        folders: Experiment folders, side by side in the report.
        output: The page.
        plots: Folder of the PNG files; by default ``<output without suffix>_plots``.

    Returns:
        ``report`` and ``plots`` (paths), and for each of ``experiments`` its ``name``, ``folder``, ``missing`` pieces,
        and ``metrics`` with ``last``, ``min`` and ``max`` of each.

    Raises:
        LoragenTrainError: A folder is no experiment.
        LoragenInferError: A file cannot be written.
    """
    if output.is_dir():
        raise LoragenTrainError(f"--output {output} is a folder; give the name of an .html file.")
    experiments = read_experiments(folders)
    pictures = draw_report(experiments, plots or output.with_name(f"{output.stem}_plots"))
    page = _page(experiments, pictures)
    with atomic_file(output) as part:
        # A name of a file may hold bytes that are no text.
        part.write_text(page, encoding="utf-8", errors="replace")
    return {
        "report": str(output),
        "plots": [str(picture.path) for picture in pictures],
        "experiments": [
            {
                "name": experiment.name,
                "folder": str(experiment.folder),
                "missing": experiment.missing,
                "metrics": {
                    name: {"last": series.values[-1], "min": min(series.values), "max": max(series.values)}
                    for name, series in experiment.metrics.items()
                },
            }
            for experiment in experiments
        ],
    }


def _page(experiments: Sequence[Experiment], pictures: Sequence[Picture]) -> str:
    title = f"Report on {len(experiments)} experiment{'s' if len(experiments) > 1 else ''}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
    ]
    missing = [f"{experiment.name}: {sentence}" for experiment in experiments for sentence in experiment.missing]
    if missing:
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in missing)
        parts.append(f'<div class="missing"><p>Not everything is there:</p><ul>{items}</ul></div>')
    parts += ["<h2>Last values (least to largest)</h2>", _metric_table(experiments)]
    for section, heading in _SECTIONS.items():
        chosen = [_figure(picture) for picture in pictures if picture.section == section]
        if chosen:
            parts += [f"<h2>{heading}</h2>", '<div class="pictures">', *chosen, "</div>"]
        if section == "modules":
            parts += [_worst_modules(experiment) for experiment in experiments if experiment.modules]
    parts.append("<h2>Configurations</h2>")
    if len(experiments) > 1:
        parts += ["<p>Where they differ:</p>", _differences(experiments)]
    parts += [
        _details(experiment.name, f"<pre>{escape(experiment.config_text)}</pre>")
        for experiment in experiments
        if experiment.config_text
    ]
    return "\n".join([*parts, "</body></html>", ""])


def _figure(picture: Picture) -> str:
    content = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{content}"></figure>'


def _metric_table(experiments: Sequence[Experiment]) -> str:
    def cell(values: list[float]) -> str:
        return f"{values[-1]:.5g} ({min(values):.5g} to {max(values):.5g})"

    shown = [{name: cell(series.values) for name, series in one.metrics.items()} for one in experiments]
    return _side_by_side("metric", experiments, shown)


def _differences(experiments: Sequence[Experiment]) -> str:
    configs = [experiment.config for experiment in experiments]
    keys = {key for config in configs for key in config if len({other.get(key) for other in configs}) > 1}
    shown = [{key: value for key, value in config.items() if key in keys} for config in configs]
    return _side_by_side("key", experiments, shown)


def _side_by_side(head: str, experiments: Sequence[Experiment], columns: Sequence[dict[str, str]]) -> str:
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *(column.get(key, "–") for column in columns)] for key in keys]
    return _table([head, *(experiment.name for experiment in experiments)], rows)


def _worst_modules(experiment: Experiment) -> str:
    keys = ("relative_error", "cosine", "mae", "rmse")
    # What was not finite may be null in the file.
    values = {row["module"]: [math.nan if row[key] is None else row[key] for key in keys] for row in experiment.modules}
    worst = sorted(values, key=lambda module: values[module][0], reverse=True)[:_NUM_WORST]
    rows = [[module, *(f"{value:.4g}" for value in values[module])] for module in worst]
    table = _table(["module", "relative error", "cosine of ΔW", "MAE", "RMSE"], rows)
    return _details(f"{experiment.name}: the modules of the largest relative error", table)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>"
