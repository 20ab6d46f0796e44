"""Run by torchrun: several ``retina-train`` commands after another, since each start of a process costs seconds."""

from __future__ import annotations

import contextlib
import json
import sys

from retina.train.cli import main

for arguments in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):  # what it leaves behind is looked at
        main(arguments)
