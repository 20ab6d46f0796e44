"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

# All else is imported where it is needed, or the process that only hands tests to the others would load PyTorch too.
if TYPE_CHECKING:
    from retina.train.data import DataSet
    from small_export import SmallExport

# A shell script that starts the suite in the background makes it ignore Ctrl-C, and so its child processes, which some
# tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files with slow tests first, so that none of them is still running alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs that RETINA_DATA names; tests that need it are skipped without it."""
    folder = os.environ.get("RETINA_DATA", "")
    if not folder:
        pytest.skip("RETINA_DATA is not set")
    return Path(folder)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing the pictures of runs that are not examined: it takes most of a small run's time."""
    from without_pictures import replace_pictures

    replace_pictures(monkeypatch.setattr)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """What the tests of training's loop train on; files with other data have a fixture of this name."""
    from small_run import trainable

    return trainable(tmp_path_factory.mktemp("set"))


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare exports on small pictures only: a camera original takes a second each time. Shared ones keep it."""
    from retina.export import parity

    monkeypatch.setattr(parity, "SIZES", ((32, 32), (33, 57)))


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
    from small_export import SmallExport

    base = tmp_path_factory.getbasetemp()
    return SmallExport.within(made_once(base, "export", lambda folder: SmallExport.within(folder).make()))


@pytest.fixture(scope="session")
def checkpoint(small_export: SmallExport) -> Path:
    """What ``small_export`` and ``small_explained`` were made from."""
    return small_export.checkpoint


@pytest.fixture(scope="session")
def small_explained(small_export: SmallExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network exported with Grad-CAM outputs."""
    from small_export import make_explained

    base, name = tmp_path_factory.getbasetemp(), "explain.onnx"
    return made_once(base, "explained", lambda folder: make_explained(small_export.checkpoint, folder / name)) / name
