"""How commands end, and what they print to streams that may be closed or full: work continues without them, but an
undelivered result is a failure.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

import click

from .errors import RetinaError

_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, halves of characters, and separators of lines."""


@contextmanager
def exit_codes(command: str, stopped: str = "stopped") -> Iterator[None]:
    """End a command with exit code 2 after a RetinaError, and with 130 after Ctrl-C, and say why on standard error.

    Args:
        command: the name of the program.
        stopped: what to say after Ctrl-C; a message of the KeyboardInterrupt is appended.
    """
    if logging.lastResort is not None:  # which prints the warnings of a program that has set up no log
        logging.lastResort.setFormatter(PrintableLines())
    try:
        yield
    except RetinaError as err:
        warn(f"{command}: {err}")
        sys.exit(2)
    except KeyboardInterrupt as err:
        warn(f"\n{command}: {stopped}{err}")
        sys.exit(130)


def tell(line: str) -> None:
    """Print a line about work whose result is elsewhere; if that is impossible, continue without output."""
    try:
        spell_out_what_is_lacking(sys.stdout)
        click.echo(printable(line))
    except OSError:
        drop_output()


def warn(line: str) -> None:
    """Print a line on standard error; if that is impossible, continue without it."""
    try:
        click.echo(printable(line), err=True)
    except OSError:
        drop_output()


def answer(text: str, command: str) -> None:
    """Print the result of a command; exit with 2 if it cannot be written."""
    try:
        spell_out_what_is_lacking(sys.stdout)
        click.echo(printable(text))
    except OSError as err:
        stop_without_output(command, err)


def printable(text: str) -> str:
    """Spell out control characters, but not line ends: a file's name or a model may hold a terminal's commands."""
    return "".join(char.encode("unicode_escape").decode() if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    # Blanks such as U+3000 are not printable for Python either, but belong to names.
    return not char.isprintable() and char != "\n" and unicodedata.category(char) in _CONTROL


class PrintableLines(logging.Formatter):
    """Formats what a library logs for the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def spell_out_what_is_lacking(stream: TextIO) -> None:
    """Write characters that the stream's encoding lacks as backslash escapes: a file's name may hold any character."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def stop_without_output(command: str, err: OSError, then: str = "") -> NoReturn:
    """Report on standard error that standard output failed, and exit with 2.

    Args:
        command: the name of the program.
        err: the failure.
        then: appended to the message.
    """
    drop_output()
    why = "was closed" if isinstance(err, BrokenPipeError) else f"cannot be written: {err.strerror}"
    warn(f"{command}: stopped, its output {why}{then}")
    sys.exit(2)


def drop_output() -> None:
    """Redirect a stream that cannot be flushed to the null device, so that the flush at exit does not fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
