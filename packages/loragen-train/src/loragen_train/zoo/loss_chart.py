"""The picture of a zoo's trainings: the loss of every task by step."""

from pathlib import Path

from loragen_train.errors import LoragenTrainError
from loragen_train.plots import colour_of, label_of, saved_figure
from loragen_train.words import counted
from loragen_train.zoo.records import read_record

__all__ = ["draw_loss_chart"]

# Beyond so many a legend would be larger than the picture.
_MAX_NAMED = 36


def draw_loss_chart(adapters: Path, path: Path) -> None:
    """Write the loss curves in ``adapters/<task>/training.json`` to the PNG file ``path``.

    Raises:
        LoragenTrainError: A record is damaged.
    """
    curves = {file.parent.name: _curve(file) for file in sorted(adapters.glob("*/training.json"))}
    named = len(curves) <= _MAX_NAMED
    with saved_figure(path, width=8.6 if named else 6.4, height=4.2) as figure:
        axes = figure.add_subplot()
        for index, (task, (steps, losses)) in enumerate(curves.items()):
            style = ("-", "--", ":")[index // 13 % 3]
            axes.plot(steps, losses, style, marker=".", color=colour_of(index), linewidth=1.2, label=label_of(task))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss per response token (nats)")
        axes.set_title(f"Trainings of {counted(len(curves), 'task')}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if named and curves:
            figure.legend(loc="outside right upper", fontsize=7, frameon=False)


def _curve(file: Path) -> tuple[list[float], list[float]]:
    rows = read_record(file).get("loss", [])
    try:
        return [float(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise LoragenTrainError(
            f"{file} is damaged ('loss' is no list of steps and losses); remove {file.parent} to have it made again."
        ) from error
