"""TorchScript: for programs built on libtorch. Deprecated upstream; ``to_pt2`` is what follows it."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.jit._trace import TracerWarning

from ..runtime.contract import METADATA_KEY, Contract
from .graph import DeployedModel, example_input
from .parity import Answer, answer_of_module


@dataclass(frozen=True)
class TorchScriptFile:
    """A traced and frozen module that ``torch.jit.load`` opens without this package."""

    module: torch.jit.ScriptModule

    @classmethod
    def of(cls, deployed: DeployedModel) -> TorchScriptFile:
        with _quiet_jit(), torch.no_grad():
            # The tracer's own re-check would use the example's shape only: parity.py checks many.
            traced = torch.jit.trace(deployed, (example_input(),), check_trace=False)  # type: ignore[no-untyped-call]
            return cls(torch.jit.freeze(traced))

    def write(self, path: Path, contract: Contract) -> None:
        with _quiet_jit():
            torch.jit.save(self.module, str(path), _extra_files={METADATA_KEY: contract.to_json()})
        _drop_source_map(path)

    def open(self, path: Path, contract: Contract) -> Answer:
        with _quiet_jit():
            return answer_of_module(torch.jit.load(str(path)), contract)  # type: ignore[no-untyped-call]


def _drop_source_map(path: Path) -> None:
    """Remove the ``.debug_pkl`` entries: line numbers for stack traces, with the source paths of this machine."""
    slim = path.with_name(path.name + ".slim")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(slim, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    slim.replace(path)


@contextlib.contextmanager
def _quiet_jit() -> Iterator[None]:
    """Hide that torch.jit is deprecated, and the tracer's remarks on shape checks inside torch.nn.functional."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", category=TracerWarning, module=r"torch\.nn\.functional")
        yield
