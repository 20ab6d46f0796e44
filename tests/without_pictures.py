"""``retina-train`` without its pictures, which take most of a small run's time, for tests that start it as a process.

Takes a JSON list of commands and runs them one after another, because each start of a process costs seconds too.
"""

from __future__ import annotations

import contextlib
import json
import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from retina.train.cli import main

FigureCanvasAgg.print_png = lambda self, path: Image.new("L", (1, 1)).save(path, "PNG")  # type: ignore[method-assign]

*earlier, last = json.loads(sys.argv[1])
for arguments in earlier:
    with contextlib.suppress(SystemExit):  # the tests look at the files it leaves
        main(arguments)
main(last)
