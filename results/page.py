"""Shows what a run has found: tables for README and documentation, a picture, and one self-contained HTML page."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from loragen_infer.files import atomic_file
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw", "further_tables", "main_table", "replace_section", "write_page"]

Found = dict[str, Any]
_COLOURS = {
    "generated": "#1a73e8",
    "tuned": "#1a73e8",
    "ridge": "#a142f4",
    "nearest": "#d09ef8",
    "joint": "#12b5cb",
    "own": "#188038",
    "wrong prompts": "#e8710a",
    "junk": "#e8710a",
    "tuned from scratch": "#c5221f",
}
_OTHERS = "#80868b"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { width: 100%; height: auto; } pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
"""
_SECTION = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", flags=re.DOTALL)
_NONE = "No run has been recorded in this repository yet.\n"


def main_table(found: Found | None) -> str:
    """Return what the root README shows of the results: the picture and the rows of the held-out tasks."""
    if found is None:
        return _NONE
    lines = [
        "![Scores of every row on the held-out tasks, and by the number of training tasks](results/results.png)",
        "",
        f"Mean over the held-out tasks ({_counts(found)}; `[…]` are 95 % intervals over tasks):",
        "",
        *_markdown(*_row_table(found["held_out"])),
        *_remarks(found),
    ]
    return "\n".join(lines) + "\n"


def further_tables(found: Found | None) -> str:
    """Return the other tables of means, which the documentation shows below the README's."""
    if found is None:
        return _NONE
    lines = [
        "Differences between rows, paired by held-out task, and how many tasks a row is better on:",
        "",
        *(
            line
            for row, table in found["differences"].items()
            for line in [*_markdown(*_difference_table(row, table)), ""]
        ),
        *(
            line
            for kind, of_kind in found["by_kind"].items()
            for line in (
                f"The {of_kind['num_tasks']} held-out tasks {kind} alone:",
                "",
                *_markdown(*_kind_table(of_kind)),
                "",
            )
        ),
        f"By the number of training tasks (seed {found['seeds'][0]}; NLL / exact match, %):",
        "",
        *_markdown(*_curve_table(found["curve"])),
        "",
        f"After a fixed number of gradient steps on a few answers ({_tuned_tasks(found)}; NLL / exact match, %):",
        "",
        *_markdown(*_tuning_table(found["tuning"])),
        "",
        *_markdown(*_row_table(found["seen"], caption="row, on training tasks")),
        *_remarks(found),
    ]
    return "\n".join(lines) + "\n"


def _remarks(found: Found) -> list[str]:
    return [line for remark in found["remarks"] for line in ("", remark)]


def _tuned_tasks(found: Found) -> str:
    return f"{found['num_tuned_tasks']} held-out tasks of reasoning-gym, seed {found['seeds'][0]}"


def _training_tasks(found: Found) -> str:
    return f"{found['num_training_tasks']} training tasks, {found['num_with_adapters']} of them with adapters"


def _counts(found: Found) -> str:
    return (
        f"{_training_tasks(found)}, a joint adapter of {found['joint_steps']:,} steps, "
        f"{len(found['per_task'])} held-out tasks, {len(found['seeds'])} seeds"
    )


def replace_section(text: str, section: str, *, file: Path) -> str:
    """Return the text of ``file`` with ``section`` between the two marks."""
    if _SECTION.search(text) is None:
        raise SystemExit(f"{file} lacks the marks <!-- results --> and <!-- end of results -->.")
    return _SECTION.sub(lambda match: f"{match[1]}\n{section}\n{match[2]}", text)


