"""Runs retina-serve in a separate process, for the tests that call it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from retina.runtime.serve_cli import main; main()"]


@dataclass
class Service:
    """A running retina-serve."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    """A response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(
    folder: Path, *options: str | Path, token: str | None = None, command: list[str] = COMMAND
) -> Iterator[Service]:
    """Start retina-serve on a free port, and stop it at the end; its log goes to ``folder``."""
    log = folder / "serve.log"
    environment = {key: value for key, value in os.environ.items() if key != "RETINA_TOKEN"}
    if token is not None:
        environment["RETINA_TOKEN"] = token
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--port", "0", *map(str, options)],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
        )  # fmt: skip
    assert process.stdout is not None
    with process, process.stdout:
        try:
            started = re.match(r"http://127\.0\.0\.1:(\d+)/ serves ", process.stdout.readline())
            assert started, log.read_text()
            yield Service(process, int(started[1]), log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(40)
