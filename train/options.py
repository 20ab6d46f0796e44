"""The options of every command that opens a checkpoint, for one that does not say how it was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from ..runtime.contract import Framing

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--framing",
        type=click.Choice(get_args(Framing)),
        default="squash",
        show_default=True,
        help="For a bare state_dict, which does not say how it was trained: how pictures were framed,",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(32),
        default=384,
        show_default=True,
        metavar="PIXELS",
        help="and their side.",
    ),
)


def bare_options(command: Command) -> Command:
    """Add --framing and --image-size."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
