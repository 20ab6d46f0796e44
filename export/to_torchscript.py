"""Export to TorchScript, for programs built on libtorch. Deprecated upstream; its successor is in ``to_pt2``."""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.jit._trace import TracerWarning

from ..runtime.contract import METADATA_KEY, Contract
from .graph import DeployedModel, example_input
from .parity import Predictor, predictor_of_module


@dataclass(frozen=True)
class TorchScriptFile:
    """A traced and frozen module that ``torch.jit.load`` opens without this package."""

    module: torch.jit.ScriptModule

    @classmethod
    def of(cls, deployed: DeployedModel) -> TorchScriptFile:
        with _quiet_jit(), torch.no_grad():
            # The tracer's own check would only use the example's shape; parity.py checks many.
            traced = torch.jit.trace(deployed, (example_input(),), check_trace=False)  # type: ignore[no-untyped-call]
            return cls(torch.jit.freeze(traced))

    def write(self, path: Path, contract: Contract) -> None:
        # By way of a buffer in memory: given a path, torch aborts the process when the disk is full, and names the
        # archive's root after the temporary file.
        buffer = io.BytesIO()
        with _quiet_jit():
            torch.jit.save(self.module, buffer, _extra_files={METADATA_KEY: contract.to_json()})
        path.write_bytes(_without_source_map(buffer))

    def open(self, path: Path, contract: Contract) -> Predictor:
        with _quiet_jit():
            return predictor_of_module(torch.jit.load(str(path)), contract)  # type: ignore[no-untyped-call]


def _without_source_map(archive: io.BytesIO) -> bytes:
    """The archive without its ``.debug_pkl`` entries, which contain source paths of this machine for stack traces."""
    slim = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(slim, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return slim.getvalue()


@contextlib.contextmanager
def _quiet_jit() -> Iterator[None]:
    """Hide torch.jit's deprecation warnings, and the tracer's warnings on shape checks inside torch.nn.functional."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", category=TracerWarning, module=r"torch\.nn\.functional")
        yield
