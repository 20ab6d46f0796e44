"""One run's folder: the names of its files, what they say, and the lock on it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import ModelFileError, OutputError, UsageError
from ..runtime.file_state import lock
from ..runtime.output_file import remove_leftovers, require_folder, write_text_atomically
from .config import TrainConfig

CONFIG, FACTS = "config.json", "run.json"
"""A run's options, and what it began with: its data, its machine."""
HISTORY, METRICS, CURVES = "history.csv", "metrics.json", "learning_curves.png"
"""The figures of each epoch, and those of the best one, by split."""
BEST, FINAL, RESUME = "best.pth", "final.pth", "resume.pth"
"""The checkpoints of the best epoch and of the last, and the state to resume from, which is removed last."""
_TYPES: dict[str, type] = {
    "devices": int,
    "data_fingerprint": str,
    "train_order": str,
    "precision": str,
    "dr_grades": list,
    "untrained_heads": list,
    "asked": dict,
}
"""Of the facts that a resumed run goes on with, in JSON; runs of earlier versions lack some."""


@dataclass(frozen=True)
class Run:
    """One run's folder under ``artifacts/runs``.

    Raises:
        UsageError: the name is not that of one folder.
    """

    artifacts: Path
    name: str

    def __init__(self, artifacts: str | os.PathLike[str], name: str) -> None:
        if not name.strip(" .") or {*"/\\"} & {*name} or len(os.fsencode(name)) > 255:
            raise UsageError(
                f"--name {name}: expected the name of one folder, found none, a path, or more than 255 bytes"
            )
        object.__setattr__(self, "artifacts", Path(artifacts))
        object.__setattr__(self, "name", name)

    @property
    def folder(self) -> Path:
        return self.artifacts / "runs" / self.name

    @property
    def resume_file(self) -> Path:
        return self.folder / RESUME

    @property
    def config_file(self) -> Path:
        return self.folder / CONFIG

    @property
    def facts_file(self) -> Path:
        return self.folder / FACTS

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds more than options and facts, which a run that was refused at once leaves behind."""
        written = {file.name for file in self.folder.iterdir() if not file.name.startswith(".")}
        return bool(written - {CONFIG, FACTS})

    @property
    def has_finished(self) -> bool:
        """Whether everything was written: the state to resume from is removed last."""
        return os.path.isfile(self.folder / METRICS) and not os.path.exists(self.resume_file)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the folder for this process, because two that write one run would mix their weights and figures.

        Raises:
            OutputError: another process has locked it, or the folder cannot be written.
        """
        require_folder(self.artifacts, "--artifacts")  # before hours of training instead of after them
        file = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            opened = file.open("w")
        except OSError as err:
            raise OutputError(f"{self.folder}: cannot be written: {err.strerror}. Give another --name.") from None
        with opened:
            lock(
                opened.fileno(),
                f"{self.folder}: another retina-train is writing this run; wait for it, or give another --name",
                alone=True,
            )
            remove_leftovers(self.folder)
            remove_leftovers(self.artifacts)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # remove the folder if the run has left nothing in it
                    if set(self.folder.iterdir()) == {file}:
                        file.unlink()
                        self.folder.rmdir()
                        self.folder.parent.rmdir()

    @property
    def resume_command(self) -> str:
        """The command that continues this run."""
        is_default = self.artifacts == Path("artifacts") and "RETINA_ARTIFACTS" not in os.environ
        where = [] if is_default else ["--artifacts", str(self.artifacts)]
        each = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "retina.train"]
        command = each if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ["retina-train"]
        return shlex.join([*command, "--resume", "--name", self.name, *where])

    def config(self) -> TrainConfig:
        """The options that the run began with.

        Raises:
            ModelFileError: the file is damaged.
        """
        try:
            return TrainConfig.from_dict(json.loads(self.config_file.read_text()))
        except (OSError, ValueError, TypeError, AttributeError, UsageError) as err:
            raise ModelFileError(
                f"{self.config_file}: expected the options of a run, found damage: {err}. Start a new run."
            ) from None

    def facts(self) -> dict[str, Any]:
        """What ``run_facts`` recorded when the run began.

        Raises:
            ModelFileError: the file is damaged.
        """
        try:
            facts = dict(json.loads(self.facts_file.read_text()))
            if missing := {"devices", "data_fingerprint"} - facts.keys():
                raise ValueError(f"no {' and no '.join(sorted(missing))}")
            for name, kind in _TYPES.items():
                if not isinstance(facts.get(name, kind()), kind):
                    raise ValueError(f"{name} is {facts[name]!r}")
            if not all(isinstance(grade, int) for grade in facts.get("dr_grades", ())):
                raise ValueError(f"dr_grades is {facts['dr_grades']!r}")
        except (OSError, ValueError, TypeError) as err:
            raise ModelFileError(
                f"{self.facts_file}: expected the facts of a run, found damage: {err}. Start a new run."
            ) from None
        return facts

    def require_best(self, epoch: int) -> None:
        """Check that the checkpoint of the best ``epoch`` so far is there, without which the run cannot finish.

        Raises:
            ModelFileError: it is not.
        """
        best = self.folder / BEST
        if epoch and not os.path.isfile(best):  # 0: before the first
            raise ModelFileError(
                f"{best}: expected the best checkpoint so far, of epoch {epoch}, found none. Put it back, or start a "
                "new run."
            )

    def write(self, name: str, text: str) -> None:
        """Write a text file in the folder; raises OutputError if it cannot be written."""
        write_text_atomically(self.folder / name, text)


def interrupted_run(artifacts: Path, name: str | None) -> Run:
    """The run of this name, or else the one that was interrupted last.

    Raises:
        UsageError: there is none, or it has finished.
    """
    if name is not None:
        run = Run(artifacts, name)
        if run.has_finished:
            raise UsageError(
                f"{run.folder}: expected an interrupted run, found one that has finished. To train on from its end, "
                f"start a new run with  --weights {run.folder / FINAL}"
            )
        for file in (run.resume_file, run.config_file, run.facts_file):
            if not os.path.isfile(file):
                raise UsageError(f"{run.folder}: expected an interrupted run, found no {file.name} there")
        return run
    files = sorted(artifacts.glob(f"runs/*/{RESUME}"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UsageError(f"{artifacts / 'runs'}: expected an interrupted run, found none. Start one: retina-train DATA")
    return Run(artifacts, files[-1].parent.name)
