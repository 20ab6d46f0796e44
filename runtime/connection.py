"""Closes connections of the service that stay idle: uvicorn would keep them, and their descriptors, forever."""

from __future__ import annotations

import socket
from asyncio import BaseTransport, TimerHandle, Transport
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

SECONDS = Limits.seconds
"""How long a request's headers may take to arrive (as its body may), and a client may take nothing of an answer."""
_KEPT = 1 << 18
"""Bytes of an answer that the kernel's send buffer holds for a client."""


class Connection(H11Protocol):
    """Aborts a connection on which no request is in progress, or nothing of an answer is read, for ``SECONDS``.

    A request is in progress once its headers are complete; ``Limits.seconds`` bounds its body. Idle clients hold file
    descriptors too: some hundreds of them kept everyone else out.
    """

    _timer: TimerHandle
    _emptied = 0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        # The kernel reports that the client reads only once about a third of the send buffer is free. By default the
        # buffer grows to megabytes, of which a slow client needs more than a minute to read a third.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KEPT)
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._emptied += 1
        super().resume_writing()

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(SECONDS, self._give_up_if_still, self._state())

    def _give_up_if_still(self, before: tuple[Any, ...]) -> None:
        cycle, has_ended, untaken, _ = state = self._state()
        if state == before and (untaken or cycle is None or has_ended):
            self.transport.abort()  # close() would wait for the client to read the rest
        else:
            self._look_again()

    def _state(self) -> tuple[Any, ...]:
        """The last request, whether it is answered, the bytes not yet sent, and how often the buffer has drained."""
        has_ended = self.cycle is not None and self.cycle.response_complete
        return self.cycle, has_ended, self.transport.get_write_buffer_size(), self._emptied
