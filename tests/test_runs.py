"""The list of runs, with complete, half-written and foreign folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retina.train.metrics import HEADLINES
from retina.train.runs import format_table, list_runs

FIGURES = {"dr_accuracy": 0.7, "dr_kappa": 0.8, "referable_dr_auc": 0.95, "me_accuracy": 0.94, "me_auc": None}


def whole_run(artifacts: Path, name: str, scores: list[float], **config: object) -> Path:
    folder = artifacts / "runs" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"epochs": 3, "seed": 42, **config}))
    lines = [f"{epoch},0.5,{score}" for epoch, score in enumerate(scores, start=1)]
    (folder / "history.csv").write_text("\n".join(["epoch,train_loss,valid_score", *lines]) + "\n")
    body: dict[str, dict[str, object]] = {"dr": {}, "me": {}, "referable_dr": {}}
    for task, figure, _ in HEADLINES:
        body[task][figure] = {"value": FIGURES[f"{task}_{figure}"], "low": None, "high": None}
    (folder / "metrics.json").write_text(json.dumps({"splits": {"test": {"all": body}}}))
    return folder


def test_runs_stand_side_by_side_with_the_options_in_which_they_differ(tmp_path: Path) -> None:
    whole_run(tmp_path, "b", [0.5, 0.75, 0.7], image_size=384, sampler="weighted", sensitivity=0.9)
    stopped = whole_run(tmp_path, "a", [0.5], image_size=256, sampler="weighted")
    (stopped / "metrics.json").unlink()
    first, second = list_runs(tmp_path)
    assert (first.name, first.state, first.epochs, first.epochs_planned, first.best_epoch) == (
        "a",
        "unfinished",
        1,
        3,
        1,
    )
    assert (second.name, second.state, second.best_epoch, second.valid_score) == ("b", "finished", 2, 0.75)
    assert second.test == FIGURES

    head, row_a, row_b = (line.split() for line in format_table([first, second]).splitlines())
    assert head[-1] == "image_size"
    assert "sampler" not in head
    assert "sensitivity" not in head  # which the first run's version did not have, and 0.9 is what it did
    assert row_a == ["a", "unfinished", "1/3", "1", "0.500", "-", "-", "-", "-", "-", "256"]
    assert row_b == ["b", "finished", "3/3", "2", "0.750", "0.700", "0.800", "0.950", "0.940", "-", "384"]


def test_figures_on_other_data_are_not_to_be_compared(tmp_path: Path) -> None:
    for name, data in (("a", "0123456789abcdef"), ("b", "fedcba9876543210")):
        (whole_run(tmp_path, name, [0.5]) / "run.json").write_text(json.dumps({"data_fingerprint": data}))
    head, row_a, row_b, caution = format_table(list_runs(tmp_path)).splitlines()
    assert [line.split()[-1] for line in (head, row_a, row_b)] == ["data_fingerprint", "0123456789ab", "fedcba987654"]
    assert caution == "Figures compare only between runs with the same data_fingerprint."
    (tmp_path / "runs/b/run.json").write_text(json.dumps({"data_fingerprint": "0123456789abcdef"}))
    assert "fingerprint" not in format_table(list_runs(tmp_path))


def test_epochs_have_one_column(tmp_path: Path) -> None:
    whole_run(tmp_path, "a", [0.5], epochs=1)
    whole_run(tmp_path, "b", [0.5], epochs=2)
    assert format_table(list_runs(tmp_path)).splitlines()[0].split().count("epochs") == 1


def test_a_run_that_died_between_figures_and_publishing_is_unfinished(tmp_path: Path) -> None:
    folder = whole_run(tmp_path, "a", [0.5])
    (folder / "resume.pth").touch()
    (run,) = list_runs(tmp_path)
    assert run.state == "unfinished"


def test_half_written_and_foreign_folders(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []
    assert "retina-train DATA" in format_table([])
    foreign = tmp_path / "runs" / "holiday"
    foreign.mkdir(parents=True)
    (foreign / "beach.jpg").touch()
    (tmp_path / "runs" / "a-file").touch()
    assert list_runs(tmp_path) == []

    cut = whole_run(tmp_path, "cut", [0.5, 0.75])
    (cut / "config.json").write_text('{"epochs": 1')
    (cut / "history.csv").write_text((cut / "history.csv").read_text()[:-6])  # the last row is cut to "2,0.5,"
    (cut / "metrics.json").write_text('{"splits": {}}')
    (run,) = list_runs(tmp_path)
    assert (run.state, run.epochs, run.valid_score) == ("unfinished", 1, 0.5)
    assert [note.split()[0] for note in run.damage] == ["config.json", "history.csv", "metrics.json"]
    assert "cut: config.json cannot be read" in format_table([run])


def test_a_name_cannot_command_the_terminal(tmp_path: Path) -> None:
    whole_run(tmp_path, "evil\x1b[2J", [0.5])
    assert "\x1b" not in format_table(list_runs(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "history.csv", "metrics.json", "run.json"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=40) | st.sampled_from([b"[]", b"null", b'{"splits": 1}', b'{"splits": {"test": []}}'])
)
def test_no_content_breaks_the_list(tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resume.pth").touch()
    (folder / name).write_bytes(content)
    (run,) = list_runs(tmp_path)
    assert run.state == "unfinished"
    assert len(format_table([run]).splitlines()) >= 2


@pytest.mark.parametrize("name", ["config.json", "history.csv", "metrics.json", "resume.pth"])
def test_each_file_of_a_run_is_a_sign_of_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / name).write_text("{}")
    assert [run.name for run in list_runs(tmp_path)] == ["a"]


def test_runs_are_sorted_by_name(tmp_path: Path) -> None:
    for name in "dbeacf":
        whole_run(tmp_path, name, [0.5])
    assert [run.name for run in list_runs(tmp_path)] == list("abcdef")


def test_the_best_epoch_is_the_first_of_equals_and_no_epoch_without_a_score(tmp_path: Path) -> None:
    whole_run(tmp_path, "a", [0.5, 0.75, 0.75])
    whole_run(tmp_path, "b", [float("nan"), 0.5])
    whole_run(tmp_path, "c", [float("nan")])
    assert [(run.best_epoch, run.valid_score) for run in list_runs(tmp_path)] == [(2, 0.75), (2, 0.5), (None, None)]


def test_a_score_of_zero_is_a_score_and_unknown_plans_are_a_question_mark(tmp_path: Path) -> None:
    whole_run(tmp_path, "a", [0.0], epochs="many")
    _, row = format_table(list_runs(tmp_path)).splitlines()
    assert row.split()[:5] == ["a", "finished", "1/?", "1", "0.000"]


def test_a_run_whose_options_cannot_be_read_differs_in_its_data_alone(tmp_path: Path) -> None:
    """A run's data are on record apart from its options."""
    for name, data in (("a", "0123456789abcdef"), ("b", "fedcba9876543210")):
        (whole_run(tmp_path, name, [0.5], seed=5) / "run.json").write_text(json.dumps({"data_fingerprint": data}))
    (tmp_path / "runs/b/config.json").write_text("{")
    head, row_a, row_b, caution, damage = format_table(list_runs(tmp_path)).splitlines()
    assert (head.split()[-1], row_a.split()[-1], row_b.split()[-1]) == (
        "data_fingerprint", "0123456789ab", "fedcba987654"
    )  # fmt: skip
    assert "seed" not in head and caution.startswith("Figures compare only") and damage.startswith("b: config.json")
    (tmp_path / "runs/b/run.json").unlink()
    head, *_ = format_table(list_runs(tmp_path)).splitlines()
    assert not {"seed", "data_fingerprint"} & set(head.split())


def test_the_damage_of_a_run_cannot_command_the_terminal(tmp_path: Path) -> None:
    (whole_run(tmp_path, "evil\x1b[2J\nname", [0.5]) / "config.json").write_text("{")
    _, row, damage = format_table(list_runs(tmp_path)).splitlines()
    assert row.startswith(r"evil\x1b[2J\nname  finished  ")
    assert damage.startswith(r"evil\x1b[2J\nname: config.json cannot be read")


def test_a_history_is_read_as_far_as_the_csv_goes(tmp_path: Path) -> None:
    """A cell beyond the reader's limit is an error of its own kind."""
    with (whole_run(tmp_path, "a", [0.5]) / "history.csv").open("a") as file:
        file.write(f"2,0.5,{200_000 * '9'}\n")
    (run,) = list_runs(tmp_path)
    assert (run.epochs, run.valid_score) == (1, 0.5)
    assert run.damage[0].startswith("history.csv cannot be read beyond 1 epochs: field larger than field limit")
