"""A connection of the service, given up when nothing happens on it: uvicorn would keep it, and its place, for ever."""

from __future__ import annotations

import socket
from asyncio import BaseTransport, TimerHandle, Transport
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 60.0
"""For the head of a request to arrive in, as a body has; and for some of an answer to be taken."""
_KEPT = 1 << 18
"""Bytes of an answer that the system keeps for a client."""


class Connection(H11Protocol):
    """A descriptor is held by who sends or takes nothing, too: some hundred of them kept everybody else out."""

    _timer: TimerHandle
    _emptied = 0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        # That some of an answer is taken shows when a third of what the system keeps of it is gone: of the megabytes it
        # may keep, a slow client takes that in more than a minute.
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
            self.transport.abort()  # closed, it would wait for the client to take the rest
        else:
            self._look_again()

    def _state(self) -> tuple[Any, ...]:
        """The last request, whether it is answered, what of the answer is left to take, and how often all was taken."""
        has_ended = self.cycle is not None and self.cycle.response_complete
        return self.cycle, has_ended, self.transport.get_write_buffer_size(), self._emptied
