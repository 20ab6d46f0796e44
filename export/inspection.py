"""Shows what a model file promises and consists of, as text and as JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.contract import METADATA_KEY, Contract
from ..runtime.digest import check_digest, sha256_of
from ..runtime.errors import ModelFileError
from ..runtime.model import RetinaModel

_MAX_CONTRACT = 1 << 24
"""Largest accepted contract in bytes; a few thousand are usual."""


@dataclass(frozen=True)
class Inspection:
    """The facts about a model file."""

    path: Path
    format: str
    """``onnx``, ``torchscript`` or ``pt2``."""
    size: int
    """In bytes."""
    sha256: str
    digest_known: bool
    """Whether FILE.sha256 exists beside the file (it then matches, or the file would have been refused)."""
    contract: Contract
    opset: int | None
    """None if the file is not ONNX, or the onnx package is not installed."""
    operators: dict[str, int]
    """How often each ONNX operator is used, the most frequent first; empty where ``opset`` is None."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "contract": self.contract.to_dict()}

    def lines(self) -> list[str]:
        """The facts as lines to print."""
        contract = self.contract.to_dict()
        prep, parity, provenance = contract["preprocessing"], contract["parity"], contract["provenance"]
        rules = [f"{task}: {_pairs(rule)}" for task, rule in contract["thresholds"].items()]
        if self.contract.unfamiliar_from is not None:
            rules.append(f"unfamiliar: novelty at_least {self.contract.unfamiliar_from:g}")
        lines = [
            f"{self.path}: {self.format}, {self.size / 1e6:.1f} MB, sha256 {self.sha256}"
            + (" (as written beside it)" if self.digest_known else " (no .sha256 beside it to compare with)"),
            f"precision  {contract['precision']}",
            f"input      {_tensor(contract['input'])}, RGB, decoded pixels, sides of at least "
            f"{contract['input']['min_side']}",
            *(f"output     {_tensor(output)}" for output in contract["outputs"]),
            f"framing    {prep['framing']}, surround {prep['surround']}, {prep['image_size']} px, inside the file",
            f"DR grades  {contract['dr_grades']}; ME labels {contract['me_labels']}",
            *(f"rule       {name}" for name in rules),
            *(f"made from  {key}: {_brief(value)}" for key, value in provenance.items()),
            *(f"parity     {key}: {_brief(value)}" for key, value in parity.items()),
        ]
        if self.opset is not None:
            lines.append(f"opset      {self.opset}; {_pairs(self.operators)}")
        elif self.format == "onnx":
            lines.append("opset      unknown without onnx (pip install onnx)")
        return lines


def inspect_file(path: Path) -> Inspection:
    """Inspect an ONNX, TorchScript or .pt2 file made by retina-export, without running code from it.

    Raises:
        ModelFileError: not such a file, or changed since it was exported.
    """
    if os.path.isfile(path) and zipfile.is_zipfile(path):
        digest = sha256_of(path)
        known = check_digest(path, digest)
        kind, contract = _zip_contract(path)
        return Inspection(path, kind, path.stat().st_size, digest, known, contract, None, {})
    opened = RetinaModel(path)
    opset, operators = _graph_facts(path) if importlib.util.find_spec("onnx") else (None, {})
    size = path.stat().st_size
    return Inspection(path, "onnx", size, opened.sha256, opened.digest_known, opened.contract, opset, operators)


def _graph_facts(path: Path) -> tuple[int, dict[str, int]]:
    import onnx

    model = onnx.load(path)
    operators = dict(Counter(node.op_type for node in model.graph.node).most_common())
    return next(entry.version for entry in model.opset_import if entry.domain == ""), operators


def _zip_contract(path: Path) -> tuple[str, Contract]:
    """The format and the contract of a TorchScript or .pt2 file, which are zip archives with the contract in a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            entry = next((name for name in names if name.rsplit("/", 1)[-1] == METADATA_KEY), None)
            if entry is None:
                raise ModelFileError(
                    f"{path}: expected the extra file {METADATA_KEY} of retina-export, found {', '.join(names[:3])} "
                    f"... To make a model file from a checkpoint:  retina-export {path}"
                )
            size = archive.getinfo(entry).file_size
            if size > _MAX_CONTRACT:
                raise ModelFileError(f"{path}: expected a contract of at most {_MAX_CONTRACT} bytes, found {size}")
            text = archive.read(entry).decode()
    except ModelFileError:
        raise
    except Exception as err:  # noqa: BLE001 - zipfile passes on exceptions of the file and of each decompressor
        found = str(err) or type(err).__name__
        raise ModelFileError(f"{path}: expected a whole file, found damage: {found}. Export it again.") from None
    kind = "torchscript" if any("/code/" in name for name in names) else "pt2"
    return kind, Contract.from_json(text, source=str(path))


def _tensor(entry: dict[str, Any]) -> str:
    return f"{entry['name']} {entry['dtype']} ({', '.join(map(str, entry['shape']))})"


def _pairs(mapping: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping.items())


def _brief(value: Any, limit: int = 100) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else text[:limit] + "..."
