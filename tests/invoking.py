"""A command run in this process."""

from __future__ import annotations

import click
from click.testing import CliRunner, Result


def invoke(command: click.Command, *arguments: object) -> Result:
    """Run a command; an exception that it does not turn into an exit code is raised here, with its own traceback."""
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
