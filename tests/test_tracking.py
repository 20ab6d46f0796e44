"""Tracking, with a real local MLflow store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from retina.runtime.contract import Contract, Preprocessing
from retina.runtime.errors import OutputError, UsageError
from retina.train.checkpoint import Checkpoint
from retina.train.framing import make_preprocess
from retina.train.metrics import evaluate, write_metrics
from retina.train.model import RetinaNet
from retina.train.predictions import Predictions
from retina.train.tracking import EXPERIMENT, REGISTERED_MODEL, Tracker, make_tracker
from small_backbone import RESNET10
from telemetry import bare_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# MLflow and SQLAlchemy warn about each other's versions.
pytestmark = pytest.mark.filterwarnings("ignore")

CONTRACT = Contract(Preprocessing(image_size=64))
ROW = {"epoch": 1, "train_loss": 1.5, "valid_score": 0.5, "valid_dr_kappa": 0.25}
FACTS = {"git_commit": "abc123", "data_fingerprint": "f" * 64, "versions": {"torch": torch.__version__}}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests of the module, because creating its tables takes seconds."""
    pytest.importorskip("mlflow")
    return tmp_path_factory.mktemp("artifacts")


def test_a_path_that_sqlite_would_cut_short_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(UsageError, match=r"--artifacts .*what\?: expected a path without \?"):
        make_tracker("mlflow", tmp_path / "what?")
    assert not (tmp_path / "what").exists()


def experiment_of(client: MlflowClient) -> str:
    """Its id."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    number: str = experiment.experiment_id
    return number


def finished_folder(folder: Path) -> dict[str, Any]:
    """A run's folder as the pipeline leaves it, with a small untrained network."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    Checkpoint(RetinaNet(5, RESNET10).state_dict(), RESNET10, CONTRACT, epoch=1).save(folder / "best.pth")
    rng = np.random.default_rng(0)
    predictions = Predictions(
        tuple(f"{i}.png" for i in range(40)),
        ("",) * 40,
        rng.integers(0, 5, 40),
        rng.integers(0, 2, 40),
        rng.dirichlet(np.ones(5), 40).astype(np.float32),
        rng.dirichlet(np.ones(2), 40).astype(np.float32),
        ("camera A (old)", "camera B", "/clinics/north/", "..") * 10,
        tuple(f"p{i // 2}" for i in range(40)),
    )
    (folder / "report.html").write_text("<p>report</p>")
    (folder / "learning_curves.png").write_bytes(b"png")
    (folder / "history.csv").write_text("epoch\n1\n")
    (folder / "resume.pth").write_bytes(b"large")
    return write_metrics(folder / "metrics.json", 1, {"test": evaluate(predictions, CONTRACT, n_bootstrap=50)})


@pytest.mark.slow
def test_a_run_is_logged_and_its_best_model_can_be_loaded_from_the_registry(artifacts: Path, tmp_path: Path) -> None:
    import mlflow

    folder = artifacts / "runs" / "first"
    tracker = make_tracker("mlflow", artifacts)
    tracker.start("first", {"epochs": 1, "backbone": RESNET10, "unfreeze_epoch": None}, FACTS)
    tracker.epoch(ROW)
    metrics = finished_folder(folder)
    tracker.finish(folder, metrics)

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{artifacts}/mlflow.db")
    (run,) = client.search_runs([experiment_of(client)])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {"epochs": "1", "backbone": RESNET10, "unfreeze_epoch": "None"}
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.data.tags["retina.versions.torch"] == torch.__version__
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train_loss")] == [1]
    accuracy = metrics["splits"]["test"]["all"]["dr"]["accuracy"]
    assert run.data.metrics["test/dr_accuracy"] == pytest.approx(accuracy["value"])
    assert run.data.metrics["test/dr_accuracy_high"] == pytest.approx(accuracy["high"])
    sensitivity = metrics["splits"]["test"]["all"]["referable_me"]["sensitivity"]["value"]
    assert run.data.metrics["test/referable_me_sensitivity"] == pytest.approx(sensitivity)
    by_source = metrics["splits"]["test"]["sources"]["camera A (old)"]["dr"]["accuracy"]["value"]
    assert run.data.metrics["test/camera A _old_/dr_accuracy"] == pytest.approx(by_source)
    assert {"test/_clinics_north_/dr_accuracy", "test/_/dr_accuracy"} <= run.data.metrics.keys()
    logged = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "learning_curves.png", "history.csv", "metrics.json", "model"} <= logged
    assert "resume.pth" not in logged
    assert not list(tmp_path.iterdir()), "nothing may land in the working folder"

    (version,) = client.search_model_versions(f"name = '{REGISTERED_MODEL}'")
    assert version.run_id == run.info.run_id
    model = mlflow.pyfunc.load_model(f"{run.info.artifact_uri}/model")
    assert version.source == f"{run.info.artifact_uri}/model"
    images = np.random.default_rng(1).integers(0, 256, (2, 80, 100, 3), dtype=np.uint8)
    table = model.predict(images)

    torch.manual_seed(0)
    network = RetinaNet(5, RESNET10).eval()
    with torch.inference_mode():
        dr, me = network(make_preprocess(CONTRACT.preprocessing)(torch.from_numpy(images)))
    np.testing.assert_allclose(table.filter(like="dr_prob").to_numpy(), dr.softmax(1), atol=1e-6)
    np.testing.assert_allclose(table["me_prob"], me.softmax(1)[:, 1], atol=1e-6)