def draw(found: Found, path: Path) -> None:
    """Draw the two scores of all rows, of some over the number of training tasks, and after tuning, to a PNG file."""
    figure = Figure(figsize=(11.5, 10.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    title = f"{len(found['per_task'])} tasks never seen, {_training_tasks(found)}"
    figure.suptitle(f"{title}: means with 95 % intervals over tasks", fontsize=11)
    for column, (name, label, factor) in enumerate(
        (
            ("nll", "NLL per answer token (lower is better)", 1),
            ("exact_match", "exact match, % (higher is better)", 100),
        )
    ):
        _draw_rows(axes[0, column], found["held_out"], name, label, factor)
        _draw_curve(axes[1, column], found["curve"], name, label, factor)
        _draw_tuning(axes[2, column], found["tuning"], name, label, factor)
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=140)


def write_page(found: Found, picture: Path, configs: Sequence[Path], path: Path) -> None:
    """Write everything that was found as one HTML page."""
    image = base64.b64encode(picture.read_bytes()).decode("ascii")
    twins = [[one["task"], one["nearest"], f"{one['cosine']:.2f}"] for one in found["nearest_tasks"]]
    rows = list(found["held_out"])
    per_task = [
        [task, *(f"{scores[row]['nll']:.2f} / {100 * scores[row]['exact_match']:.0f}" for row in rows)]
        for task, scores in found["per_task"].items()
    ]
    by_seed = [
        [f"seed {seed}", *(f"{table[row]['nll']:.3f} / {100 * table[row]['exact_match']:.1f}" for row in rows)]
        for seed, table in found["by_seed"].items()
    ]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>Adapters for tasks never seen</title><style>{_STYLE}</style></head><body>",
        "<h1>Adapters for tasks never seen</h1>",
        *(["<p><b>Tiny numbers, to see that everything works; its scores mean nothing.</b></p>"] * found["quick"]),
        f"<p>{_counts(found)}. […]: 95 % intervals over tasks.</p>",
        *(f"<p>{escape(remark)}</p>" for remark in found["remarks"]),
        f'<img alt="The scores of the tables below" src="data:image/png;base64,{image}">',
        "<h2>Held-out tasks</h2>",
        _html(*_row_table(found["held_out"])),
        *(_html(*_difference_table(row, table)) for row, table in found["differences"].items()),
        *(
            part
            for kind, of_kind in found["by_kind"].items()
            for part in (f"<h2>The held-out tasks {kind} alone</h2>", _html(*_kind_table(of_kind)))
        ),
        "<h2>By the number of training tasks</h2>",
        f"<p>Seed {found['seeds'][0]}. NLL per answer token / exact match, %.</p>",
        _html(*_curve_table(found["curve"])),
        "<h2>After a fixed number of gradient steps on a few answers</h2>",
        f"<p>{_tuned_tasks(found)}. NLL per answer token / exact match, %. The rows of all held-out tasks take as many "
        "as leaving answers out chooses.</p>",
        _html(*_tuning_table(found["tuning"])),
        "<h2>Training tasks</h2>",
        _html(*_row_table(found["seen"])),
        "<h2>Every held-out task</h2><p>NLL per answer token / exact match, %.</p>",
        _html(["task", *rows], per_task),
        "<h2>Every seed</h2><p>NLL per answer token / exact match, %, mean over the held-out tasks.</p>",
        _html(["seed", *rows], by_seed),
        f"<h2>How new the held-out tasks are</h2><p>{escape(found['rule'])}</p>",
        _html(["held-out task", "nearest training task", "cosine of the mean prompt embeddings"], twins),
        "<h2>Time, in seconds</h2><p>Of a step that was stopped and continued, the last part.</p>",
        _html(["step", "seconds"], [[step, f"{seconds:.0f}"] for step, seconds in found["seconds"].items()]),
        "<h2>Settings</h2>",
        *(
            f"<h3>{escape(config.name)}</h3><pre>{escape(config.read_text(encoding='utf-8'))}</pre>"
            for config in configs
        ),
        f"<p>{escape(found['made_with'])}</p></body></html>\n",
    ]
    with atomic_file(path) as part:
        part.write_text("\n".join(parts), encoding="utf-8")


Table = tuple[list[str], list[list[str]]]


def _row_table(table: Found, caption: str = "row") -> Table:
    with_gap = all("gap_closed" in scores for scores in table.values())
    head = [caption, "NLL per answer token", "exact match, %", *(["gap closed, %"] if with_gap else [])]
    lines = [
        [row, _cell(scores["nll"], ".3f"), _cell(scores["exact_match"], ".1f", 100)]
        + ([f"{100 * scores['gap_closed']:.0f}"] if with_gap else [])
        for row, scores in table.items()
    ]
    return head, lines


