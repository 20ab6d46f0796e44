"""What a clinic installs: the wheel has every module, and works without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
FLOORS = ("runtime", "train", "export", "gradcam")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)])
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def clinic(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with only the base installation."""
    folder = tmp_path_factory.mktemp("clinic")
    venv.create(folder)
    pip(folder, "install", "-q", str(wheel))
    return folder


def pip(environment: Path, *arguments: str) -> str:
    """Run this environment's pip on another one; returns what it prints."""
    return run([sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), *arguments]).stdout


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done


def test_wheel_holds_every_tracked_module(wheel: Path) -> None:
    tracked = run(["git", "ls-files", *FLOORS], cwd=ROOT).stdout.split()
    assert len(tracked) > 20
    page = run(["git", "ls-files", "examples/browser"], cwd=ROOT).stdout.split()
    tracked += [f"browser/{Path(name).name}" for name in page if name.endswith((".html", ".css", ".js", ".svg"))]
    assert "browser/index.html" in tracked
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("retina/") for name in archive.namelist() if name.startswith("retina/")}
        others = {name.split("/")[0] for name in archive.namelist() if not name.startswith("retina/")}
    assert packed == set(tracked)
    assert all(name.endswith(".dist-info") for name in others)


@pytest.mark.slow
def test_base_install_scores_without_torch(clinic: Path, tmp_path: Path) -> None:
    installed = pip(clinic, "list", "--format", "freeze").lower()
    assert "onnxruntime" in installed
    assert not [name for name in ("torch", "pandas", "opencv", "matplotlib") if name in installed]

    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save(folder / "a.png")
    write_tiny_model(tmp_path / "tiny.onnx")
    run([str(clinic / "bin/retina-score"), str(folder), "--model", str(tmp_path / "tiny.onnx")], cwd=tmp_path)
    lines = (tmp_path / "test_predictions.csv").read_text().splitlines()
    assert lines[0].startswith("Image name,Pred DR grade (orig),True DR grade (orig),Pred ME risk,True ME risk,")
    assert lines[1].startswith("a.png,")
    assert lines[1].endswith(",ok,")


@pytest.mark.slow
def test_base_install_scores_with_the_model_that_ships(clinic: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save(tmp_path / "a.png")
    score = [str(clinic / "bin/retina-score"), "a.png"]
    done = run(score, cwd=tmp_path)
    assert "the model that ships with this package (int8" in done.stderr
    assert (tmp_path / "test_predictions.csv").read_text().splitlines()[1].endswith(",ok,")
    (released,) = clinic.glob("lib/python3*/site-packages/retina/runtime/released.onnx")
    whole = released.read_bytes()
    try:
        released.write_bytes(whole[:20_000_000] + bytes(16) + whole[20_000_016:])
        damaged = subprocess.run(score, capture_output=True, text=True, check=False, cwd=tmp_path)
    finally:
        released.write_bytes(whole)
    assert damaged.returncode == 2 and "released.onnx: expected sha256" in damaged.stderr


@pytest.mark.slow
def test_base_install_is_small(clinic: Path) -> None:
    size = sum(f.lstat().st_size for f in clinic.glob("lib/python3*/site-packages/**/*") if f.is_file())
    assert size <= 240e6


@pytest.mark.slow
def test_base_install_says_which_extra_is_missing(clinic: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "eye.png")
    python = str(clinic / "bin/python")
    for command, extra, arguments in (
        ([python, "-m", "retina.train.averaging"], "train", ["x", "y", "--out", "z"]),
        ([python, "-m", "retina.export.recovery"], "export", ["x", "--out", "z"]),
        ([python, "-m", "retina.export.recalibration"], "export", ["x", "--out", "z"]),
        ([str(clinic / "bin/retina-train")], "train", ["x"]),
        ([str(clinic / "bin/retina-export")], "export", ["x"]),
        ([str(clinic / "bin/retina-gradcam")], "gradcam", ["eye.png", "--checkpoint", "x"]),
    ):
        assert "Usage:" in run([*command, "--help"]).stdout
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert f"pip install 'retina-edge[{extra}]'" in done.stderr
        assert "Traceback" not in done.stderr
    # The last of the commands can continue without the extra, says how, and does so where there is no checkpoint.
    model = done.stderr.split("--model ")[1].strip()
    for choice in (["--model", model], []):
        run([str(clinic / "bin/retina-gradcam"), "eye.png", *choice], cwd=tmp_path)
        (tmp_path / "artifacts/gradcam/eye_dr.jpg").unlink()


@pytest.mark.slow
def test_folders_are_no_top_level_modules(clinic: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for floor in FLOORS:
        done = subprocess.run(
            [str(clinic / "bin/python"), "-c", f"import {floor}"],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
        )  # fmt: skip
        assert "ModuleNotFoundError" in done.stderr, floor
