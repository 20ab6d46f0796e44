"""How far a long command is: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

BAR_SECONDS, LINE_SECONDS = 0.1, 10.0
"""How often the bar is drawn, and how often a line is written where there is no terminal for a bar."""


class Advance(Protocol):
    """What is to be called after each step."""

    def __call__(self, *, known: bool = False) -> None:
        """``known``: the step took no time, and says nothing of those to come."""
        ...


@contextmanager
def progress(total: int, label: str = "") -> Iterator[Advance]:
    """Tell the progress of ``total`` steps on standard error, with their rate and the time left."""
    start = told = time.monotonic()
    done = quick = 0
    name = f"{label}: " if label else ""

    def rate() -> float:
        return (done - quick) / max(time.monotonic() - start, 1e-9)

    bar: Any = click.progressbar(
        length=total,
        label=label,
        file=sys.stderr,
        show_pos=True,
        hidden=not sys.stderr.isatty(),
        item_show_func=lambda _: f"{rate():.1f} per second",
    )

    def advance(*, known: bool = False) -> None:
        nonlocal told, done, quick
        done, quick = done + 1, quick + known
        now = time.monotonic()
        if sys.stderr.isatty():
            if now - told >= BAR_SECONDS or done == total:
                told = now
                bar.update(done - bar.pos)
        elif now - told >= LINE_SECONDS:
            told = now
            left = (total - done) / max(rate(), 1e-9)
            click.echo(f"{name}{done} of {total}, {rate():.1f} per second, {left:.0f} s left", err=True)

    with bar:
        yield advance