def test_a_resumed_run_goes_on_and_a_new_run_of_the_same_name_does_not(artifacts: Path) -> None:
    import mlflow

    stopped = make_tracker("mlflow", artifacts)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{artifacts}/mlflow.db")

    def runs_named_second() -> list[MlflowRun]:
        return list(client.search_runs([experiment_of(client)], "attributes.run_name = 'second'"))

    stopped.start("second", {"epochs": 2}, FACTS)
    stopped.epoch(ROW)
    stopped.stop()
    (run,) = runs_named_second()
    assert run.info.status == "KILLED"

    resumed = make_tracker("mlflow", artifacts)
    resumed.start("second", {"epochs": 2}, FACTS, resume=True)
    resumed.epoch({**ROW, "epoch": 2, "train_loss": 1.25})
    (run,) = runs_named_second()
    assert run.info.status == "RUNNING"
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.5), (2, 1.25)]

    resumed.stop(failed=True)
    (run,) = runs_named_second()
    assert run.info.status == "FAILED"

    make_tracker("mlflow", artifacts).start("second", {"epochs": 2}, FACTS)
    assert len(runs_named_second()) == 2


def test_a_finished_run_is_not_continued_and_what_is_no_number_is_not_logged(artifacts: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{artifacts}/mlflow.db")
    first, second = make_tracker("mlflow", artifacts), make_tracker("mlflow", artifacts)
    first.start("third", {"epochs": 1}, FACTS)
    first.epoch({**ROW, "valid_me_auc": float("nan")})
    experiment = experiment_of(client)
    (run,) = client.search_runs([experiment], "attributes.run_name = 'third'")
    assert run.data.metrics.keys() == ROW.keys() - {"epoch"}
    client.set_terminated(run.info.run_id, status="FINISHED")
    second.start("third", {"epochs": 1}, FACTS, resume=True)
    assert len(client.search_runs([experiment], "attributes.run_name = 'third'")) == 2


def test_a_store_that_cannot_be_reached_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(OutputError, match=r"sqlite:////proc/nowhere/mlflow\.db: MLflow cannot write there"):
        make_tracker("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(OutputError, match=r"/proc/nowhere/mlflow\.db: cannot be written"):
        make_tracker("mlflow", Path("/proc/nowhere"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=r"loop/mlflow\.db: cannot be written"):
        make_tracker("mlflow", tmp_path / "loop")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://me:secret@here/db")
    with pytest.raises(OutputError) as caught:
        make_tracker("mlflow")
    assert "nosuch://me:***@here/db" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_tracking_by_default_nor_in_any_process_but_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert type(make_tracker(None)) is Tracker
    monkeypatch.setenv("RANK", "1")
    assert type(make_tracker("mlflow")) is Tracker
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="expected mlflow, found wandb"):
        make_tracker("wandb")


def test_mlflow_reports_nothing(artifacts: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from retina.train.tracking import make_tracker;"
        "make_tracker('mlflow', Path(sys.argv[1]));"
        "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    )
    command = [sys.executable, "-c", program, str(artifacts)]
    done = subprocess.run(command, env=bare_environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("mysql+pymysql://me:secret@here/db", "mysql+pymysql://me:***@here/db"),
        ("mysql+pymysql://me:se/cret@here/db", "mysql+pymysql://me:***@here/db"),
        ("postgresql://me:se[cret@here/db", "postgresql://me:***@here/db"),
    ],
)
def test_a_store_without_its_driver_or_with_no_address_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, address: str, shown: str
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setitem(sys.modules, "pymysql", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(OutputError) as caught:
        make_tracker("mlflow")
    assert str(caught.value).startswith(f"{shown}: MLflow cannot write there: ")
    assert "cret" not in str(caught.value)


def test_of_two_runs_of_one_name_the_one_of_the_same_folder_is_resumed(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a store. What is too long for it is cut, and a run that never began has nothing to stop."""
    import mlflow

    uri = f"sqlite:///{artifacts}/mlflow.db"
    make_tracker("mlflow", artifacts).stop()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for place in (artifacts, tmp_path):
        tracker = make_tracker("mlflow", place)
        tracker.start("fourth", {"long": "x" * 7000}, FACTS)
        tracker.stop()
    make_tracker("mlflow", artifacts).start("fourth", {}, FACTS, resume=True)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = experiment_of(client)
    runs = client.search_runs([experiment], "attributes.run_name = 'fourth'")
    states = {run.data.tags["retina.run_folder"]: run.info.status for run in runs}
    assert states == {f"{artifacts}/runs/fourth": "RUNNING", f"{tmp_path}/runs/fourth": "KILLED"}
    assert {len(run.data.params["long"]) for run in runs} == {5000}
