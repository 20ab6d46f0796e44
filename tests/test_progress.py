"""The progress of a long command, with and without a terminal."""

from __future__ import annotations

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
    for item in tracked(["a", "b", "c"], "Judging"):
        seen.append(item)
        now += 11.0
    assert seen == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[0] == "Judging: 1 of 3, 0.1 per second, 0:00:22 left"


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
