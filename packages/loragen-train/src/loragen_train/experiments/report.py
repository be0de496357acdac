"""Writes what ``loragen-train report`` shows: PNG files, and one HTML page that needs nothing but itself.

The pictures are in the page as base64; it loads nothing, and its content policy forbids it to. Every name that comes
from a file is escaped.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from loragen_infer.files import atomic_file

from loragen_train.errors import LoragenTrainError
from loragen_train.experiments.figures import Picture, draw_report
from loragen_train.experiments.reader import Experiment, read_experiments

__all__ = ["write_report"]

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
        *_missing(experiments),
        "<h2>Last values (least to largest)</h2>",
        _metric_table(experiments),
    ]
    for section, heading in _SECTIONS.items():
        chosen = [picture for picture in pictures if picture.section == section]
        if chosen:
            parts += [f"<h2>{heading}</h2>", '<div class="pictures">', *map(_figure, chosen), "</div>"]
        if section == "modules":
            parts += _worst_modules(experiments)
    parts += _configurations(experiments)
    return "\n".join([*parts, "</body></html>", ""])


def _figure(picture: Picture) -> str:
    content = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{content}"></figure>'


def _missing(experiments: Iterable[Experiment]) -> list[str]:
    items = [
        f"<li>{escape(experiment.name)}: {escape(sentence)}</li>"
        for experiment in experiments
        for sentence in experiment.missing
    ]
    return ['<div class="missing"><p>Not everything is there:</p><ul>', *items, "</ul></div>"] if items else []


def _metric_table(experiments: Sequence[Experiment]) -> str:
    names = dict.fromkeys(name for experiment in experiments for name in experiment.metrics)
    rows = []
    for name in names:
        cells = [name]
        for experiment in experiments:
            series = experiment.metrics.get(name)
            if series is None:
                cells.append("–")
            else:
                least, largest = min(series.values), max(series.values)
                cells.append(f"{series.values[-1]:.5g} ({least:.5g} to {largest:.5g})")
        rows.append(cells)
    return _table(["metric", *(experiment.name for experiment in experiments)], rows)


def _worst_modules(experiments: Iterable[Experiment]) -> list[str]:
    parts = []
    for experiment in experiments:
        if not experiment.modules:
            continue
        worst = sorted(experiment.modules, key=lambda row: row.relative_error, reverse=True)[:_NUM_WORST]
        rows = [
            [row.module, *(f"{value:.4g}" for value in (row.relative_error, row.cosine, row.mae, row.rmse))]
            for row in worst
        ]
        parts += [
            f"<details><summary>{escape(experiment.name)}: the modules of the largest relative error</summary>",
            _table(["module", "relative error", "cosine of ΔW", "MAE", "RMSE"], rows),
            "</details>",
        ]
    return parts


def _configurations(experiments: Sequence[Experiment]) -> list[str]:
    parts = ["<h2>Configurations</h2>"]
    if len(experiments) > 1:
        keys = dict.fromkeys(key for experiment in experiments for key in experiment.config)
        rows = [[key, *(experiment.config.get(key, "–") for experiment in experiments)] for key in keys]
        different = [row for row in rows if len(set(row[1:])) > 1]
        if different:
            parts += ["<p>Where they differ:</p>", _table(["key", *(e.name for e in experiments)], different)]
        else:
            parts.append("<p>They do not differ.</p>")
    for experiment in experiments:
        if experiment.config_text:
            parts.append(
                f"<details><summary>{escape(experiment.name)}</summary><pre>{escape(experiment.config_text)}</pre>"
                "</details>"
            )
    return parts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table>"
