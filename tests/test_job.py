"""A table from Python: the same bytes as retina-score's, stopped and gone on with, refused before the work."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from retina.runtime import AnnotationError, OutputError, RetinaModel, UsageError, score_folder
from retina.runtime.annotations import Annotation
from retina.runtime.cli import main as retina_score
from retina.runtime.folder import gather
from retina.runtime.job import Job
from retina.runtime.summary import Summary
from retina.runtime.table import Row
from retina.runtime.workers import ordered_map
from tiny_model import CONTRACT, write_tiny_model

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, five photographs, one of them torn, and annotations of three."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "m.onnx")
    Path("eyes").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f"eyes/{name}.png")
    Path("eyes/torn.png").write_bytes(Path("eyes/a.png").read_bytes()[:-60])
    rows = ("Image name,Retinopathy grade,Risk of macular edema", "a.png,0,0", "b.png,3,1", "torn.png,1,0")
    Path("truth.csv").write_text("\n".join(rows))
    return tmp_path


def test_the_table_is_that_of_the_command(place: Path) -> None:
    summary = score_folder("eyes", "a.csv", model="m.onnx", annotations="truth.csv", referral=True, workers=2)
    options = ["--model", "m.onnx", "--annotations", "truth.csv", "--referral"]
    assert CliRunner().invoke(retina_score, ["eyes", "--out", "b.csv", *options]).exit_code == 1
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    with Path("a.csv").open(newline="") as file:
        rows = {row["Image name"]: row for row in csv.DictReader(file)}
    assert (summary.scored, summary.failed, summary.known) == (4, 1, 0)
    pairs = sorted((int(rows[name]["True DR grade (orig)"]), int(rows[name]["Pred DR grade (orig)"]))
                   for name in ("a.png", "b.png"))  # fmt: skip
    assert sorted(summary.dr.counts.elements()) == pairs
    assert summary.unscored_truths == 1
    assert sorted(path.name for path in place.iterdir()) == ["a.csv", "b.csv", "eyes", "m.onnx", "truth.csv"]


def test_folders_and_files_by_an_open_model(place: Path) -> None:
    Image.open("eyes/a.png").save("alone.scan", format="PNG")
    summary = score_folder([place / "eyes", "alone.scan"], model=RetinaModel("m.onnx"))
    assert (summary.scored, summary.failed) == (5, 1)
    with Path("test_predictions.csv").open(newline="") as file:
        names = [row["Image name"] for row in csv.DictReader(file)]
    assert len(names) == 6 and names == sorted(names) and "alone.scan" in names


def test_stopped_it_goes_on(place: Path) -> None:
    def run(*, stop_at: str = "") -> tuple[Summary, list[tuple[str, bool]]]:
        done: list[tuple[str, bool]] = []

        def seen(row: Row, _: Annotation | None, known: bool) -> None:
            if row.name == stop_at:
                raise RuntimeError("stopped")
            done.append((row.name, known))

        with Job(RetinaModel("m.onnx"), gather(["eyes"]), Path("t.csv"), workers=1) as job:
            return job.run(seen), done

    with pytest.raises(RuntimeError, match="stopped"):
        run(stop_at="c.png")
    assert not Path("t.csv").exists()
    assert Path("t.csv.journal").exists()
    summary, done = run()
    assert done == [("a.png", True), ("b.png", True), ("c.png", True), ("d.png", False), ("torn.png", False)]
    assert summary.known == 3
    assert not Path("t.csv.journal").exists()
    assert run()[0].known == 0


def test_its_options_are_heard(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("truth.csv").write_text("Image name,Retinopathy grade,Risk of macular edema\na.png,0,1\nb.png,3,2\n")
    workers: list[int] = []

    def watched(work: Any, items: Any, number: int) -> Any:
        workers.append(number)
        return ordered_map(work, items, number)

    monkeypatch.setattr("retina.runtime.scoring.ordered_map", watched)
    summary = score_folder("eyes", "t.csv", model="m.onnx", annotations="truth.csv", me_positive_from=2, workers=3)
    assert sorted(true for true, _ in summary.me.counts.elements()) == [0, 1]
    assert workers == [3]
    with pytest.raises(RuntimeError), Job(RetinaModel("m.onnx"), gather(["eyes"]), Path("t.csv")) as job:
        job.run(stop)
    assert Path("t.csv.journal").read_text().count("\n") > 1
    assert score_folder("eyes", "t.csv", model="m.onnx", resume=False).known == 0


def test_novelty_is_told_on_request(place: Path) -> None:
    with pytest.raises(UsageError, match=r"--novelty: expected a model file with the output novelty, found m\.onnx"):
        score_folder("eyes", "t.csv", model="m.onnx", novelty=True)
    write_tiny_model(Path("told.onnx"), contract=replace(CONTRACT, unfamiliar_from=0.01))
    assert score_folder("eyes", "t.csv", model="told.onnx", novelty=True).unfamiliar > 0
    header, *_ = Path("t.csv").read_text().splitlines()
    assert header.endswith(",status,error,novelty,unfamiliar")


def stop(*_: object) -> None:
    raise RuntimeError("stopped")


def test_names_that_the_command_would_take_for_lists_are_names(place: Path) -> None:
    for name in ("@left.png", "-"):
        Path("eyes/a.png").rename(name)
        assert score_folder(Path(name), "t.csv", model="m.onnx").scored == 1
        Path(name).rename("eyes/a.png")
    assert score_folder((path for path in sorted(Path("eyes").iterdir())), "t.csv", model="m.onnx").scored == 4


def test_what_cannot_work_is_refused_before_the_work(place: Path) -> None:
    with pytest.raises(UsageError, match="expected --annotations"):
        score_folder("eyes", "t.csv", model="m.onnx", me_positive_from=2)
    with pytest.raises(UsageError, match="'no': expected a folder"):
        score_folder("no", "t.csv", model="m.onnx")
    with pytest.raises(UsageError, match="expected a model file with Grad-CAM maps"):
        score_folder("eyes", "t.csv", model="m.onnx", overlays="maps")
    for input_ in ("truth.csv", "m.onnx", "eyes/a.png"):
        with pytest.raises(OutputError, match="found one that is to be read"):
            score_folder("eyes", input_, model="m.onnx", annotations="truth.csv")
    for options in ({"workers": 0}, {"workers": -1}, {"me_positive_from": 0}, {"me_positive_from": 4}):
        with pytest.raises(UsageError, match=r"(workers|me_positive_from): expected .* found (-1|0|4)"):
            score_folder("eyes", "t.csv", model="m.onnx", annotations="truth.csv", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing named: expected photographs"):
        score_folder([], "t.csv", model="m.onnx")
    Path("truth.csv").write_text("Image name,Retinopathy grade,Risk of macular edema\na.png,seven,0\n")
    with pytest.raises(AnnotationError, match="seven"):
        score_folder("eyes", "t.csv", model="m.onnx", annotations="truth.csv")
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="empty: expected photographs, found none"):
        score_folder("empty", "t.csv", model="m.onnx")
    assert sorted(path.name for path in place.iterdir()) == ["empty", "eyes", "m.onnx", "truth.csv"]


@pytest.mark.parametrize(("lowest", "risks"), [(1, [1, 1]), (2, [0, 1]), (3, [0, 1])])
def test_edema_may_count_as_risk_from_each_grade_on(place: Path, lowest: int, risks: list[int]) -> None:
    Path("truth.csv").write_text("Image name,Retinopathy grade,Risk of macular edema\na.png,0,1\nb.png,3,3\n")
    summary = score_folder("eyes", "t.csv", model="m.onnx", annotations="truth.csv", me_positive_from=lowest)
    assert sorted(true for true, _ in summary.me.counts.elements()) == risks


def test_a_further_file_that_is_read_is_not_written_over(place: Path) -> None:
    """Such as a key that the model is verified with, even if it looks like an earlier table."""
    score_folder("eyes", "key.csv", model="m.onnx")
    before = Path("key.csv").read_bytes()
    with pytest.raises(OutputError, match=r"key\.csv: expected a file to write, found one that is to be read"):
        Job(RetinaModel("m.onnx"), gather(["eyes"]), Path("key.csv"), inputs=[Path("key.csv")])
    assert Path("key.csv").read_bytes() == before


def test_readmes_program_makes_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = [block for block in blocks if "score_folder" in block]
    Path("eyes").rename("photographs")
    Path("truth.csv").rename("annotations.csv")
    Path("artifacts").mkdir()
    Path("m.onnx").rename("artifacts/retina_multitask.onnx")
    exec(block, {})
    scored, failed, accuracy, _ = capsys.readouterr().out.split()
    assert (scored, failed) == ("4", "1")
    with Path("scores.csv").open(newline="") as file:
        rows = {row["Image name"]: row for row in csv.DictReader(file)}
    right = [rows[name]["Pred DR grade (orig)"] == grade for name, grade in (("a.png", "0"), ("b.png", "3"))]
    assert float(accuracy) == sum(right) / 2


def test_two_at_once_do_not_write_one_table(place: Path) -> None:
    model, listing = RetinaModel("m.onnx"), gather(["eyes"])
    with Job(model, listing, Path("t.csv")), pytest.raises(OutputError, match="another retina-score"):
        Job(model, listing, Path("t.csv"))
    with Job(model, listing, Path("t.csv")) as job:
        assert job.run().scored == 4
