"""What all pictures share: an off-screen figure, colours, labels from names that strangers chose, whole PNG files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["colour_of", "label_of", "saved_figure"]

# Paul Tol's "bright" and "muted" schemes, which colour-blind readers can tell apart.
_COLOURS = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377",
    "#332288", "#CC6677", "#117733", "#999933", "#88CCEE", "#882255", "#44AA99",
)  # fmt: skip


@contextmanager
def saved_figure(path: Path, *, width: float, height: float) -> "Iterator[Figure]":
    """Yield an empty figure of that size in inches, which becomes the PNG file ``path``, whole or not at all."""
    import matplotlib as mpl  # takes a while
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without formulas, as a name may hold a "$".
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False, "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_file(path) as part:
            figure.savefig(part, format="png", dpi=130)


def colour_of(index: int) -> str:
    """Return the colour of the thing number ``index``."""
    return _COLOURS[index % len(_COLOURS)]


def label_of(name: str, *, limit: int = 28) -> str:
    """Return what stands for ``name`` in a picture: printable, short, and never hidden by a leading "_".

    Example:
        >>> label_of("_a\\nb"), label_of("x" * 40, limit=9)
        (' _a b', 'xxxx…xxxx')
    """
    text = "".join(character if character.isprintable() else " " for character in name)
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    # A legend leaves out what begins with an underscore.
    return f" {text}" if text.startswith("_") else text
