"""Ctrl-C at a step's end."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning_fabric import Fabric


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that the loop reads at a step's end; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: a notebook server's business then
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, fabric: Fabric) -> bool:
        """Whether any device was asked to stop: all stop at the same step, or none."""
        flag = torch.tensor(float(self.requested), device=fabric.device)
        self.requested = bool(fabric.all_reduce(flag, reduce_op="max"))
        return self.requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
