"""retina-score as its users run it: real processes and files, including SIGKILL."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from retina.runtime import RetinaModel
from retina.runtime.cli import main
from retina.runtime.table import columns
from retina.runtime.terminal import printable
from tiny_model import CONTRACT, expected_probs, write_tiny_model

COMMAND = [sys.executable, "-c", "from retina.runtime.cli import main; main()"]


class Score(Protocol):
    """Runs retina-score, in a folder where it finds a model unless told otherwise."""

    def __call__(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        preexec_fn: Callable[[], object] | None = None,
    ) -> subprocess.CompletedProcess[str]: ...


def image(seed: int, side: int = 40) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (side, side, 3)) * rng.uniform(0.2, 1, 3)).astype(np.uint8)


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(image(i)).save(folder / f"{i:05}.png")
    return folder


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Run retina-score in an empty folder with the tiny model in artifacts/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETINA_ARTIFACTS", raising=False)
    (tmp_path / "artifacts").mkdir()
    write_tiny_model(tmp_path / "artifacts" / "retina_multitask.onnx")

    def run(
        *arguments: str | Path,
        stdin: bytes = b"",
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        preexec_fn: Callable[[], object] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin, capture_output=True, timeout=60, check=False, cwd=cwd, env=env, preexec_fn=preexec_fn,
        )  # fmt: skip
        out, err = (os.fsdecode(stream) for stream in (done.stdout, done.stderr))
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


def table(path: str = "test_predictions.csv") -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_bare_command_uses_the_last_export_and_writes_the_designs_table(score: Score) -> None:
    photographs(Path("eyes"), 5)
    (Path("eyes") / "notes.txt").touch()
    done = score("eyes")
    assert done.returncode == 0, done.stderr
    assert "scored 5; failed 0" in done.stdout
    assert "5 rows; ignored 1 other file: 1 .txt\n" in done.stdout
    assert "artifacts/retina_multitask.onnx" in done.stderr
    assert Path("test_predictions.csv").read_text().splitlines()[0] == ",".join(columns(range(5)))
    for i, row in enumerate(table()):
        dr, me = expected_probs(image(i))
        assert row["Image name"] == f"{i:05}.png"
        assert row["Pred DR grade (orig)"] == str(np.argmax(dr))
        assert row["Pred ME risk"] == str(np.argmax(me))
        assert (row["True DR grade (orig)"], row["True ME risk"], row["status"], row["error"]) == ("", "", "ok", "")
        np.testing.assert_allclose([float(row[f"dr_prob_{grade}"]) for grade in range(5)], dr, atol=1e-6)
        assert float(row["me_prob"]) == pytest.approx(me[1], abs=1e-6)
    assert sorted(p.name for p in Path().iterdir()) == ["artifacts", "eyes", "test_predictions.csv"]


def test_every_bad_file_keeps_its_row_and_exit_code_is_1(score: Score) -> None:
    folder = photographs(Path("eyes"), 3)
    (folder / "empty.jpg").touch()
    (folder / "text.JPG").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "00000.png").read_bytes()[:-40])
    Image.new("RGB", (20, 300)).save(folder / "small.bmp")
    Image.new("L", (10_001, 10_000)).save(folder / "big.png", compress_level=1)
    (folder / "gone.tif").symlink_to("nowhere")
    done = score("eyes")
    assert done.returncode == 1
    assert "scored 3; failed 6" in done.stdout
    errors = {row["Image name"]: row["error"] for row in table() if row["status"] == "error"}
    assert errors.pop("text.JPG").startswith("expected JPEG, PNG, TIFF, WebP, JPEG 2000, BMP or DICOM")
    assert errors == {
        "empty.jpg": "empty file",
        "cut.png": "image file is truncated",
        "small.bmp": "too small: expected at least 32 pixels a side, found 20 x 300",
        "big.png": "too large: expected at most 100000000 pixels, found 10001 x 10000",
        "gone.tif": "no such file",
    }
    for row in table():
        if row["status"] == "error":
            assert not any(row[c] for c in row if c not in ("Image name", "status", "error"))
    assert [row["Image name"] for row in table()] == sorted(row["Image name"] for row in table())


def test_odd_names_and_nested_folders(score: Score) -> None:
    names = ["a b.png", "new\nline.png", "ünï.PNG", "sub/x.png", 'sub/deep/comma,quote".png', "byte\udcff.png"]
    for i, name in enumerate(names):
        (Path("eyes") / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)).save(Path("eyes") / name, "PNG")
    (Path("eyes") / "sub" / "loop").symlink_to("..")
    done = score("eyes", "--json")
    assert done.returncode == 0
    written = [name.encode("utf-8", "backslashreplace").decode() for name in sorted(names)]
    assert [row["Image name"] for row in table()] == written
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == written


def test_json_lines_hold_what_the_table_holds(score: Score) -> None:
    folder = photographs(Path("eyes"), 3)
    (folder / "bad.png").touch()
    Path("a.csv").write_text("Image name,Retinopathy grade,Risk of macular edema\n00001,3,1\n")
    lines = [json.loads(line) for line in score("eyes", "--json", "--annotations", "a.csv").stdout.splitlines()]
    for line, row in zip(lines, table(), strict=True):
        assert (line["image"], line["status"], line["error"]) == (row["Image name"], row["status"], row["error"])
        if line["status"] == "ok":
            assert str(line["dr_grade"]) == row["Pred DR grade (orig)"]
            assert line["dr_probs"] == {str(grade): float(row[f"dr_prob_{grade}"]) for grade in range(5)}
            assert line["referable"] == (line["referable_prob"] >= 0.5)
        assert str(line.get("true_dr_grade", "")) == row["True DR grade (orig)"]


def test_annotations_add_truth_and_print_agreement(score: Score) -> None:
    photographs(Path("eyes"), 6)
    grades = [int(np.argmax(expected_probs(image(i))[0])) for i in range(6)]
    truth = [grades[0], grades[1], grades[2], 0, 1, 2]
    rows = [f"{i:05}.JPG,{grade},1" for i, grade in enumerate(truth)]
    Path("a.csv").write_text(
        "\n".join(["\ufeffimage NAME ,Retinopathy grade,Risk of macular edema ", *rows, "other,1,1"])
    )
    done = score("eyes", "--annotations", "a.csv")
    assert [row["True DR grade (orig)"] for row in table()] == [str(grade) for grade in truth]
    assert {row["True ME risk"] for row in table()} == {"1"}
    share = sum(t == p for t, p in zip(truth, grades, strict=True)) / 6
    assert f"DR accuracy {share:.4f}" in done.stdout
    assert "ME true down, predicted across" in done.stdout
    assert "annotations that name no photograph scored here: 1 (such as 'other')" in done.stderr


def test_referral_adds_its_columns_after_all_others(score: Score) -> None:
    folder = photographs(Path("eyes"), 4)
    (folder / "bad.png").touch()
    assert score("eyes", "--referral").returncode == 1
    *rows, bad = table()
    assert list(bad) == [*columns(range(5)), "referable", "referable_prob", "referable_me"]
    assert [bad["referable"], bad["referable_prob"], bad["referable_me"]] == ["", "", ""]
    for i, row in enumerate(rows):
        dr, me = expected_probs(image(i))
        assert float(row["referable_prob"]) == pytest.approx(dr[2:].sum(), abs=1e-5)
        assert (row["referable"], row["referable_me"]) == (str(int(dr[2:].sum() >= 0.5)), str(int(me[1] >= 0.5)))
    assert len({row["referable"] for row in rows}) == 2
    plain = [{key: row[key] for key in columns(range(5))} for row in table()]
    assert score("eyes").returncode == 1
    assert table() == plain


def test_unfamiliar_pictures_are_counted_and_named_on_request(score: Score) -> None:
    folder = photographs(Path("eyes"), 4)
    (folder / "bad.png").touch()
    novelty = [20 * float(image(i)[..., 2].mean()) / 255 for i in range(4)]
    level = sum(sorted(novelty)[1:3]) / 2
    write_tiny_model(Path("artifacts/retina_multitask.onnx"), contract=replace(CONTRACT, unfamiliar_from=level))
    strange = [i for i in range(4) if novelty[i] >= level]
    name = sorted(path.name for path in folder.iterdir())[strange[0]]
    told = f"look at them before you use their answers (such as {name!r}"
    done = score("eyes", "--json")
    assert f"{told}; which ones: --novelty)" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("novelty") for line in lines[:4]] == pytest.approx(novelty, abs=1e-4)
    assert [line.get("unfamiliar") for line in lines] == [*(i in strange for i in range(4)), None]
    plain = table()
    assert list(plain[0]) == columns(range(5))

    assert f"{told})" in score("eyes", "--novelty", "--referral").stdout
    *rows, bad = table()
    assert list(bad) == [*columns(range(5), referral=True), "novelty", "unfamiliar"]
    assert [bad["novelty"], bad["unfamiliar"]] == ["", ""]
    assert [float(row["novelty"]) for row in rows] == pytest.approx(novelty, abs=1e-4)
    assert [row["unfamiliar"] for row in rows] == [str(int(i in strange)) for i in range(4)]
    assert [{key: row[key] for key in columns(range(5))} for row in table()] == plain


def test_a_model_that_cannot_tell_says_nothing_of_it(score: Score) -> None:
    photographs(Path("eyes"), 1)
    done = score("eyes", "--json")
    assert "unfamiliar" not in done.stdout + done.stderr
    assert "novelty" not in done.stdout
    refused = score("eyes", "--novelty", "--out", "other.csv")
    assert refused.returncode == 2
    assert "expected a model file with the output novelty, found artifacts" in refused.stderr
    assert "python -m retina.export.novelty PHOTOGRAPHS --model FILE --out FILE" in refused.stderr
    assert not Path("other.csv").exists()


def test_graded_edema_becomes_risk_from_the_grade_that_is_named(score: Score) -> None:
    photographs(Path("eyes"), 3)
    rows = [f"{i:05}.png,{i},{i}" for i in range(3)]
    Path("a.csv").write_text("\n".join(["Image name,Retinopathy grade,Risk of macular edema", *rows]))
    refused = score("eyes", "--annotations", "a.csv")
    assert refused.returncode == 2
    assert "line 4: Risk of macular edema: expected 0 or 1, found 2 (00002.png); --me-positive-from N" in refused.stderr
    Path("b.csv").write_text(Path("a.csv").read_text().replace("2,2", "2,20"))
    assert "expected 0 to 3, found 20" in score("eyes", "--annotations", "b.csv", "--me-positive-from", "1").stderr
    for threshold, labels in ((1, ["0", "1", "1"]), (2, ["0", "0", "1"])):
        assert score("eyes", "--annotations", "a.csv", "--me-positive-from", str(threshold)).returncode == 0
        assert [row["True ME risk"] for row in table()] == labels


def test_files_and_lists_instead_of_a_folder(score: Score) -> None:
    photographs(Path("eyes"), 4)
    Path("list.txt").write_text("eyes/00003.png\neyes/00001.png\n")
    assert score("@list.txt", "eyes/00000.png").returncode == 0
    assert [row["Image name"] for row in table()] == ["eyes/00000.png", "eyes/00001.png", "eyes/00003.png"]
    assert score("-", stdin=b"eyes/00002.png\0eyes/none.png\0").returncode == 1
    assert [row["error"] for row in table()] == ["", "no such file"]


@pytest.mark.usefixtures("score")
def test_exact_decodes_a_large_picture_at_full_size(tmp_path: Path) -> None:
    Path("eyes").mkdir()
    Image.fromarray(image(4, 200)).save("eyes/a.jpg", quality=60)
    found = []
    for options in ([], ["--exact"]):
        assert CliRunner().invoke(main, ["eyes", *options]).exit_code == 0
        found.append(float(table()[0]["me_prob"]))
    model = tmp_path / "artifacts" / "retina_multitask.onnx"
    expected = [RetinaModel(model, exact=exact).predict("eyes/a.jpg").me_prob for exact in (False, True)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert abs(found[0] - found[1]) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder or files"),
        (["eyes", "--workers", "0"], "--workers"),
        (["eyes", "--bogus"], "No such option"),
        (["none"], "'none': expected a folder, a photograph or a list of them, found nothing there"),
        (
            ["eyes", "--out", "bad.csv", "--annotations", "bad.csv"],
            "bad.csv: expected a file to write, found one that is",
        ),
        (["eyes", "--out", 300 * "x" + ".csv"], "File name too long"),
        (["void"], "expected photographs, found none (1 other file: 1 .txt). A folder's need an ending of .bmp"),
        (["eyes", "--model", "none.onnx"], "none.onnx: expected a model file, found: No such file"),
        (["eyes", "--model", "plain.onnx"], "plain.onnx: expected a contract"),
        (["eyes", "--out", "plain.onnx/x.csv"], "plain.onnx/x.csv: expected a folder to write to, found none: "),
        (
            ["eyes", "--out", "/proc/none/x.csv"],
            "/proc/none: expected a folder to write to, or a place to make it in, ",
        ),
        (["eyes", "--out", "none/x.csv", "--annotations", "none.csv"], "none.csv: 1 fault"),
        (["eyes", "--out", "eyes"], "expected a file to write, found a folder"),
        (["eyes", "--out", "plain.onnx"], "plain.onnx: expected an earlier table or no file, found another file"),
        (["eyes", "--out", "bad.csv"], "bad.csv: expected an earlier table or no file, found another file"),
        (["eyes", "--out", "/dev/stdout"], "/dev/stdout: expected a file to write, found a device or a pipe"),
        (["eyes", "--annotations", "none.csv"], "none.csv: 1 fault"),
        (["eyes", "--annotations", "bad.csv"], "line 2: Retinopathy grade: expected a whole number from 0, found 'x'"),
        (["eyes", "--me-positive-from", "2"], "--me-positive-from: expected --annotations CSV"),
        (["eyes", "--artifacts", "artefacts"], "expected a folder, found none: artefacts"),
        (["eyes", "--provider", "abacus"], "--provider abacus: expected one of"),
        (["@none.txt"], "@none.txt: expected a list of paths"),
    ],
    ids=str,
)
def test_what_cannot_begin_ends_with_2_and_writes_nothing(score: Score, arguments: list[str], message: str) -> None:
    photographs(Path("eyes"), 1)
    Path("void").mkdir()
    (Path("void") / "notes.txt").touch()
    Path("bad.csv").write_text("Image name,Retinopathy grade,Risk of macular edema\n00000,x,0\n")
    write_tiny_model(Path("plain.onnx"), contract=None)
    before = set(Path().iterdir())
    done = score(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert set(Path().iterdir()) == before


def test_a_folder_that_the_environment_names_and_that_is_not_there_is_refused(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(Path("eyes"), 1)
    monkeypatch.setenv("RETINA_ARTIFACTS", "artefacts")
    refused = score("eyes")
    assert refused.returncode == 2
    assert "Invalid value for RETINA_ARTIFACTS: expected a folder, found none: artefacts" in refused.stderr
    assert score("eyes", "--artifacts", "artifacts").returncode == 0
    assert score("eyes", "--model", "artifacts/retina_multitask.onnx").returncode == 0, "it is not looked into"


def test_a_folder_without_permission_to_write(score: Score) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    photographs(Path("eyes"), 1)
    Path("locked").mkdir(mode=0o500)
    done = score("eyes", "--out", "locked/x.csv")
    assert (done.returncode, "cannot be written: Permission denied" in done.stderr) == (2, True)


def test_the_tables_folder_is_made(score: Score) -> None:
    photographs(Path("eyes"), 1)
    assert score("eyes", "--out", "new/place/x.csv").returncode == 0
    assert [path.name for path in Path("new/place").iterdir()] == ["x.csv"]


def test_one_core_starts_one_worker(score: Score) -> None:
    photographs(Path("eyes"), 2)
    core = min(os.sched_getaffinity(0))
    done = score("eyes", preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert "2 photographs, 1 worker, " in done.stderr
    assert "2 photographs, 3 workers, " in score("eyes", "--workers", "3").stderr


def survives_kills(folder: Path, moments: Sequence[float]) -> None:
    """Kill a run (SIGKILL) after each of these shares of its rows, resume it, and compare with an undisturbed run.

    The rows go to a pipe that is no longer read once the kill is due. A pipe holds 64 KB, about 300 rows, so a run of
    many more cannot end before it is killed, however fast the machine.
    """
    rows = len(list(folder.iterdir()))
    assert subprocess.run([*COMMAND, folder, "--out", "whole.csv"], capture_output=True, check=False).returncode == 1
    again: list[str | Path] = [*COMMAND, folder, "--out", "killed.csv", "--json"]
    for moment in moments:
        process = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        for _ in range(int(moment * (rows - 400))):
            process.stdout.readline()
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not Path("killed.csv").exists()
    done = subprocess.run(again, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"resuming: " in done.stderr
    assert len(done.stdout.splitlines()) == rows
    assert Path("killed.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("killed.csv.journal").exists()
    assert not Path("killed.csv.partial").exists()


@pytest.mark.usefixtures("score")
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes() -> None:
    folder = photographs(Path("eyes"), 700)
    (folder / "00100.png").write_bytes(b"broken")
    survives_kills(folder, [0.0, 0.2, 0.15, 0.7, 1.0])


@pytest.mark.slow
@pytest.mark.skipif("RETINA_SLOW" not in os.environ, reason="a minute; set RETINA_SLOW=1")
@pytest.mark.usefixtures("score")
def test_twenty_kills_over_two_thousand_files() -> None:
    folder = photographs(Path("eyes"), 2000)
    (folder / "01500.png").write_bytes(b"broken")
    rng = random.Random(5)
    survives_kills(folder, [rng.random() for _ in range(20)])


def test_a_resumed_run_notices_another_model_and_changed_files(score: Score) -> None:
    photographs(Path("eyes"), 500)
    process = subprocess.Popen([*COMMAND, "eyes", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.communicate()
    Image.fromarray(image(999)).save(Path("eyes") / "00003.png")
    write_tiny_model(Path("artifacts/retina_multitask.onnx"), contract=replace(CONTRACT, dr_grades=(0, 1, 2)))
    done = score("eyes")
    assert "scoring all again: model changed since the last run" in done.stderr
    for i, row in enumerate(table()):
        first = expected_probs(image(999 if i == 3 else i))[0][:3]
        assert float(row["dr_prob_0"]) == pytest.approx(first[0] / first.sum(), abs=1e-6)


@pytest.mark.usefixtures("score")
def test_interrupted_by_the_user_it_says_how_to_go_on() -> None:
    """And goes on where Ctrl-C is ignored, as in a shell's background job."""
    photographs(Path("eyes"), 500)

    def interrupted(command: list[str]) -> tuple[int, bytes]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        return process.returncode, err

    code, err = interrupted([*COMMAND, "eyes", "--json"])
    assert code == 130
    assert b"the same command goes on from here" in err
    assert Path("test_predictions.csv.journal").exists()
    in_the_background = 'trap "" INT; exec "$0" -c "$1" eyes --json'
    code, err = interrupted(["sh", "-c", in_the_background, sys.executable, COMMAND[2]])
    assert code == 0
    assert b"resuming: " in err


