"""What surrounds every answer of the service: the check of the host name, response headers, and a line in the log.

The log has no file name, no client address and no path but the service's own: nothing in it can identify a patient.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Browsers enforce several policies together: this one adds to the page's own what a <meta> element cannot state.
    "content-security-policy": "frame-ancestors 'none'",
    # Cross-origin isolation, without which a browser gives the page no threads in WebAssembly.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
DRAINED = 4
"""How much of a refused body is still read, as a multiple of the allowed size, so that the client reads the reason."""
TOO_SLOW, STOPPED = 408, 503
CLIENT_GONE = 499
"""Status that appears only in the log: the client left before it was answered."""

_ABSOLUTE = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
"""A request's target as clients send it to a proxy, which servers must accept as well (RFC 9112, 3.2.2)."""
_NAME_AND_PORT = re.compile(r"(\[[^\[\]@/]*\]|[^\[\]:@/]*)(?::\d*)?")

_log = logging.getLogger(__name__)


@dataclass
class RequestLog:
    """A request's line in the log."""

    id: str = field(default_factory=lambda: secrets.token_hex(6))
    """Also sent as the header ``x-request-id``."""
    method: str = ""
    route: str = "other"
    """One of the service's own paths; ``other`` for any other path, which might contain a patient's name."""
    status: int = CLIENT_GONE
    received: int = 0
    """Bytes of the body."""
    photographs: int = 0
    unreadable: int = 0


class ServiceMiddleware:
    """An ASGI middleware around the service's application."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str] | None = None) -> None:
        """Wrap ``app``; ``hosts`` are the names accepted in the Host header, None: any.

        A service on the loopback address that answers to any name could be read by another site's page whose name
        was made to resolve to that address (DNS rebinding).
        """
        self._app = app
        self._limits = limits
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        names = {_host(headers.get(b"host", b""))}
        if target := _ABSOLUTE.fullmatch(scope.get("raw_path") or b""):
            names.add(_host(target[1]))
            path = target[2] or b"/"
            scope = {**scope, "path": unquote(path.decode("ascii")), "raw_path": path}
        entry = RequestLog(method=scope["method"])
        scope.setdefault("state", {})["entry"] = entry
        started = time.perf_counter()
        unread, answered, waits = True, False, headers.get(b"expect", b"").lower() == b"100-continue"

        async def reading() -> Message:
            nonlocal unread, waits
            waits = False
            message = await receive()
            entry.received += len(message.get("body", b""))
            unread = bool(message.get("more_body", False))
            return message

        async def drain() -> None:
            while unread and entry.received <= DRAINED * self._limits.body:
                await reading()

        async def answering(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                own = {**HEADERS, "x-request-id": entry.id}
                if unread and not waits and entry.status not in (TOO_SLOW, STOPPED):
                    # Many clients read the answer only after sending the whole body: if the connection were closed
                    # before that, they would never see it.
                    with suppress(TimeoutError):
                        await asyncio.wait_for(drain(), self._limits.seconds)
                if unread:
                    own["connection"] = "close"
                given = {name for name, _ in message["headers"]}
                own_raw = [(name.encode(), value.encode()) for name, value in own.items()]
                message["headers"] = [*message["headers"], *(pair for pair in own_raw if pair[0] not in given)]
                answered = True
            await send(message)

        try:
            if self._hosts is not None and not names <= self._hosts:
                refusal = JSONResponse({"detail": f"expected the host name {' or '.join(sorted(self._hosts))}"}, 421)
                await refusal(scope, reading, answering)
            else:
                await self._app(scope, reading, answering)
        except asyncio.CancelledError:
            if not answered:
                refusal = JSONResponse({"detail": "the service is stopping: send the request again later"}, STOPPED)
                await refusal(scope, reading, answering)
            raise
        except Exception as err:  # noqa: BLE001 - the app has answered 500; uvicorn would log this without the id
            _log.error("failed", exc_info=err, extra={"fields": {"id": entry.id}})
        finally:
            route = getattr(scope.get("route"), "path", None)
            entry.route = route or entry.route
            _log.info("request", extra={"fields": {**vars(entry), "ms": round(1000 * (time.perf_counter() - started))}})


def _host(header: bytes) -> str:
    """The lower-case name in a Host header, without its port; empty if it is not a name and a port."""
    found = _NAME_AND_PORT.fullmatch(header.decode("latin-1").lower())
    return found[1] if found else ""