def _kind_table(of_kind: Found) -> Table:
    """The rows of one kind of held-out tasks, and how far generated adapters are from each."""
    head, lines = _row_table(of_kind["rows"])
    differences = of_kind["differences"]
    return [*head, "generated minus row, NLL", "better on"], [
        [*line, *(_cell(differences[row]["nll"], "+.3f"), str(differences[row]["nll"]["num_better"]))]
        if (row := line[0]) in differences
        else [*line, "", ""]
        for line in lines
    ]


def _difference_table(name: str, table: Found) -> Table:
    head = [f"{name} minus", "NLL", "better on", "exact match, points", "better on "]
    return head, [
        [
            row,
            _cell(scores["nll"], "+.3f"),
            str(scores["nll"]["num_better"]),
            _cell(scores["exact_match"], "+.1f", 100),
            str(scores["exact_match"]["num_better"]),
        ]
        for row, scores in table.items()
    ]


def _curve_table(curve: list[Found]) -> Table:
    rows = list(curve[0]["rows"])
    return ["training tasks", "steps of joint", *rows], [
        [
            f"{point['num_tasks']}, {point['num_with_adapters']} with adapters",
            f"{point['joint_steps']:,}",
            *(
                f"{scores['nll']['mean']:.3f} / {100 * scores['exact_match']['mean']:.1f}"
                for scores in point["rows"].values()
            ),
        ]
        for point in curve
    ]


def _tuning_table(tuning: list[Found]) -> Table:
    rows = list(tuning[0]["rows"])
    return ["samples", "steps", *rows], [
        [
            str(point["num_samples"]),
            str(point["num_steps"]),
            *(
                f"{scores['nll']['mean']:.3f} / {100 * scores['exact_match']['mean']:.1f}"
                for scores in point["rows"].values()
            ),
        ]
        for point in tuning
    ]


def _cell(score: Found, form: str, factor: float = 1) -> str:
    text = format(factor * score["mean"], form)
    if score["interval"] is None:
        return text
    return f"{text} [{', '.join(format(factor * end, form) for end in score['interval'])}]"


def _markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cell.strip() for cell in line)} |" for line in (head, marks, *lines)]


def _html(head: list[str], lines: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(cells, 'td') for cells in lines)}</table>"


def _draw_rows(axes: Axes, table: Found, name: str, label: str, factor: float) -> None:
    for place, (row, scores) in enumerate(table.items()):
        value = factor * scores[name]["mean"]
        ends = [factor * end for end in scores[name]["interval"] or ()]
        axes.barh(row, value, color=_COLOURS.get(row, _OTHERS), height=0.75)
        axes.plot(ends, [place] * len(ends), color="black", linewidth=0.7, marker="|", markersize=3)
        axes.annotate(
            f"{value:.3g}", (max([value, *ends]), place), (4, 0), textcoords="offset points", fontsize=7, va="center"
        )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.set_title(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Axes, curve: list[Found], name: str, label: str, factor: float) -> None:
    numbers = [point["num_tasks"] for point in curve]
    for row in curve[0]["rows"]:
        values = [factor * point["rows"][row][name]["mean"] for point in curve]
        axes.plot(numbers, values, marker="o", markersize=4, label=row, color=_COLOURS.get(row, _OTHERS))
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("training tasks", fontsize=8)
    axes.set_title(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_tuning(axes: Axes, points: list[Found], name: str, label: str, factor: float) -> None:
    start, *tuned = points
    numbers = sorted({point["num_samples"] for point in points})
    *fewer, most = sorted({point["num_steps"] for point in tuned})
    for row, marker in zip(start["rows"], "os^", strict=True):
        for num_steps in (*fewer, most):
            line = [start, *(point for point in tuned if point["num_steps"] == num_steps)]
            axes.plot(
                [numbers.index(point["num_samples"]) for point in line],
                [factor * point["rows"][row][name]["mean"] for point in line],
                marker=marker,
                markersize=4,
                linestyle="-" if num_steps == most else ":",
                label=f"{row}, {num_steps} steps",
                color=_COLOURS.get(row, _OTHERS),
            )
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlabel("answers", fontsize=8)
    axes.set_title(label, fontsize=9)
    axes.tick_params(labelsize=8)
    if name == "nll":  # it would hide lines of the other, and is the same
        axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
