"""The service's log: a line of JSON for each event, without anything that could identify a patient."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
import warnings
from pathlib import Path
from typing import Any


def log_to_stderr() -> None:
    """Log our own lines and uvicorn's warnings as JSON; other libraries are left out because they may quote a file."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda line: line.name.startswith(("retina.", "uvicorn.")))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")


class JsonLines(logging.Formatter):
    """Formats a log record as JSON.

    Of an exception it has only the type and where it was raised, because its text may quote a file.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        event, *traced = record.getMessage().strip().split("\n")
        line: dict[str, Any] = {"time": stamp, "level": record.levelname.lower(), "event": event}
        line |= getattr(record, "fields", {})
        if event.startswith("Traceback") and traced:  # uvicorn logs a whole traceback, with paths, as one message
            places = re.findall(r'File ".*?([^/\\"]+)", line (\d+)', "\n".join(traced))
            line |= {"event": "error", "error": traced[-1].split(":", 1)[0]}
            line["at"] = [f"{name}:{number}" for name, number in places[-8:]]
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["error"] = record.exc_info[0].__name__
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-8:]]
        return json.dumps(line)
