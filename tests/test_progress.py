"""The progress of a long command, with and without a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios
import time

import pytest
from retina.runtime import progress as module
from retina.runtime.progress import progress, tracked


def test_lines_tell_progress_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress(6, "maps") as advance:
        for seconds, known in ((4.0, False), (6.0, True), (0.0, False), (10.0, False)):
            now += seconds
            advance(known=known)
    # By hand: after 10 s two are done, of which one took time, so 10 s each; after 20 s three took time.
    assert capsys.readouterr().err.splitlines() == [
        "maps: 2 of 6, 0.1 per second, 0:00:40 left",
        "maps: 4 of 6, 0.1 per second, 0:00:13 left",
    ]


def test_items_are_tracked_as_they_are_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seen = []
    for item in tracked(["a", "b", "c"], "Evaluating"):
        seen.append(item)
        now += 11.0
    assert seen == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[0] == "Evaluating: 1 of 3, 0.1 per second, 0:00:22 left"


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    with progress(2) as advance:
        advance()
        advance()
    shown = capsys.readouterr().err
    assert "1/2" in shown
    assert "2/2" in shown
    assert "per second" in shown


def test_several_steps_are_counted_at_once_and_a_note_is_shown_with_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress(12, "epoch 1/2") as advance:
        now += 10.0
        advance(4, note="loss 0.700")
        now += 10.0
        advance(4, known=True)
    # By hand: 4 in 10 s, so the other 8 take 20 s; then 4 are left and 4 took 20 s.
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2: 4 of 12, 0.4 per second, 0:00:20 left, loss 0.700",
        "epoch 1/2: 8 of 12, 0.2 per second, 0:00:20 left",
    ]


@pytest.mark.parametrize("columns", [200, 80, 40, 10])
def test_a_bar_and_its_note_do_not_exceed_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress(2, "epoch") as advance:
        advance(note="DR loss 0.700 acc 0.500  ME loss 0.700 acc 0.500")
        drawn = capsys.readouterr().err.rpartition("\r")[2].replace("\033[?25l", "")
        advance()
    assert len(drawn) <= max(columns, len("epoch  []  1/2"))
    assert ("ME loss 0.700 acc 0.500" in drawn) == (columns == 200)
    assert ("DR loss 0.7" in drawn) == (columns >= 80)


def test_a_label_that_is_too_long_for_the_terminal_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that wraps would be drawn below itself again and again."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "40")
    with progress(1520, "Reading photographs") as advance:
        advance()
        drawn = capsys.readouterr().err.rpartition("\r")[2].replace("\033[?25l", "")
    assert drawn.startswith("Reading phot") and "1/1520" in drawn and len(drawn) <= 40


def test_a_bar_is_as_wide_as_the_terminal_of_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output may be a file, as in  retina-train DATA > log."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress(2, "epoch") as advance:
            advance(note="DR loss 0.700 acc 0.500  ME loss 0.700 acc 0.500")
    shown = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal_end, contextlib.suppress(OSError):  # at the end: it is closed
        while part := terminal_end.read(4096):  # one read may return a part of what was drawn
            shown += part
    drawn = shown.decode().replace("\033[?25l", "").replace("\033[?25h", "")
    assert max(len(line) for line in re.split(r"[\r\n]+", drawn)) in range(40, 51), drawn


def test_the_work_goes_on_when_the_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress(3, leave=False) as advance:
            advance()
            os.close(ours)
            advance()
            advance()
        with pytest.raises(OSError, match="of the work itself"), progress(1):
            raise OSError("of the work itself")


@pytest.mark.parametrize("leave", [True, False])
def test_a_bar_that_is_not_left_is_cleared_from_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, leave: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(1, leave=leave) as advance:
        advance()
    assert capsys.readouterr().err.endswith("\n\033[1A\033[2K") == (not leave)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with progress(1, leave=leave) as advance:
        advance()
    assert capsys.readouterr().err == ""
