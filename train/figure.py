"""What every figure is drawn with and how it is written."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runtime.output_file import replacing

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
"""From the palette of Okabe and Ito (2008), which readers with colour blindness can tell apart; and a grey."""


def legend_below(ax: Axes, columns: int, fontsize: float = 8) -> None:
    """A legend below the axes and their label: within, it would cover a part of some curve wherever it is."""
    ax.legend(fontsize=fontsize, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=columns)


def write_png(out_png: Path, figure: Figure) -> None:
    """Draw a figure, made without pyplot, into a PNG file.

    Raises:
        OutputError: as ``replacing``.
    """
    with replacing(out_png) as temporary:
        # Not savefig, which draws every figure twice where it has a layout.
        FigureCanvasAgg(figure).print_png(temporary)  # type: ignore[no-untyped-call]