def test_help_teaches(score: Score) -> None:
    done = score("--help")
    assert done.returncode == 0
    for word in ("Examples:", "retina-score photographs/", "Exit code 0", "[default: test_predictions.csv]", "@FILE"):
        assert word in done.stdout


def test_nothing_heavy_is_loaded_for_help() -> None:
    code = (
        "import sys, retina.runtime.cli\n"
        "try: retina.runtime.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'onnxruntime', 'PIL', 'pydicom', 'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_overlays_are_drawn_beside_the_same_table(score: Score, tmp_path: Path) -> None:
    photographs(Path("eyes"), 2)
    Path("eyes/deep").mkdir()
    Image.fromarray(image(7, 60)).save("eyes/deep/a b.png")
    Path("eyes/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused = score("eyes", "--overlays", "maps")
    assert refused.returncode == 2
    assert "expected a model file with Grad-CAM maps" in refused.stderr
    write_tiny_model(tmp_path / "explain.onnx", contract=replace(CONTRACT, explain=True))
    assert score("eyes", "--model", "explain.onnx").returncode == 1
    plain = Path("test_predictions.csv").read_bytes()
    assert score("eyes", "--model", "explain.onnx", "--overlays", "maps").returncode == 1
    assert Path("test_predictions.csv").read_bytes() == plain
    drawn = sorted(str(path.relative_to("maps")) for path in Path("maps").rglob("*.*"))
    names = ["00000.png", "00001.png", "deep/a b.png"]
    assert drawn == sorted(f"{name}_{head}.jpg" for name in names for head in ("dr", "me"))
    overlay = np.asarray(Image.open("maps/deep/a b.png_dr.jpg").convert("RGB"))
    assert overlay.shape == (60, 60, 3)
    assert (overlay != image(7, 60)).any()


def test_overlays_never_lie_where_photographs_are_scored(score: Score, tmp_path: Path) -> None:
    photographs(Path("eyes"), 2)
    write_tiny_model(tmp_path / "explain.onnx", contract=replace(CONTRACT, explain=True))
    explain = ("--model", tmp_path / "explain.onnx", "--overlays")
    inside = score("eyes", *explain, "eyes/maps")
    assert inside.returncode == 2
    assert "--overlays eyes/maps: expected a folder outside eyes" in inside.stderr
    files = [tmp_path / "eyes" / name for name in ("00000.png", "00001.png")]
    assert score(*files, *explain, "maps").returncode == 0
    assert sorted(Path("eyes").iterdir()) == [Path("eyes/00000.png"), Path("eyes/00001.png")]
    assert len(list(Path("maps").rglob("*.jpg"))) == 4
    both = score(files[0], str(files[0])[1:], *explain, tmp_path / "maps", "--out", tmp_path / "t.csv", cwd="/")
    assert "would be drawn into one file" in both.stderr
    Path("taken").touch()
    told = score("eyes", *explain, "taken").stderr
    assert "taken: expected a folder that can be written, found: File exists. Choose another --overlays." in told


def test_an_overlay_is_never_that_of_another_photograph(score: Score, tmp_path: Path) -> None:
    photographs(Path("eyes"), 500)
    write_tiny_model(tmp_path / "explain.onnx", contract=replace(CONTRACT, explain=True))
    Path("maps").mkdir()
    for head in ("dr", "me"):
        Image.new("RGB", (9, 9)).save(f"maps/00000.png_{head}.jpg")  # of the former 00000.png
    arguments = [*COMMAND, "eyes", "--model", "explain.onnx", "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.communicate()
    done = score("eyes", "--model", "explain.onnx", "--overlays", "maps")
    assert "scoring all again: overlays changed since the last run" in done.stderr
    with Image.open("maps/00000.png_dr.jpg") as overlay:
        assert overlay.size == (40, 40)


def test_an_overlay_that_cannot_be_drawn_keeps_its_row(score: Score, tmp_path: Path) -> None:
    photographs(Path("eyes"), 1)
    long = 246 * "x" + ".png"
    Image.fromarray(image(1)).save(Path("eyes") / long)
    Image.new("L", (66_000, 40)).save("eyes/wide.png")  # wider than a JPEG may be
    just_fits = 240 * "z" + ".png"
    Image.fromarray(image(1)).save(Path("eyes") / just_fits)
    write_tiny_model(tmp_path / "explain.onnx", contract=replace(CONTRACT, explain=True))
    done = score("eyes", "--model", "explain.onnx", "--overlays", "maps")
    assert done.returncode == 0
    assert "overlays cannot be written: File name too long" in done.stderr
    reason = "a JPEG has at most 65500 pixels a side, found 66000 x 40"
    assert f"wide.png: overlays cannot be written: {reason}\n" in done.stderr
    assert "Maximum supported image dimension" not in done.stderr, "libjpeg's own message"
    assert "wrote overlays of 2 of 4 photographs into maps\n" in done.stdout
    Path("eyes/00000.png").write_bytes(b"broken")
    again = score("eyes", "--model", "explain.onnx", "--overlays", "maps")
    assert again.returncode == 1
    assert "wrote overlays of 1 of 4 photographs into maps\n" in again.stdout, "not that of the photograph before"
    assert [row["Image name"] for row in table()] == ["00000.png", "wide.png", long, just_fits]
    assert all(Path("maps", f"{just_fits}_{head}.jpg").is_file() for head in ("dr", "me"))


def test_a_terminal_that_cannot_write_a_name(score: Score) -> None:
    Path("eyes").mkdir()
    Path("eyes/\u65e5.jpg").write_bytes(b"no picture")
    done = score("eyes", env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 1
    assert "\\u65e5.jpg" in done.stdout


def test_a_name_that_commands_the_terminal_is_spelled_out(score: Score) -> None:
    """As xterm would take it, this one sets the window's title; others have replaced what was on the screen."""
    command = "\x1b]0;owned\x07"
    Path("eyes").mkdir()
    Image.new("L", (66_000, 40)).save(f"eyes/{command}.png")  # wider than a JPEG may be, so that a warning names it
    write_tiny_model(Path(f"{command}.onnx"), contract=replace(CONTRACT, explain=True))
    said = score("eyes", "--model", f"{command}.onnx", "--overlays", f"maps{command}")
    refused = score(f"none{command}")
    told = said.stdout + said.stderr + refused.stderr
    assert not set(command[:1] + command[-1:]) & set(told)
    assert "\\x1b]0;owned\\x07.png: overlays cannot be written" in said.stderr
    assert "\\x1b]0;owned\\x07.onnx" in said.stderr
    assert "maps\\x1b]0;owned\\x07" in said.stdout
    assert "none\\x1b]0;owned\\x07" in refused.stderr
    assert printable("患者　1.jpg\n9.41\u202fAM\u200b") == "患者　1.jpg\n9.41\u202fAM\\u200b"


def test_a_link_to_the_table_stays_a_link(score: Score) -> None:
    photographs(Path("eyes"), 1)
    Path("far").mkdir()
    Path("t.csv").symlink_to("far/real.csv")
    assert score("eyes", "--out", "t.csv").returncode == 0
    assert Path("t.csv").is_symlink()
    assert len(table("far/real.csv")) == 1


def test_a_model_whose_name_leaves_no_room_for_a_digest_beside_it(score: Score) -> None:
    photographs(Path("eyes"), 1)
    name = 250 * "m" + ".onnx"
    shutil.copy("artifacts/retina_multitask.onnx", name)
    done = score("eyes", "--model", name)
    assert done.returncode == 0, done.stderr


def test_a_link_in_a_circle_is_told_whichever_option_names_it(score: Score, tmp_path: Path) -> None:
    photographs(Path("eyes"), 1)
    Path("loop").symlink_to("loop")
    write_tiny_model(tmp_path / "explain.onnx", contract=replace(CONTRACT, explain=True))
    for options in (["--model", "loop"], ["--annotations", "loop"], ["--model", "explain.onnx", "--overlays", "loop"]):
        done = score("eyes", *options)
        assert done.returncode == 2
        assert "loop: " in done.stderr
    assert score("eyes", "--out", "loop").returncode == 0
    assert len(table("loop")) == 1


def test_nothing_that_is_read_is_written_over(score: Score) -> None:
    """Including a model that was found by default and a list of paths, as well as files named by options."""
    photographs(Path("eyes"), 2)
    Path("list.txt").write_text("eyes/00000.png\n")
    Path("link.onnx").symlink_to("artifacts/retina_multitask.onnx")
    model = Path("artifacts/retina_multitask.onnx")
    whole = model.read_bytes()
    for options in (
        ["eyes", "--out", str(model)],
        ["eyes", "--model", "link.onnx", "--out", str(model)],
        ["@list.txt", "--out", "list.txt"],
    ):
        done = score(*options)
        assert (
            done.returncode == 2
            and f"{options[-1]}: expected a file to write, found one that is to be read" in done.stderr
        )
    assert model.read_bytes() == whole and Path("list.txt").read_text() == "eyes/00000.png\n"


def test_a_table_that_is_written_counts_whoever_listens(score: Score) -> None:
    """With standard output full or closed from the start, the table is complete, and the exit code is for the table."""
    photographs(Path("eyes"), 2)
    for redirect in ("> /dev/full", "2>&-", ">&-"):
        Path("test_predictions.csv").unlink(missing_ok=True)
        command = f'exec "$0" -c "$1" eyes {redirect}'
        done = subprocess.run(["sh", "-c", command, sys.executable, COMMAND[2]], capture_output=True, check=False)
        assert (done.returncode, len(table())) == (0, 2), (redirect, done.stderr)
        assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_a_full_output_is_told_and_gone_on_from(score: Score) -> None:
    photographs(Path("eyes"), 3)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, "eyes", "--json"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"stopped, its output cannot be written: No space left on device; the same command goes on" in done.stderr
    journal = Path("test_predictions.csv.journal").read_bytes()
    assert "resuming: " in score("eyes").stderr
    Path("test_predictions.csv").unlink()
    Path("test_predictions.csv.journal").write_bytes(journal)
    assert "resuming:" not in score("eyes", "--no-resume").stderr
    assert len(table()) == 3
    Path("test_predictions.csv.journal").write_bytes(journal)
    # "CPU" is the same provider as "cpu", but as different a word as a build with one provider knows.
    told = score("eyes", "--exact", "--provider", "CPU").stderr
    assert "scoring all again: exact, provider changed since the last run" in told


@pytest.mark.parametrize("ending", ["journal", "partial"])
def test_a_file_of_somebody_elses_beside_the_table_is_kept(score: Score, ending: str) -> None:
    photographs(Path("eyes"), 1)
    theirs = Path(f"test_predictions.csv.{ending}")
    theirs.write_text("my notes")
    done = score("eyes")
    assert done.returncode == 2
    assert f"{theirs}: expected an earlier" in done.stderr and "found another file; name another --out" in done.stderr
    assert theirs.read_text() == "my notes"
    theirs.unlink()
    os.mkfifo(theirs)  # writing to it would wait for a reader
    assert f"{theirs}: expected a file to write, found a device or a pipe" in score("eyes").stderr


@pytest.mark.usefixtures("score")
def test_a_full_log_changes_neither_the_work_nor_the_exit_code() -> None:
    photographs(Path("eyes"), 2)
    with Path("/dev/full").open("wb") as full:
        codes = [
            subprocess.run([*COMMAND, folder], stdout=subprocess.DEVNULL, stderr=full, check=False).returncode
            for folder in ("eyes", "none")
        ]
    assert (codes, len(table())) == ([0, 2], 2)


def test_standard_output_that_goes_to_a_file_is_not_replaced(score: Score) -> None:
    photographs(Path("eyes"), 1)
    with Path("log").open("w") as log:
        done = subprocess.run([*COMMAND, "eyes", "--out", "/dev/stdout"], stdout=log, stderr=log, check=False)
    assert done.returncode == 2
    assert "/dev/stdout: expected a file to write, found a device or a pipe" in Path("log").read_text()


def test_rows_of_other_photographs_are_not_counted_as_these(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are kept until the table is complete."""
    for folder, count in (("a", 3), ("b", 2)):
        photographs(Path(folder), count)
    journal = Path("test_predictions.csv.journal")
    with Path("/dev/full").open("wb") as full:
        subprocess.run([*COMMAND, "a", "--json"], stdout=full, stderr=subprocess.DEVNULL, check=False)
    left = journal.read_bytes()
    known = left.count(b'"name"')
    assert known > 0
    told = score("b").stderr
    assert re.search(rf"not used: {known} rows? of an earlier run", told) and "resuming:" not in told
    assert not journal.exists()
    journal.write_bytes(left)
    monkeypatch.setattr("retina.runtime.progress.LINE_SECONDS", 0.0)
    done = CliRunner().invoke(main, ["a"])
    assert re.search(rf"resuming: {known} rows? of an earlier run", done.stderr) and "not used" not in done.stderr
    assert f"scored 3, {known} of them in an earlier run" in done.stdout
    assert f"{known} of 3, 0.0 per second\n" in done.stderr, "what was known took no time, and tells none"


def test_a_list_from_a_closed_input_is_refused(score: Score) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" - <&-', sys.executable, COMMAND[2]], capture_output=True, check=False
    )
    assert done.returncode == 2 and b"expected a list of paths on standard input, found it closed" in done.stderr


@pytest.mark.parametrize("pause", [0.01, 0.2])
def test_a_second_ctrl_c_does_not_abort_the_first(score: Score, pause: float) -> None:
    photographs(Path("eyes"), 700)  # more than fit into the pipe that nobody reads
    process = subprocess.Popen([*COMMAND, "eyes", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 130, told
    assert b"stopped; the same command goes on from here" in told and b"Traceback" not in told


def test_output_closed_before_the_end_is_told_and_gone_on_from(score: Score) -> None:
    photographs(Path("eyes"), 500)
    process = subprocess.Popen([*COMMAND, "eyes", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as stream:
        told = stream.read()
    assert process.wait(timeout=30) == 2
    assert b"stopped, its output was closed; the same command goes on from here" in told
    assert b"Traceback" not in told
    assert "resuming: " in score("eyes").stderr
