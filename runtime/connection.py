"""A connection of the service, given up when nothing is asked on it: uvicorn would keep it, and its place, for ever."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle, Transport
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

SECONDS = 60.0
"""For the head of a request to arrive in, as a body has."""


class Connection(H11Protocol):
    """A descriptor is held by who sends nothing, too: some hundred such connections kept everybody else out."""

    _timer: TimerHandle

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(SECONDS, self._give_up_if_still, self.cycle, self._is_waiting())

    def _give_up_if_still(self, cycle: RequestResponseCycle | None, waited: bool) -> None:
        if waited and self._is_waiting() and self.cycle is cycle:
            self.transport.close()
        else:
            self._look_again()

    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
