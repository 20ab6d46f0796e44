"""Standard output that may be closed or full: work goes on without it, but an answer that nobody got is no success."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

import click


def tell(line: str) -> None:
    """A line about work whose result is elsewhere: where it cannot be written, nothing is."""
    try:
        click.echo(line)
    except OSError:
        drop_output()


def answer(text: str, command: str) -> None:
    """The result itself; exits with 2 where it cannot be written."""
    try:
        click.echo(text)
    except OSError as err:
        stop_without_output(command, "stopped", err)


def stop_without_output(command: str, what: str, err: OSError, then: str = "") -> NoReturn:
    """Say on standard error that standard output failed, and exit with 2."""
    drop_output()
    why = "was closed" if isinstance(err, BrokenPipeError) else f"cannot be written: {err.strerror}"
    with suppress(OSError):
        click.echo(f"{command}: {what}, its output {why}{then}", err=True)
    sys.exit(2)


def drop_output() -> None:
    """Let the interpreter's last flush of what could not be written fail no more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
