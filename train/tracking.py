"""Experiment tracking: nothing by default, MLflow on request."""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import OutputError, UsageError
from ..runtime.extras import require_extra
from ..runtime.output_file import require_place
from ..runtime.versions import own_version
from .flat import flatten
from .run import BEST

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

EXPERIMENT = "retina-edge"
REGISTERED_MODEL = "retina-multitask"
_RUN_TAG = "retina.run_folder"
_LOGGED = ("*.html", "*.png", "*.txt", "*.csv", "*.json")
"""Files of a run's folder that are logged as artefacts; the best checkpoint is logged as the registered model."""


class Tracker:
    """Logs a run somewhere besides its own folder: this one nowhere, because that folder records everything.

    Every method may raise OutputError if the tracker's store cannot be written.
    """

    kind: str | None = None
    """What ``make_tracker`` makes it from."""

    def start(self, run: str, config: Mapping[str, Any], facts: Mapping[str, Any], *, resume: bool = False) -> None:
        """Begin the run of this name, or with ``resume`` continue it; ``facts`` may be nested."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """Log an epoch: a row of ``history.csv``."""

    def stop(self, *, failed: bool = False) -> None:
        """Record that the run was interrupted, or has ``failed``; it may be resumed."""

    def finish(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Log the finished run: ``metrics`` as in ``metrics.json``; ``best.pth`` in ``folder`` is registered."""


def make_tracker(kind: str | None, artifacts: Path = Path("artifacts")) -> Tracker:
    """The tracker for ``--track``: None or ``mlflow``. Under ``torchrun`` only the first process logs.

    MLflow's store is the one that MLFLOW_TRACKING_URI names, else ``mlflow.db`` (SQLite) in ``artifacts``.

    Raises:
        MissingExtraError: the extra ``mlflow`` is not installed.
        OutputError: the store cannot be reached.
        UsageError: an unknown ``kind``.
    """
    if kind not in (None, "mlflow"):
        raise UsageError(f"--track: expected mlflow, found {kind}")
    if kind is None or os.environ.get("RANK", "0") != "0":
        return Tracker()
    require_extra("mlflow")
    return MlflowTracker(artifacts, os.environ.get("MLFLOW_TRACKING_URI"))


