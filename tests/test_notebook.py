"""The example notebook, run from the first cell to the last on drawn photographs."""

from __future__ import annotations

import asyncio
import json
import warnings
from pathlib import Path

import pytest
from retina.train.synthetic import write_dataset

NOTEBOOK = Path(__file__).parents[1] / "examples" / "retina.ipynb"
STEPS = (
    "Configuration", "Transforms", "Data set", "Imbalance", "Model", "Training",
    "Curves", "Test evaluation", "A single photograph", "Saving", "Grad-CAM", "Export",
)  # fmt: skip


def test_the_notebook_has_the_twelve_steps_and_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    titles = [line for cell in cells for line in cell["source"] if line.startswith("## ")]
    assert [title.strip() for title in titles] == [f"## {n} {step}" for n, step in enumerate(STEPS, 1)]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 12
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    write_dataset(tmp_path / "data", {"train": 12, "valid": 10, "test": 10}, size=96)
    small = {"epochs": 1, "image_size": 64, "batch_size": 6, "backbone": "resnet18", "weights": "none", "workers": 0}
    monkeypatch.setenv("RETINA_NOTEBOOK", json.dumps(small | {"seed": 1}))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's warnings about its own sockets
        asyncio.run(client.async_execute())
    artifacts = tmp_path / "artifacts"
    for name in ("retina_multitask_best.pth", "retina_multitask.onnx", "test_predictions.csv"):
        assert (artifacts / name).stat().st_size > 0
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 6  # transforms, imbalance, curves, two confusion matrices, Grad-CAM
    said = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("Evaluating the best checkpoint (epoch 1)" in text for text in said)
