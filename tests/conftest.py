"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import small_backbone  # noqa: F401 - adds networks to torchvision's
from click.testing import CliRunner
from eyes import FinishedRun, write_set
from filelock import FileLock
from small_export import SmallExport, make_explained
from without_pictures import replace_pictures

# A shell script that starts the suite in the background makes it ignore Ctrl-C, and so its child processes, which some
# tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs that RETINA_DATA names; tests that need it are skipped without it."""
    folder = os.environ.get("RETINA_DATA", "")
    if not folder:
        pytest.skip("RETINA_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run of ``retina-train``, for all tests that examine what a run writes."""
    from retina.train.cli import main

    root = tmp_path_factory.mktemp("run")
    data, artifacts = write_set(root / "data", train=[0, 1, 2, 3, 4] * 4, others=[0, 1, 2, 3, 4, 0]), root / "artifacts"
    shutil.copy(data / "train/images/eye_0.jpg", data / "test/images/eye_3.jpg")
    options = [
        "--epochs",
        "3",
        "--image-size",
        "64",
        "--batch-size",
        "8",
        "--backbone",
        "resnet10",
        "--lr-backbone",
        "1e-3",
    ]
    options += ["--weights", "none", "--workers", "0", "--allow-leakage", "--name", "a", "--artifacts", str(artifacts)]
    result = CliRunner().invoke(main, [str(data), *options])
    assert result.exit_code == 0, result.output
    leak = "same bytes: train/eye_0.jpg and test/eye_3.jpg; DR grade 0 and 3, ME risk 0 and 1"
    return FinishedRun(data, artifacts, artifacts / "runs" / "a", result.output, leak)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing the pictures of runs that are not examined: it takes most of a small run's time."""
    replace_pictures(monkeypatch.setattr)


def made_once(base: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A folder for all processes of the suite, filled by the one that needs it first; ``base`` is this process's."""
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            making = folder.with_name(f"{name} in the making")
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder


@pytest.fixture(scope="session")
def small_export(tmp_path_factory: pytest.TempPathFactory) -> SmallExport:
    """A small model as ``retina-export --conformance`` writes it."""
    base = tmp_path_factory.getbasetemp()
    return SmallExport.within(made_once(base, "export", lambda folder: SmallExport.within(folder).make()))


@pytest.fixture(scope="session")
def small_explained(small_export: SmallExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network exported with Grad-CAM outputs."""
    base, name = tmp_path_factory.getbasetemp(), "explain.onnx"
    return made_once(base, "explained", lambda folder: make_explained(small_export.checkpoint, folder / name)) / name