class MlflowTracker(Tracker):
    """Logs parameters, each epoch's figures, final figures, artefacts and the best model, registered, to MLflow.

    Uses a client of its own and changes none of MLflow's global state.
    """

    kind = "mlflow"

    def __init__(self, artifacts: Path, uri: str | None = None) -> None:
        place = Path(os.path.realpath(artifacts))
        self._runs = Path(os.path.realpath(place / "runs"))
        self._run_id = ""
        files = None
        if not uri:
            # SQLite, because MLflow no longer writes to plain folders. By default it would put artefacts in ./mlruns.
            if "?" in str(place):
                raise UsageError(f"--artifacts {artifacts}: expected a path without ?, where SQLite's options begin")
            require_place(artifacts / "mlflow.db")
            uri = f"sqlite:///{place / 'mlflow.db'}"
            files = (place / "mlflow").as_uri()
        self.uri = uri
        # MLflow reports usage to its developers by default, which a clinic's computer must not do unasked.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        with self._reaching():
            from mlflow import MlflowClient

            for chatty in ("mlflow", "alembic"):
                logging.getLogger(chatty).setLevel(logging.WARNING)
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = (
                experiment.experiment_id
                if experiment is not None
                else self._client.create_experiment(EXPERIMENT, artifact_location=files)
            )

    def start(self, run: str, config: Mapping[str, Any], facts: Mapping[str, Any], *, resume: bool = False) -> None:
        """Begin a run, or with ``resume`` continue the unfinished one of the same folder."""
        folder = str(self._runs / run)
        with self._reaching():
            before = self._unfinished(folder) if resume else None
            if before is not None:
                self._run_id = before
                self._client.update_run(before, status="RUNNING")
                return
            tags = {_RUN_TAG: folder, **{f"retina.{key}": value for key, value in _pairs(facts)}}
            if facts.get("git_commit"):
                tags["mlflow.source.git.commit"] = str(facts["git_commit"])
            self._run_id = self._client.create_run(self._experiment, run_name=run, tags=tags).info.run_id
            for key, value in _pairs(config):
                self._client.log_param(self._run_id, key, value)

    def epoch(self, row: Mapping[str, float]) -> None:
        figures = {key: value for key, value in row.items() if key != "epoch" and not math.isnan(value)}
        self._log(figures, step=int(row["epoch"]))

    def stop(self, *, failed: bool = False) -> None:
        if not self._run_id:  # interrupted before it started
            return
        with self._reaching():
            self._client.set_terminated(self._run_id, status="FAILED" if failed else "KILLED")

    def finish(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Log final figures and files, register ``best.pth`` as a new version of the model, and end the run."""
        figures: dict[str, float] = {}
        for split, evaluation in metrics["splits"].items():
            bodies = {split: evaluation["all"]}
            bodies |= {f"{split}/{_as_one_part(source)}": body for source, body in evaluation["sources"].items()}
            for name, body in bodies.items():
                figures |= dict(_figures(name, body))
        self._log(figures, step=int(metrics["epoch"]))
        with self._reaching():
            for pattern in _LOGGED:
                for file in sorted(folder.glob(pattern)):
                    self._client.log_artifact(self._run_id, str(file))
            self._register(folder / BEST)
            self._client.set_terminated(self._run_id, status="FINISHED")

    def _unfinished(self, folder: str) -> str | None:
        runs = self._client.search_runs([self._experiment], filter_string="attributes.status != 'FINISHED'")
        return next((run.info.run_id for run in runs if run.data.tags.get(_RUN_TAG) == folder), None)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        batch = [Metric(_metric_name(key), float(value), now, step) for key, value in figures.items()]
        with self._reaching():
            self._client.log_batch(self._run_id, metrics=batch)

    def _register(self, checkpoint: Path) -> None:
        """Register a model for ``mlflow.pyfunc.load_model("models:/retina-multitask/<version>")``, without pickle."""
        import mlflow.pyfunc
        import numpy as np
        from mlflow.exceptions import MlflowException
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        pixels = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
        with tempfile.TemporaryDirectory() as temporary:
            model = Path(temporary) / "model"
            mlflow.pyfunc.save_model(
                model,
                loader_module=__name__,
                data_path=str(checkpoint),
                signature=ModelSignature(inputs=pixels),
                pip_requirements=[f"retina-edge[train]=={own_version()}"],
            )
            self._client.log_artifacts(self._run_id, str(model), "model")
        try:
            self._client.get_registered_model(REGISTERED_MODEL)
        except MlflowException as err:
            if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(REGISTERED_MODEL)
        source = f"{self._client.get_run(self._run_id).info.artifact_uri}/model"
        self._client.create_model_version(REGISTERED_MODEL, source, self._run_id)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn MLflow's errors into OutputError, and silence the warnings that MLflow and its libraries give."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                yield
            except (MlflowException, SQLAlchemyError, ImportError, ValueError, OSError) as err:  # a driver, an address
                said = (str(err).strip() or type(err).__name__).splitlines()[0]
                message = (
                    f"{self.uri}: MLflow cannot write there: {said}\n"
                    "Correct MLFLOW_TRACKING_URI or repair the server, or train without --track"
                )
                # Not urlsplit, which does not see a password that has a / and refuses one that has a [.
                password = re.search(r"://[^:/@]*(:.+@)", self.uri)
                raise OutputError(message.replace(password[1], ":***@") if password else message) from None


class _Scorer:
    """The model that MLflow loads for the registered checkpoint."""

    def __init__(self, checkpoint: str) -> None:
        from .checkpoint import load_checkpoint
        from .framing import make_preprocess

        loaded = load_checkpoint(Path(checkpoint))
        self._grades = loaded.contract.dr_grades
        self._preprocess = make_preprocess(loaded.contract.preprocessing).eval()
        self._model = loaded.build_model()

    def predict(self, images: NDArray[np.uint8], params: object = None) -> pd.DataFrame:
        """(N, H, W, 3) uint8 RGB -> one row per photograph: ``dr_prob_<grade>`` and ``me_prob``, in [0, 1]."""
        import pandas as pd
        import torch

        with torch.inference_mode():
            dr, me = self._model(self._preprocess(torch.from_numpy(images)))
        table = pd.DataFrame(dr.softmax(1).numpy(), columns=[f"dr_prob_{grade}" for grade in self._grades])
        return table.assign(me_prob=me.softmax(1)[:, 1].numpy())


def _load_pyfunc(path: str) -> _Scorer:
    """The loader; MLflow requires this name: https://mlflow.org/docs/latest/python_api/mlflow.pyfunc.html."""
    return _Scorer(path)


def _figures(prefix: str, body: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for task, figures in body.items():
        for name, figure in figures.items() if isinstance(figures, Mapping) else ():
            if isinstance(figure, Mapping):
                ends = {"": "value", "_low": "low", "_high": "high"}
                yield from (
                    (f"{prefix}/{task}_{name}{end}", figure[key])
                    for end, key in ends.items()
                    if figure[key] is not None
                )


def _pairs(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in flatten(facts, "."):
        yield _metric_name(key), str(value)[:5000]  # MLflow refuses values beyond 6000


def _as_one_part(source: str) -> str:
    """A source's name without what would make it a path, because MLflow refuses names like ``a//b`` and ``a/../b``."""
    return re.sub(r"/|^\.+$", "_", source)


def _metric_name(name: str) -> str:
    """Replace what MLflow's names must not contain (all but letters, digits and ``_-. /``): sources have any name."""
    return re.sub(r"[^\w\-. /]", "_", name)
