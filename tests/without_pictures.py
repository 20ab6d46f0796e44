"""``retina-train`` without its pictures, which take most of a small run's time."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from retina.train.cli import main


def draw_nothing(_: FigureCanvasAgg, path: Path) -> None:
    """In place of ``FigureCanvasAgg.print_png``."""
    Image.new("L", (1, 1)).save(path, "PNG")


def as_process(*commands: list[str]) -> list[str]:
    """What the interpreter is to run: commands one after another, since each start of a process costs seconds too."""
    return [__file__, json.dumps(commands)]


if __name__ == "__main__":
    FigureCanvasAgg.print_png = draw_nothing  # type: ignore[method-assign]
    *earlier, last = json.loads(sys.argv[1])
    for arguments in earlier:
        with contextlib.suppress(SystemExit):  # the tests look at the files it leaves
            main(arguments)
    main(last)
