"""Writes a matplotlib figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runtime.output_file import write_atomically


def write_png(out_png: Path, figure: Figure) -> None:
    """Draw a figure, made without pyplot, into a PNG file.

    Raises:
        OutputError: as ``write_atomically``.
    """
    # Not savefig, which draws every figure twice where it has a layout.
    write_atomically(out_png, FigureCanvasAgg(figure).print_png)
