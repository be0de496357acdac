"""How an analysis of a zoo is shown: as plain text, and as PNG files (a heat-map and a projection)."""

from pathlib import Path
from typing import Any

import numpy as np
from loragen_infer.words import counted

from loragen_train.plots import colour_of, label_of, saved_figure

__all__ = ["as_text", "draw_analysis"]

# Beyond so many tasks a table of all pairs is no longer read, nor are names beside a heat-map.
_MAX_TABLE = 12
_MAX_LABELS = 60
_MARKERS = "osD^vP*X"


def as_text(zoo: dict[str, Any]) -> str:
    """Return the analysis as lines of plain text."""
    sizes = (counted(len(zoo["checkpoints"]), "checkpoint"), counted(len(zoo["tasks"]), "task"))
    lines = [f"{zoo['folder']}: {', '.join(sizes)}, {len(zoo['broken'])} broken"]
    for layout in zoo["layouts"]:
        rows, per_row, width = layout["grid"]
        verdict = f"fits {zoo['max_tokens']}"
        if not layout["fits"]:
            verdict = f"does not fit {zoo['max_tokens']}; give --max-tokens {layout['num_tokens']} or auto"
        lines.append(
            f"layout {layout['fingerprint'][:8]}, {counted(layout['num_checkpoints'], 'checkpoint')}: "
            f"{counted(layout['num_modules'], 'module')}, r {'/'.join(map(str, layout['ranks']))}, "
            f"{layout['num_parameters']:,} values ({', '.join(layout['dtypes'])}), "
            f"{counted(layout['num_tokens'], 'token')} of {width} ({counted(rows, 'row')} of {per_row}), "
            f"padding {layout['padding']:.2%}; {verdict}"
        )
    if len(zoo["layouts"]) > 1:
        lines.append(
            "Checkpoints of several layouts cannot be trained on together; modules and spread are those of the first."
        )
    lines += ["", *_table(_module_rows(zoo)), "", *_table(_task_rows(zoo))]
    if zoo["between_tasks"] is not None:
        lines.append(f"{zoo['between_tasks']:.1%} of the variance of ΔW lies between the tasks.")
    spread, std = zoo["spread"], zoo["spread"]["std"]
    lines.append(
        f"Standard deviation of the positions over {counted(spread['num_checkpoints'], 'checkpoint')}: median "
        f"{std['median']:.3g} (5 % to 95 %: {std['p05']:.3g} to {std['p95']:.3g}), the mean's root mean square "
        f"{spread['rms_of_mean']:.3g}; {spread['constant']:.1%} of {spread['num_positions']:,} never change."
    )
    outliers = [f"  {found['path']}: {'; '.join(found['outlier'])}" for found in zoo["checkpoints"] if found["outlier"]]
    broken = [f"  {why if path in why else f'{path}: {why}'}" for path, why in zoo["broken"].items()]
    lines += ["", f"Outliers: {len(outliers) or 'none'}", *outliers, f"Broken: {len(broken) or 'none'}", *broken]
    return "\n".join(lines)


def _module_rows(zoo: dict[str, Any]) -> list[list[str]]:
    rows = [["module", "number", "r", "scaling", "A", "B", "|A|", "|B|", "|ΔW|"]]
    for kind in zoo["modules"]:
        shapes = ["x".join(map(str, kind[key])) for key in ("shape_a", "shape_b")]
        norms = [f"{kind[key]:.4g}" for key in ("norm_a", "norm_b", "norm_delta")]
        rows.append([kind["name"], str(kind["number"]), str(kind["r"]), f"{kind['scaling']:.4g}", *shapes, *norms])
    return rows


def _task_rows(zoo: dict[str, Any]) -> list[list[str]]:
    with_pairs = len(zoo["tasks"]) <= _MAX_TABLE
    between = [f"cos({number})" for number in range(1, len(zoo["tasks"]) + 1)] if with_pairs else []
    rows = [["task", "checkpoints", "mean |ΔW|", "cos within", *between]]
    for number, (task, cosine) in enumerate(zip(zoo["tasks"], zoo["task_cosine"], strict=True), start=1):
        # The "z" keeps a rounded zero from showing a sign.
        within = "–" if task["cosine_within"] is None else f"{task['cosine_within']:z.4f}"
        pairs = [f"{value:z.3f}" for value in cosine] if with_pairs else []
        row = [f"({number}) {task['name']}", str(task["num_checkpoints"]), f"{task['mean_norm_delta']:.4g}", within]
        rows.append([*row, *pairs])
    return rows


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, padded, strict=True)]


def draw_analysis(zoo: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``similarity.png`` and ``projection.png`` to ``folder`` and return their paths.

    Raises:
        LoragenInferError: They cannot be written.
    """
    return [_draw_similarity(zoo, folder / "similarity.png"), _draw_projection(zoo, folder / "projection.png")]


def _draw_similarity(zoo: dict[str, Any], path: Path) -> Path:
    """The cosines of all pairs of checkpoints, those of a task side by side."""
    tasks = np.array([found["task"] for found in zoo["checkpoints"]])
    order = np.concatenate([np.flatnonzero(tasks == task["name"]) for task in zoo["tasks"]])
    sizes = np.array([task["num_checkpoints"] for task in zoo["tasks"]])
    ends = np.cumsum(sizes)
    with saved_figure(path, width=7.4, height=6.2) as figure:
        axes = figure.add_subplot()
        cosine = np.array(zoo["cosine"])[np.ix_(order, order)]
        shown = axes.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        figure.colorbar(shown, ax=axes, label="cosine of ΔW")
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="black", linewidth=0.6)
            axes.axvline(end - 0.5, color="black", linewidth=0.6)
        names = [label_of(task["name"]) for task in zoo["tasks"]]
        if len(names) <= _MAX_LABELS:
            centres, size = ends - sizes / 2 - 0.5, 8 if len(names) <= 20 else 5
            axes.set_xticks(centres, names, rotation=90, fontsize=size)
            axes.set_yticks(centres, names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_title(f"{counted(len(order), 'checkpoint')} of {counted(len(names), 'task')}")
    return path


def _draw_projection(zoo: dict[str, Any], path: Path) -> Path:
    """The checkpoints on the two main axes of their weight changes, outliers ringed."""
    named = len(zoo["tasks"]) <= _MAX_LABELS
    with saved_figure(path, width=8.4 if named else 6.4, height=5.4) as figure:
        axes = figure.add_subplot()
        for number, task in enumerate(zoo["tasks"]):
            x, y = zip(
                *(found["projection"] for found in zoo["checkpoints"] if found["task"] == task["name"]), strict=True
            )
            marker, label = _MARKERS[number // 13 % len(_MARKERS)], label_of(task["name"])
            axes.scatter(x, y, s=34, marker=marker, color=colour_of(number), alpha=0.75, label=label)
        if ringed := [found["projection"] for found in zoo["checkpoints"] if found["outlier"]]:
            x, y = zip(*ringed, strict=True)
            axes.scatter(x, y, s=150, facecolors="none", edgecolors="black", linewidths=1, label="outlier")
        axes.set_xlabel(f"main axis 1 ({zoo['explained'][0]:.0%} of the variance)")
        axes.set_ylabel(f"main axis 2 ({zoo['explained'][1]:.0%})")
        axes.set_title("Principal components of ΔW")
        axes.axhline(0, color="black", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        if named:
            figure.legend(
                loc="outside right upper", fontsize=8, frameon=False, ncols=1 if len(zoo["tasks"]) <= 30 else 2
            )
    return path
