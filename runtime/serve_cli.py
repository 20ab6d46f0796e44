"""retina-serve: options, exit codes and printing."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import click

from .errors import UsageError
from .extras import require_extra
from .limits import MIB, Limits
from .memory import use_one_heap
from .options import SETTINGS, PathName, model_options, open_model
from .terminal import exit_codes, tell
from .workers import workers_or_cores

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""The names by which this machine addresses itself, as they are written in a URL."""
GRACE = 30
"""Seconds that a stop waits for requests in progress."""


@click.command(context_settings=SETTINGS)
@click.option("--host", default="127.0.0.1", metavar="NAME", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0: a free one.")
@model_options
@click.option(
    "--token-file",
    type=PathName(),
    metavar="FILE",
    help="Require the token in this file from every caller (Authorization: Bearer TOKEN); also RETINA_TOKEN.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=Limits.requests,
    metavar="N",
    help="Requests being read, waiting or being scored at once; further ones are answered 429.",
)
@click.option(
    "--max-photographs",
    type=click.IntRange(min=1),
    default=Limits.photographs,
    metavar="N",
    help="Most photographs in one request.",
)
@click.option(
    "--max-mib",
    type=click.FloatRange(min=0, min_open=True),
    default=Limits.body // MIB,
    metavar="MIB",
    help="Largest size of one request. Memory for request bodies is bounded by twice this times --queue, and once "
    "this per worker.",
)
@click.option(
    "--page",
    type=PathName(),
    metavar="DIR",
    help="Folder of the browser page: examples/browser of a clone, after npm ci.  [default: the page in this package]",
)
@click.version_option(package_name="retina-edge")
def main(**options: Any) -> None:
    """Serve the model over HTTP: POST /score, GET /model, GET /health, and a page at / for people.

    For software that would rather call a service than link a library. Listens only on this machine unless told
    otherwise; any other address needs a token. Logs one line of JSON per request on standard error, without file names
    or client addresses. /openapi.json describes it all. Ctrl-C or SIGTERM stops it once the requests in progress end,
    after 30 seconds at most.

    \b
    Examples:
      retina-serve
      retina-serve --model model.onnx --port 8080 --token-file token.txt
      curl -F photographs=@eye.jpg http://127.0.0.1:8000/score
      curl --data-binary @eye.jpg -H 'Content-Type: image/jpeg' \\
        http://127.0.0.1:8000/score

    Exit code 0: stopped. 2: could not start. 130: stopped before it had started. Research and demonstration only, not
    for clinical use.
    """  # noqa: D301 - click's mark for a block that keeps its lines is the character itself
    use_one_heap()
    with exit_codes("retina-serve", "stopped before it had started"):
        _serve(**options)


def _serve(
    host: str,
    port: int,
    model: Path | None,
    artifacts: Path,
    verify: Path | None,
    workers: int | None,
    provider: str,
    exact: bool,
    token_file: Path | None,
    queue: int,
    max_photographs: int,
    max_mib: float,
    page: Path | None,
) -> None:
    require_extra("serve")
    token = _token(token_file)
    local = host in LOOPBACK or host == "::1"
    if token is None and not local:
        raise UsageError(
            f"--host {host}: expected a token, since other machines can reach this address, found none. "
            "Name a file that holds one (--token-file FILE), or set RETINA_TOKEN."
        )
    if not math.isfinite(max_mib):
        raise UsageError(f"--max-mib: expected a number of MiB, found {max_mib}")
    if page is not None and not os.path.isfile(page / "index.html"):
        raise UsageError(f"--page {page}: expected a folder with index.html, found none")
    import uvicorn

    from .connection import Connection
    from .json_log import log_to_stderr
    from .middleware import ServiceMiddleware
    from .service import WORKER, create_app

    opened = open_model(model, artifacts, verify, provider, exact=exact)
    limits = Limits(requests=queue, photographs=max_photographs, body=round(max_mib * MIB))
    app = create_app(opened, workers=workers_or_cores(workers), limits=limits, token=token, page=page)
    listening = _listen(host, port)
    config = uvicorn.Config(
        ServiceMiddleware(app, limits, LOOPBACK if local else None),
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    log_to_stderr()
    log = logging.getLogger(__name__)
    server = uvicorn.Server(config)
    # Until uvicorn installs its own handlers. After a graceful stop it raises the signal again, to no effect here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    tell(f"http://{shown}:{address[1]}/ serves {opened.path} ({opened.contract.precision}). Stop with Ctrl-C.")
    if opened.contract.caution:
        log.warning(opened.contract.caution)
    log.info("started", extra={"fields": {"model": opened.sha256, "version": app.version, "port": address[1]}})
    server.run(sockets=[listening])
    log.info("stopped")
    # The interpreter would wait for threads that still score photographs whose clients have left.
    if any(thread.name.startswith(WORKER) for thread in threading.enumerate()):
        os._exit(0)


def _token(file: Path | None) -> str | None:
    if file is None:
        source, token = "RETINA_TOKEN", os.environ.get("RETINA_TOKEN") or None
    else:
        source = f"--token-file {file}"
        try:
            token = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as err:
            raise UsageError(f"{source}: expected a file with a token, found: {err}") from None
    if token is not None and not (token := token.strip()):  # as HTTP strips a header's value
        raise UsageError(f"{source}: expected a token, found none")
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UsageError(f"{source}: expected a token of printable ASCII characters, which an HTTP header can carry")
    return token


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, so that an address in use is reported before the service starts."""
    name = host.strip("[]")
    try:
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((name, port), family=family, backlog=512)
    except (OSError, UnicodeError) as err:  # UnicodeError: an invalid name fails to encode before it is looked up
        raise UsageError(
            f"--host {host} --port {port}: expected an address to listen on, found: {getattr(err, 'strerror', err)}. "
            "Choose another (--port 0: any that is free)."
        ) from None
