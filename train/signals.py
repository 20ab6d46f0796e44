"""Stops training at the end of a step on Ctrl-C, SIGTERM or the end of the session."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

import torch
from lightning_fabric import Fabric

from .hangup import hangup


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that the loop checks after each step; a second signal acts at once.

    But not a second SIGHUP: where a session ends, both the kernel and the shell send one. Where SIGHUP is ignored, as
    under nohup, it stays so. A context manager that restores the former handlers at its end.
    """

    def __init__(self) -> None:
        self._requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, *hangup()):
            try:
                self._old[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread, as in some notebook servers, which handle signals themselves
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, fabric: Fabric) -> bool:
        """Whether any device was asked to stop, so that all of them stop at the same step."""
        flag = torch.tensor(float(self._requested), device=fabric.device)
        # Not into the flag: a signal that arrives meanwhile must still be there at the next step.
        return bool(fabric.all_reduce(flag, reduce_op="max"))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if number not in hangup():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
