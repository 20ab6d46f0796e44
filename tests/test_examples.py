"""The programs of examples/ answer as this package does: for the conformance kit, for photographs, and for other files.

Programs without their toolchain are skipped, saying what to install; with RETINA_EXAMPLES=all they fail instead.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin
from retina.export.conformance import write_kit
from retina.runtime import RELEASED
from retina.runtime.cli import main as retina_score
from retina.runtime.contract import METADATA_KEY, Rule, default_thresholds
from retina.runtime.errors import ModelFileError
from retina.runtime.model import RetinaModel
from retina.train.synthetic import photograph
from small_export import SmallExport
from telemetry import bare_environment
from tiny_model import CONTRACT, write_tiny_model

EXAMPLES = Path(__file__).parents[1] / "examples"
SOURCES = {"python": "python/score.py", "node": "node/score.js", "cpp": "cpp/score.cpp"}


@dataclass(frozen=True)
class Program:
    """An example program, run in the folder ``cwd`` as its users do."""

    language: str
    command: list[str]

    def __call__(
        self, *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [*self.command, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=120)


def missing(reason: str) -> None:
    if os.environ.get("RETINA_EXAMPLES") == "all":
        pytest.fail(reason)
    pytest.skip(reason)


def command_of(language: str, build: Path) -> list[str]:
    source = EXAMPLES / SOURCES[language]
    if language == "python":
        return [sys.executable, str(source)]
    if language == "node":
        if shutil.which("node") is None or not (source.parent / "node_modules/sharp").is_dir():
            missing("examples/node: needs Node 20 or later and `npm ci --prefix examples/node`")
        return ["node", str(source)]
    configured = None
    if shutil.which("cmake") is not None:
        configure = ["cmake", "-S", str(source.parent), "-B", str(build), "-DCMAKE_BUILD_TYPE=Debug"]
        configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured is None or configured.returncode:
        missing("examples/cpp: needs the packages in examples/README.md and `sh examples/cpp/onnxruntime.sh PYTHON`")
    built = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return [str(build / "score")]


@pytest.fixture(scope="module", params=sorted(SOURCES))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(request.param, command_of(request.param, tmp_path_factory.mktemp("build")))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files from cameras and archives, and damaged ones."""
    folder = tmp_path_factory.mktemp("photographs")
    eye = Image.fromarray(photograph(3, 1, 480, seed=5, source="larga").picture)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        eye.save(folder / f"turned {orientation}.jpg", exif=exif, quality=95)
    eye.save(folder / "chroma.jpg", quality=90, subsampling=0)
    eye.save(folder / "progressive.jpg", quality=90, progressive=True)
    eye.convert("L").save(folder / "grey.jpg")
    eye.save(folder / 'a "name", quoted.jpg')
    whole = (folder / "chroma.jpg").read_bytes()
    (folder / "cut short.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_bytes(b"no photograph")
    eye.resize((31, 40)).save(folder / "tiny.jpg")
    return folder


def rows_of(text: str) -> dict[str, dict[str, str]]:
    return {row["Image name"]: row for row in csv.DictReader(io.StringIO(text))}


def expected_rows(model: Path, folder: Path) -> dict[str, dict[str, str]]:
    out = folder.with_name(folder.name + ".csv")
    result = CliRunner().invoke(retina_score, [str(folder), "--model", str(model), "--exact", "--out", str(out)])
    assert result.exit_code in (0, 1), result.output
    return rows_of(out.read_text(encoding="utf-8"))


def test_conforms(program: Program, small_export: SmallExport) -> None:
    result = program(small_export.model, "--conformance", small_export.kit)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("9 pictures, largest difference") and result.stdout.endswith(" 0 faults\n")


def test_onnxruntime_reports_nothing(program: Program, small_export: SmallExport, tmp_path: Path) -> None:
    """It would keep a number of this machine, and the events to be sent, in the home folder."""
    result = program(small_export.model, "--conformance", small_export.kit, env=bare_environment(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_answer_is_told(program: Program, small_export: SmallExport, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(small_export.kit, tmp_path / "kit"))
    index = json.loads((kit / "index.json").read_text())
    odd = next(picture for picture in index["pictures"] if picture["name"] == "odd")
    found = odd["dr_probs"][3]
    odd["dr_probs"][3] += 2e-3
    landscape = next(picture for picture in index["pictures"] if picture["decisions"])
    landscape["decisions"]["me_risk"] ^= 1
    landscape["decisions"]["referable_me"] ^= True
    index["cases"][0]["decisions"]["referable"] ^= True
    (kit / "index.json").write_text(json.dumps(index))
    result = program(small_export.model, "--conformance", kit)
    assert result.returncode == 1 and result.stdout.endswith(" 4 faults\n"), result.stdout
    lines = [line for line in result.stdout.splitlines() if "expected" in line]
    line = next(line for line in lines if "dr_probs" in line)
    assert "odd" in line
    assert "3" in line.split("expected")[0] and f"{found:.4f}"[:-1] in line.split("found")[1]
    assert any("me_risk: expected" in line for line in lines)
    assert any("referable_me: expected" in line for line in lines)
    assert any("grade 0" in line and "referable" in line for line in lines)


def test_decisions_are_by_the_files_own_thresholds(program: Program, tmp_path: Path) -> None:
    plain = replace(CONTRACT, thresholds=default_thresholds())
    fitted = replace(
        CONTRACT,
        thresholds={
            "dr": Rule(),
            "me": Rule("at_least", 0.8),
            "referable_dr": Rule("at_least", 0.5, from_grade=4),
            "referable_me": Rule("at_least", 0.75),
        },
    )
    kits = []
    for name, contract in (("plain", plain), ("fitted", fitted)):
        model = write_tiny_model(tmp_path / f"{name}.onnx", contract=contract)
        write_kit(RetinaModel(model), tmp_path / name)
        pictures = json.loads((tmp_path / name / "index.json").read_text())["pictures"]
        kits.append({picture["name"]: picture["decisions"] for picture in pictures if picture["decisions"]})
        result = program(model, "--conformance", tmp_path / name)
        assert result.returncode == 0, result.stdout + result.stderr
    turned = {
        what
        for name in kits[0].keys() & kits[1]
        for what in kits[0][name]
        if kits[0][name][what] != kits[1][name][what]
    }
    assert turned == {"me_risk", "referable", "referable_me"}


def with_contract(model: Path, contract: object, to: Path) -> Path:
    """A copy of a model file with anything in place of its contract."""
    graph = onnx.load(model)
    (entry,) = (entry for entry in graph.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps(contract)
    onnx.save(graph, to)
    return to


def test_a_rule_that_is_not_known_is_refused(program: Program, tmp_path: Path) -> None:
    """As retina-score does: any decision would be a guess. Only ME's referral had no rule in the oldest files."""
    Image.fromarray(photograph(3, 1, 64, seed=6, source="ronda").picture).save(tmp_path / "eye.jpg")
    known = write_tiny_model(tmp_path / "known.onnx")
    for number, (task, rule) in enumerate(
        (
            ("dr", {"rule": "cumulative"}),
            ("me", {"rule": "between"}),
            ("referable_dr", {"rule": "argmax"}),
            ("referable_me", {"rule": "argmax"}),
            ("referable_dr", None),
            ("referable_me", None),
            ("me", {"rule": "at_least"}),
            ("referable_dr", {"rule": "at_least"}),
            ("referable_dr", {"rule": "at_least", "threshold": None}),
            ("referable_me", {"rule": "at_least"}),
            ("referable_me", {"rule": "at_least", "threshold": "0.5"}),
            ("referable_me", {"rule": "at_least", "threshold": True}),
            ("referable_me", {"rule": "at_least", "threshold": 2}),
            ("referable_me", {"rule": "at_least", "threshold": -0.1}),
        )
    ):
        contract = json.loads(CONTRACT.to_json())
        del contract["thresholds"][task]
        contract["thresholds"] |= {} if rule is None else {task: rule}
        file = with_contract(known, contract, tmp_path / f"{number}.onnx")
        result = program(file, tmp_path / "eye.jpg")
        if (task, rule) == ("referable_me", None):
            assert result.returncode == 0, result.stderr
            RetinaModel(file)
            continue
        assert (result.returncode, result.stdout) == (2, ""), (task, rule, result)
        assert "rule" in result.stderr
        with pytest.raises(ModelFileError, match="thresholds"):
            RetinaModel(file)


def test_a_threshold_that_is_a_whole_number_is_a_number(program: Program, tmp_path: Path) -> None:
    Image.fromarray(photograph(3, 1, 64, seed=6, source="ronda").picture).save(tmp_path / "eye.jpg")
    contract = json.loads(CONTRACT.to_json())
    contract["thresholds"]["me"] = {"rule": "at_least", "threshold": 0}
    contract["thresholds"]["referable_dr"] |= {"threshold": 1}
    model = with_contract(write_tiny_model(tmp_path / "known.onnx"), contract, tmp_path / "model.onnx")
    result = program(model, "eye.jpg", cwd=tmp_path)
    assert rows_of(result.stdout)["eye.jpg"]["Pred ME risk"] == "1", result
    assert RetinaModel(model).predict(tmp_path / "eye.jpg").me_risk == 1


@pytest.mark.parametrize("grades", [[0, 1, 2, 3], [0, 1, 2], [0, 4]])
def test_grades_unlike_the_graph_s_outputs_are_refused(program: Program, tmp_path: Path, grades: list[int]) -> None:
    """One grade too many would be read from beyond the outputs; one too few would shift the columns of the table."""
    Image.fromarray(photograph(3, 1, 64, seed=6, source="ronda").picture).save(tmp_path / "eye.jpg")
    three = replace(CONTRACT, dr_grades=(0, 1, 3))
    contract = json.loads(three.to_json()) | {"dr_grades": grades}
    tiny = write_tiny_model(tmp_path / "three.onnx", contract=three)
    result = program(with_contract(tiny, contract, tmp_path / "model.onnx"), "eye.jpg", cwd=tmp_path)
    if len(grades) == 3:
        assert result.returncode == 0, result.stderr
    else:
        row = rows_of(result.stdout)["eye.jpg"]
        assert (result.returncode, row["status"], row["me_prob"]) == (1, "error", ""), result
        assert row["error"].startswith("outputs: expected")
        with pytest.raises(ModelFileError, match="outputs"):
            RetinaModel(tmp_path / "model.onnx")


@pytest.mark.parametrize("contract", [None, [1], "text", {"schema": "1"}, {"schema": True}, {}])
def test_what_is_no_contract_is_refused_in_words(program: Program, tmp_path: Path, contract: object) -> None:
    model = with_contract(write_tiny_model(tmp_path / "known.onnx"), contract, tmp_path / "model.onnx")
    result = program(model, "eye.jpg", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, ""), result
    assert re.search("schema.*expected 1|expected a retina.contract of schema 1", result.stderr), result.stderr


def test_a_caution_gives_the_terminal_no_commands(program: Program, tmp_path: Path) -> None:
    Image.fromarray(photograph(3, 1, 64, seed=6, source="ronda").picture).save(tmp_path / "eye.jpg")
    told = replace(CONTRACT, added_caution="Look: \x1b[2J\x9b2J.")
    model = write_tiny_model(tmp_path / "told.onnx", contract=told)
    result = program(model, tmp_path / "eye.jpg")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Caution: Look: "))
    assert line.isprintable()


def test_what_the_model_was_never_trained_for_is_said(program: Program, tmp_path: Path) -> None:
    never = replace(CONTRACT, provenance={"untrained_heads": ["me"]})
    model = write_tiny_model(tmp_path / "never.onnx", contract=never)
    Image.fromarray(photograph(3, 1, 64, seed=6, source="ronda").picture).save(tmp_path / "eye.jpg")
    result = program(model, tmp_path / "eye.jpg")
    assert result.returncode == 0, result.stderr
    assert f"Caution: {never.caution}" in result.stderr.splitlines()  # among warnings of onnxruntime


def test_rows_are_those_of_retina_score(program: Program, small_export: SmallExport, photographs: Path) -> None:
    expected = expected_rows(small_export.model, photographs)
    result = program(small_export.model, *sorted(expected), cwd=photographs)
    assert result.returncode == 1 and not result.stderr
    found = rows_of(result.stdout)
    assert list(found) == sorted(expected)
    assert list(next(iter(found.values()))) == list(next(iter(expected.values())))
    for name, row in expected.items():
        assert found[name]["status"] == row["status"], (name, found[name])
        for column, cell in row.items():
            if "prob" in column and cell:
                # The decoders are related and agree exactly except in rounding; 1e-3 is the kit's tolerance.
                assert float(found[name][column]) == pytest.approx(float(cell), abs=1e-3), (name, column)
            elif column != "error":
                assert found[name][column] == cell, (name, column)
        assert bool(found[name]["error"]) == (row["status"] == "error")
    assert {name for name, row in expected.items() if row["status"] == "error"} == {
        "cut short.jpg",
        "text.jpg",
        "tiny.jpg",
    }


def _raw_profile(orientation: int) -> str:
    """An EXIF block as older versions of ImageMagick write it to PNG, as text."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n"


def test_orientations_of_xmp_are_ignored_and_of_several_the_first_is_applied(
    program: Program, small_export: SmallExport, tmp_path: Path
) -> None:
    eye = Image.fromarray(photograph(3, 1, 320, seed=5, source="larga").picture)
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    eye.save(tmp_path / "xmp.jpg", xmp=xmp, quality=95)
    several = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 2, 6, 3, 0)
    eye.save(tmp_path / "several.jpg", exif=b"Exif\0\0" + several, quality=95)
    beyond = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, 22, 0)
    eye.save(tmp_path / "beyond.jpg", exif=b"Exif\0\0" + beyond, quality=95)
    if program.language != "cpp":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        eye.save(tmp_path / "xmp.png", pnginfo=text)
        words = PngImagePlugin.PngInfo()
        words.add_text("Raw profile type exif", _raw_profile(6))
        eye.save(tmp_path / "words.png", pnginfo=words)
        eye.save(tmp_path / "xmp.tif", tiffinfo={700: xmp})
    expected = expected_rows(small_export.model, tmp_path)
    upright = RetinaModel(small_export.model, exact=True).predict(np.asarray(eye))
    found = rows_of(program(small_export.model, *expected, cwd=tmp_path).stdout)
    for name, row in expected.items():
        assert row["status"] == found[name]["status"] == "ok", (name, found[name])
        assert float(found[name]["me_prob"]) == pytest.approx(float(row["me_prob"]), abs=1e-3), name
        is_upright = float(row["me_prob"]) == pytest.approx(upright.me_prob, abs=1e-2)
        assert is_upright == (name != "several.jpg"), name


def test_png_with_alpha_and_16_bits(program: Program, small_export: SmallExport, tmp_path: Path) -> None:
    if program.language == "cpp":
        pytest.skip("examples/cpp reads JPEG alone")
    pixels = photograph(3, 1, 320, seed=6, source="ronda").picture
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:, :160] = 0
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "alpha.png")
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    expected = expected_rows(small_export.model, tmp_path)
    found = rows_of(program(small_export.model, *expected, cwd=tmp_path).stdout)
    for name, row in expected.items():
        for column, cell in row.items():
            same = pytest.approx(float(cell), abs=1e-3) == float(found[name][column]) if "prob" in column else True
            assert same and ("prob" in column or found[name][column] == cell), (name, column, found[name])


def test_tiff_of_12_bits_or_with_0_for_white(program: Program, small_export: SmallExport, tmp_path: Path) -> None:
    if program.language != "python":
        pytest.skip("of the programs, only Python's reads 16 bits of TIFF")
    grey = photograph(3, 1, 320, seed=6, source="ronda").picture[..., 1].astype(np.uint16)
    bits, photometric = 258, 262
    Image.fromarray(grey * 16).save(tmp_path / "12 bits.tif", tiffinfo={bits: 12})
    Image.fromarray(65535 - grey * 257).save(tmp_path / "white.tif", tiffinfo={photometric: 0})
    expected = expected_rows(small_export.model, tmp_path)
    assert [row["status"] for row in expected.values()] == ["ok", "ok"]
    result = program(small_export.model, *expected, cwd=tmp_path)
    for name, row in rows_of(result.stdout).items():
        for column, cell in row.items():
            if "prob" in column:
                assert float(cell) == pytest.approx(float(expected[name][column]), abs=1e-3), (name, column)


def test_colours_and_depths_that_libvips_converts_otherwise_are_refused(
    program: Program, small_export: SmallExport, tmp_path: Path
) -> None:
    if program.language != "node":
        pytest.skip("of libvips")
    eye = Image.fromarray(photograph(3, 1, 320, seed=6, source="ronda").picture)
    eye.convert("CMYK").save(tmp_path / "a cmyk.jpg")
    for mode in ("I", "F"):
        eye.convert("L").convert(mode).save(tmp_path / f"b {mode}.tif")
    eye.save(tmp_path / "c eye.tif")
    result = program(small_export.model, *sorted(path.name for path in tmp_path.iterdir()), cwd=tmp_path)
    rows = rows_of(result.stdout)
    assert [row["error"].partition(", found ")[2] for row in rows.values()] == [
        "cmyk of uchar", "b-w of float", "b-w of int", "",
    ]  # fmt: skip


def test_names_that_the_console_lacks_are_written(program: Program, small_export: SmallExport, tmp_path: Path) -> None:
    Image.fromarray(photograph(3, 1, 320, seed=6, source="ronda").picture).save(tmp_path / "ü眼.jpg")
    result = program(small_export.model, "ü眼.jpg", cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert list(rows_of(result.stdout)) == ["ü眼.jpg"], result.stderr


def test_readmes_program_answers_and_reports_nothing(small_export: SmallExport, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), flags=re.DOTALL)
    (alone,) = [block for block in blocks if "ort.InferenceSession" in block]
    (tmp_path / "artifacts").mkdir()
    shutil.copy(small_export.model, tmp_path / "artifacts/retina_multitask.onnx")
    Image.fromarray(photograph(3, 1, 320, seed=6, source="ronda").picture).save(tmp_path / "eye.jpg")
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-c", alone]
    done = subprocess.run(
        command, cwd=tmp_path, env=bare_environment(home), capture_output=True, text=True, check=False
    )
    model = RetinaModel(small_export.model, exact=True)
    said = model.predict(tmp_path / "eye.jpg")
    expected = f"DR grade {said.grade} ME {model.contract.me_labels[said.me_risk]} ["
    assert done.stdout.startswith(expected), done.stdout + done.stderr
    assert list(home.iterdir()) == []


def test_what_retina_score_refuses_has_its_row(program: Program, small_export: SmallExport, tmp_path: Path) -> None:
    if program.language != "python":
        pytest.skip("of Pillow's own limits and modes")
    eye = Image.fromarray(photograph(3, 1, 320, seed=6, source="ronda").picture)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a bomb.png")
    Image.new("1", (12_000, 9_000)).save(tmp_path / "b large.png")
    for mode in ("I", "F"):
        eye.convert("L").convert(mode).save(tmp_path / f"c {mode}.tif")
    eye.save(tmp_path / "d eye.png")
    expected = expected_rows(small_export.model, tmp_path)
    result = program(small_export.model, *expected, cwd=tmp_path)
    assert result.returncode == 1 and not result.stderr
    statuses = {name: row["status"] for name, row in rows_of(result.stdout).items()}
    assert statuses == {name: row["status"] for name, row in expected.items()}
    assert list(statuses.values()) == ["error"] * 4 + ["ok"]


@pytest.mark.slow
def test_camera_originals_as_python_decides_them(program: Program, real_data: Path, tmp_path: Path) -> None:
    """With the released model; benchmarks/embedding.py does the same with any model and shows the differences."""
    if not RELEASED.is_file():
        pytest.skip("no released model in this checkout")
    for path in sorted((real_data / "fullsize").glob("*.jpg"))[:2]:
        shutil.copy(path, tmp_path)
    expected = expected_rows(RELEASED, tmp_path)
    assert len(expected) == 2
    found = rows_of(program(RELEASED, *expected, cwd=tmp_path).stdout)
    for name, row in expected.items():
        for column, cell in row.items():
            if "prob" in column:
                assert float(found[name][column]) == pytest.approx(float(cell), abs=0.02), (name, column)
            else:
                assert found[name][column] == cell, (name, column)


def test_what_is_no_model_is_refused(program: Program, tmp_path: Path) -> None:
    none_of_ours = write_tiny_model(tmp_path / "other.onnx", contract=None)
    (tmp_path / "text.onnx").write_text("no model")
    for model in (none_of_ours, tmp_path / "text.onnx", tmp_path / "missing.onnx"):
        result = program(model, "eye.jpg")
        assert result.returncode == 2 and str(model) in result.stderr and not result.stdout, result
        assert "Traceback" not in result.stderr and "    at " not in result.stderr
    assert program().returncode == 2


@pytest.mark.parametrize("language", sorted(SOURCES))
def test_each_is_one_short_file(language: str) -> None:
    text = (EXAMPLES / SOURCES[language]).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and max(map(len, text.splitlines())) <= 120
