"""What all commands share: how paths are taken, and how they end."""

from __future__ import annotations

import importlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from retina.runtime import serve_cli
from retina.runtime.errors import OutputError
from retina.runtime.options import PathName
from retina.runtime.output_file import (
    remove_leftovers,
    replacing,
    require_folder,
    require_place,
    write_text_atomically,
)
from retina.train.run import Run

MODULES = (
    "runtime.cli", "runtime.serve_cli", "export.cli", "gradcam.cli", "train.cli",
    "train.evaluation", "train.averaging", "train.synthetic", "export.recovery",
    "export.recalibration",
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


@pytest.mark.parametrize("module", MODULES)
def test_every_command_gives_its_help_for_h_too(module: str) -> None:
    command = importlib.import_module(f"retina.{module}").main
    short, long = (CliRunner().invoke(command, [option]) for option in ("-h", "--help"))
    assert short.exit_code == 0, short.output
    assert short.output == long.output
    assert short.output.startswith("Usage:") and "-h, --help" in short.output


@pytest.mark.parametrize("module", MODULES)
def test_no_line_of_help_is_wider_than_a_terminal(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples keep their lines, however long."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(importlib.import_module(f"retina.{module}").main, ["--help"]).output
    assert [line for line in shown.splitlines() if len(line) > 80] == []


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

    monkeypatch.setattr(serve_cli, "open_model", interrupted)
    result = CliRunner().invoke(serve_cli.main, ["--port", "0"])
    assert result.exit_code == 130
    assert result.stderr == "\nretina-serve: stopped before it had started\n"


@pytest.mark.parametrize("module", ["runtime.cli", "gradcam.cli", "train.cli"])
def test_a_file_in_place_of_the_artifacts_folder_is_refused(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that ships would take the place of the one meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eyes").mkdir()
    for name in ("a", "eyes/eye.jpg"):
        (tmp_path / name).touch()
    command = importlib.import_module(f"retina.{module}").main
    arguments = ["--list"] if module == "train.cli" else [str(tmp_path / "eyes")]
    result = CliRunner().invoke(command, [*arguments, "--artifacts", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert f"expected a folder, found none: {tmp_path / 'a'}" in result.stderr


def test_a_message_that_cannot_be_written_leaves_the_exit_code(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from retina.runtime.cli import main; main()", str(tmp_path / "none")]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(program, stderr=full, check=False).returncode == 2


def test_no_file_that_is_read_is_written_over_under_whatever_name(tmp_path: Path) -> None:
    source, link = tmp_path / "source", tmp_path / "link"
    source.touch()
    link.symlink_to(source)
    with pytest.raises(OutputError, match="link: expected a file to write, found one that is to be read"):
        require_place(link, [tmp_path / "none", source])
    require_place(tmp_path / "new" / "out", [source])
    assert (tmp_path / "new").is_dir()
    with pytest.raises(OutputError, match="new: cannot be written: expected the name of a file"):
        require_place(tmp_path / "new")
    with pytest.raises(OutputError, match="File name too long"):
        require_place(tmp_path / (256 * "x"))
    (tmp_path / "eye.JPG").touch()
    with pytest.raises(OutputError, match=r"eye\.JPG: .* found a photograph; name another --out"):
        require_place(tmp_path / "eye.JPG")


def test_what_killed_processes_left_half_written_is_removed_a_day_later(tmp_path: Path) -> None:
    with replacing(tmp_path / "b.txt") as temporary:
        temporary.touch()
    old, new = (Path(str(temporary).replace(f".{os.getpid()}.", f".{pid}.")) for pid in ("1", "2"))
    another = tmp_path / ".another.1.tmp"
    for file in (old, new, another):
        file.write_text("half")
    for file in (old, another):
        os.utime(file, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([another.name, new.name, "b.txt"])

    run = Run(tmp_path / "artifacts", "a")
    run.folder.mkdir(parents=True)
    for folder in (run.folder, run.artifacts):
        os.utime(shutil.copy(new, folder), (0, 0))
    with run.claimed():
        assert not list(run.artifacts.rglob("*.tmp"))


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for mode in (0o600, 0o644):
        file.touch()
        file.chmod(mode)
        write_text_atomically(file, "new")
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_folder_that_is_there_and_takes_no_file_is_refused() -> None:
    """Not by its mode: root may write into any other."""
    with pytest.raises(OutputError, match=r"^/proc: expected a folder that can be written, .* another --overlays\.$"):
        require_folder(Path("/proc"), "--overlays")


def test_a_name_that_is_not_utf_8_is_written_as_escapes(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a.csv", os.fsdecode(b"\xe4.jpg") + "\n")
    assert (tmp_path / "a.csv").read_bytes() == b"\\udce4.jpg\n"
