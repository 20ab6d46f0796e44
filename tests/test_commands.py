"""What all commands share: how paths are taken, and how they end."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from retina.runtime import server
from retina.runtime.options import PathName

MODULES = (
    "runtime.cli", "runtime.server", "export.cli", "gradcam.cli", "train.cli",
    "train.evaluation", "train.averaging", "train.synthetic", "export.recovery",
)  # fmt: skip


def paths_of(module: str) -> list[tuple[click.Command, click.Parameter]]:
    command = importlib.import_module(f"retina.{module}").main
    return [(command, one) for one in command.params if isinstance(one.type, click.Path)]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("path", ["", "-"])
def test_a_path_that_names_nothing_is_refused(
    module: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an unset variable of a shell leaves it: the working directory would be read, or filled."""
    monkeypatch.chdir(tmp_path)
    for command, parameter in paths_of(module):
        named = [parameter.opts[0], path] if isinstance(parameter, click.Option) else [path]
        result = CliRunner().invoke(command, named)
        assert result.exit_code == 2, (named, result.output)
        assert (
            f"'{parameter.opts[0]}'" in result.stderr or parameter.make_metavar(click.Context(command)) in result.stderr
        )
        assert f"expected a path, found {path or 'an empty one'}" in result.stderr, named
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    """Also one that is not there, or may not be read: the command says what it expects of it."""
    secret = tmp_path / "secret"
    secret.touch(mode=0)
    assert PathName().convert("./-", None, None) == Path("-")
    for path in (tmp_path, secret, tmp_path / "none"):
        assert PathName().convert(str(path), None, None) == path
        assert PathName().convert(path, None, None) == path, "a default value"


def test_a_service_that_is_stopped_before_it_starts_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "open_model", interrupted)
    result = CliRunner().invoke(server.main, ["--port", "0"])
    assert result.exit_code == 130
    assert result.stderr == "\nretina-serve: stopped before it had started\n"
