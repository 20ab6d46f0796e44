"""Export to ``torch.export``'s file format (.pt2), the successor of TorchScript."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from ..runtime.contract import METADATA_KEY, MIN_SIDE, Contract
from .graph import DeployedModel, example_input
from .parity import Predictor, predictor_of_module


@dataclass(frozen=True)
class Pt2File:
    """An exported program that ``torch.export.load`` opens without this package."""

    program: ExportedProgram

    @classmethod
    def of(cls, deployed: DeployedModel) -> Pt2File:
        sides = {1: Dim("H", min=MIN_SIDE), 2: Dim("W", min=MIN_SIDE)}
        program = torch.export.export(deployed, (example_input(),), dynamic_shapes=({0: Dim("N", min=1), **sides},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains source paths of this machine
        return cls(program)

    def write(self, path: Path, contract: Contract) -> None:
        # By way of a buffer in memory: given a path, torch insists on the ending .pt2, which a temporary name lacks,
        # and reports a full disk as a RuntimeError.
        buffer = io.BytesIO()
        torch.export.save(self.program, buffer, extra_files={METADATA_KEY: contract.to_json()})
        path.write_bytes(buffer.getbuffer())

    def open(self, path: Path, contract: Contract) -> Predictor:
        with path.open("rb") as file:
            return predictor_of_module(torch.export.load(file).module(), contract)
