"""What the commands share: their settings, the options of several, and the opening of a model file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .annotations import MAX_ME_GRADE
from .errors import ModelFileError, UsageError
from .model import RetinaModel
from .model_file import find_model

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
"""``context_settings`` of every command."""

Command = TypeVar("Command", bound=Callable[..., Any])


class PathName(click.Path):
    """A path, as ``pathlib.Path``; whether something is there, and of which kind, is for the command to say.

    Refused are the empty path, which an unset variable of a shell leaves and which would mean the working directory,
    and ``-``, which many programs take for a standard stream.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if (name := os.fspath(value)) in ("", "-"):
            found = "an empty one" if not name else "-, which names no file here (./- does)"
            self.fail(f"expected a path, found {found}.", param, ctx)
        return super().convert(value, param, ctx)


def require_artifacts(context: click.Context, folder: Path) -> None:
    """Refuse a folder that --artifacts or RETINA_ARTIFACTS names and that is not there.

    The model that ships would take the place of the one meant.

    Raises:
        click.BadParameter: it is not there.
    """
    source = context.get_parameter_source("artifacts")
    if source is not ParameterSource.DEFAULT and not os.path.isdir(folder):
        named = "RETINA_ARTIFACTS" if source is ParameterSource.ENVIRONMENT else "--artifacts"
        raise click.BadParameter(f"expected a folder, found none: {folder}", context, param_hint=named)


def asked_for_model(model: Path | None, artifacts: Path) -> Path:
    """The file that --model of the current command names, else the one that ``find_model`` finds in --artifacts.

    Raises:
        ModelFileError: see ``find_model``.
        click.BadParameter: see ``require_artifacts``.
    """
    if model is None:
        require_artifacts(click.get_current_context(), artifacts)
    return find_model(model, artifacts)


def is_given(context: click.Context, name: str) -> bool:
    """Whether a parameter was given on the command line, and not by its default or the environment."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def require_alone(context: click.Context, option: str, *obeyed: str) -> None:
    """Refuse whatever stands beside an option that makes the command do something else, and would not be obeyed.

    Args:
        context: the command's.
        option: the option, as typed.
        obeyed: names of the parameters that have a meaning with it.

    Raises:
        UsageError: another parameter was given on the command line.
    """
    given = [
        parameter.get_error_hint(context)
        for parameter in context.command.params
        if parameter.name not in obeyed and is_given(context, parameter.name or "")
    ]
    if given:
        raise UsageError(f"{option}: found beside it {', '.join(given)}, which it does not obey. Run two commands.")


def artifacts_option(what: str) -> Callable[[Command], Command]:
    """--artifacts, for a command's ``what``."""
    return click.option(
        "--artifacts",
        type=PathName(),
        envvar="RETINA_ARTIFACTS",
        default="artifacts",
        metavar="DIR",
        help=f"{what}; also RETINA_ARTIFACTS.",
    )


def me_positive_option(text: str) -> Callable[[Command], Command]:
    """--me-positive-from, with its help."""
    return click.option("--me-positive-from", type=click.IntRange(1, MAX_ME_GRADE), metavar="N", help=text)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several options, which --help lists in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model_options = together(
    click.option(
        "--model",
        type=PathName(),
        metavar="FILE",
        help="ONNX file made by retina-export.  [default: retina_multitask.onnx or else "
        "retina_multitask.int8.onnx in --artifacts, else the model that ships with this package]",
    ),
    artifacts_option("Where retina-export wrote its model"),
    click.option(
        "--verify",
        type=PathName(),
        metavar="KEY",
        help="Accept only a model signed with the private key of this public key (PEM); see retina-export --sign.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Photographs scored at once.  [default: the cores this process may use]",
    ),
    click.option(
        "--provider",
        default="cpu",
        metavar="NAME",
        help="onnxruntime execution provider: cpu, cuda, openvino, coreml, ...",
    ),
    click.option(
        "--exact",
        is_flag=True,
        help="Decode every picture at full size: slower; on 12 originals probabilities moved by up to 0.03.",
    ),
)
"""Those of every command that opens a model file."""


def open_model(model: Path | None, artifacts: Path, verify: Path | None, provider: str, *, exact: bool) -> RetinaModel:
    """Open the model that these options of the current command name, after verifying its signature with ``verify``.

    Raises:
        RetinaError: see ``signature.verify`` and ``RetinaModel``.
        ModelFileError, click.BadParameter: see ``asked_for_model``.
    """
    path = asked_for_model(model, artifacts)
    if verify is None:
        return RetinaModel(path, provider=provider, exact=exact)
    from .signature import verify as verify_signature

    signed = verify_signature(path, verify)
    opened = RetinaModel(path, provider=provider, exact=exact)
    if opened.sha256 != signed:
        raise ModelFileError(f"{path}: expected sha256 {signed}, which is signed, found {opened.sha256}. Start again.")
    return opened
