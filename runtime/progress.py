"""The progress of a long command: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar, overload

import click

from .terminal import drop_output, warn

BAR_SECONDS, LINE_SECONDS = 0.1, 10.0
"""Interval at which the bar is drawn, and at which a line is written without a terminal."""


Item_co = TypeVar("Item_co", covariant=True)


class Advance(Protocol):
    """The function to call after one step or several."""

    def __call__(self, steps: int = 1, *, known: bool = False, note: str = "") -> None:
        """Count the steps that are done.

        Args:
            steps: how many.
            known: they were already done and took no time, so they do not count for the rate.
            note: shown with the rate.
        """
        ...


class Countable(Protocol[Item_co]):
    """What can be counted and gone through, such as a list or a DataLoader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item_co]: ...


@overload
def tracked(items: Countable[Item_co], label: str) -> Iterator[Item_co]: ...
@overload
def tracked(items: Iterable[Item_co], label: str, total: int) -> Iterator[Item_co]: ...
def tracked(items: Any, label: str, total: int | None = None) -> Iterator[Any]:
    """The items, with ``progress`` as they are done; ``total`` is the number of those that have no length."""
    with progress(len(items) if total is None else total, label) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def progress(total: int, label: str = "", *, leave: bool = True) -> Iterator[Advance]:
    """Report the progress of ``total`` steps on standard error, with their rate and the time left.

    Any thread may take a step. Without ``leave`` the bar is gone from the terminal at the end.
    """
    start = told = time.monotonic()
    done = quick = 0
    one_at_a_time = threading.Lock()
    name = f"{label}: " if label else ""

    def rate() -> float:
        return (done - quick) / max(time.monotonic() - start, 1e-9)

    # A line that wraps would be drawn below itself again and again: what lies beyond the terminal's end is cut.
    room = _columns() - len(f"  []  {total}/{total}  00:00:00  ")
    label = label[: max(0, room - 1)]
    room -= len(label)
    width = max(0, min(36, room // 3))

    def beside_the_bar(note: str | None) -> str:
        text = f"{rate():.1f} per second" + (f"  {note}" if note else "")
        return text[: max(0, room - width)]

    bar: Any = click.progressbar(
        length=total,
        label=label,
        file=sys.stderr,
        width=width,
        show_pos=True,
        hidden=not sys.stderr.isatty(),
        item_show_func=beside_the_bar,
    )

    def advance(steps: int = 1, *, known: bool = False, note: str = "") -> None:
        nonlocal told, done, quick
        with one_at_a_time:
            done, quick = done + steps, quick + steps * known
            now = time.monotonic()
            if sys.stderr.isatty():
                if now - told >= BAR_SECONDS or done == total:
                    told = now
                    with _while_there_is_a_terminal():
                        bar.update(done - bar.pos, note)
            elif now - told >= LINE_SECONDS:
                told = now
                left = f", {timedelta(seconds=round((total - done) / rate()))} left" if done > quick else ""
                warn(f"{name}{done} of {total}, {rate():.1f} per second{left}" + (f", {note}" if note else ""))

    with _while_there_is_a_terminal():
        bar.__enter__()
    try:
        yield advance
    finally:
        with _while_there_is_a_terminal():
            bar.__exit__(None, None, None)
            if sys.stderr.isatty() and not leave:
                click.echo("\033[1A\033[2K", err=True, nl=False)  # up to the bar's line, and clear it


def _columns() -> int:
    """The terminal's width; of standard error's, because standard output may be a file."""
    if "COLUMNS" not in os.environ:
        with suppress(OSError, ValueError):  # ValueError: closed, or replaced by what has no descriptor
            return os.get_terminal_size(sys.stderr.fileno()).columns
    return shutil.get_terminal_size().columns


@contextmanager
def _while_there_is_a_terminal() -> Iterator[None]:
    """Go on without output where the terminal is gone, such as that of a dropped ssh."""
    try:
        yield
    except OSError:
        drop_output()
