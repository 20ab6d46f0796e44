"""An export from a checkpoint to a file, which gets its name only after it passed the parity check."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ..runtime.contract import Contract, Framing, Precision
from ..runtime.digest import sha256_of
from ..runtime.errors import UsageError
from ..runtime.model import RetinaModel
from ..runtime.model_file import MODEL_NAME
from ..runtime.output_file import remove_leftovers, require_folder, require_free
from ..runtime.progress import progress
from ..runtime.versions import own_version
from ..train.checkpoint import Checkpoint, assumption, load_checkpoint
from .conformance import write_kit
from .graph import DeployedModel
from .int8 import Int8, to_int8
from .parity import FP32, INT8, Parity, Predictor, Reference, check_parity
from .photographs import choose_photographs
from .placing import replacing_model, require_places, write_beside
from .signature import require_key, sign
from .to_onnx import OnnxFile
from .to_pt2 import Pt2File
from .to_torchscript import TorchScriptFile

Format = Literal["onnx", "torchscript", "pt2"]
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}


class ModelFile(Protocol):
    """A model in one format, ready to be written."""

    def write(self, path: Path, contract: Contract) -> None:
        """Write the model with its contract in it."""

    def open(self, path: Path, contract: Contract) -> Predictor:
        """Open the written file as its users do."""


@dataclass(frozen=True)
class ExportJob:
    """The options of one export. Paths may be given as text.

    Raises:
        UsageError: options that contradict each other.
    """

    checkpoint: Path
    out: Path
    format: Format = "onnx"
    precision: Precision = "fp32"
    explain: bool = False
    check: Path | None = None
    """Photographs to compare on; None: see ``choose_photographs``."""
    calibration: Path | None = None
    """Data folder for int8: calibrated on train/, evaluated on valid/."""
    me_positive_from: int | None = None
    """ME grades of this value and above are risk in ``calibration``; None: as the checkpoint was trained."""
    force: bool = False
    """Keep an int8 file that fails its accuracy gate, marked in the contract."""
    sign: Path | None = None
    """Private key (PEM, elliptic curve) to sign the file with."""
    conformance: Path | None = None
    """Folder for a conformance kit of the file; None: no kit."""
    bare_framing: Framing | None = None
    bare_image_size: int | None = None
    """Preprocessing of a bare state_dict, which does not record it; None: the notebook's. See ``load_checkpoint``."""

    def __post_init__(self) -> None:
        for name in ("checkpoint", "out", "check", "calibration", "sign", "conformance"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path))
        ending = self.out.suffix.lower()
        if ending in {*ENDINGS.values(), ".pth"} and ending != ENDINGS[self.format]:
            raise UsageError(f"--out {self.out}: expected the ending {ENDINGS[self.format]} of --format {self.format}")
        if self.precision == "int8" and self.format != "onnx":
            raise UsageError(f"--precision int8: expected --format onnx, found {self.format}")
        if self.precision == "int8" and self.calibration is None:
            raise UsageError("--precision int8: expected --calibration DATA, the data folder given to retina-train")
        if self.me_positive_from is not None and self.calibration is None:
            raise UsageError("--me-positive-from: expected --calibration DATA, whose ME grades it reads, found none")
        if self.calibration is not None and self.precision != "int8":
            raise UsageError(f"--calibration {self.calibration}: expected --precision int8, found {self.precision}")
        if self.force and self.precision != "int8":
            raise UsageError(f"--force: expected --precision int8, found {self.precision}")
        if self.conformance is not None and self.format != "onnx":
            raise UsageError(f"--conformance: expected --format onnx, found {self.format}")


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    path: Path
    sha256: str
    contract: Contract
    parity: Parity
    int8: Int8 | None
    """How it was quantised, and what the accuracy gate found; None for fp32."""
    assumed: Sequence[str] = ()
    """What was assumed of a bare state_dict, as lines to print."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    def to_dict(self) -> dict[str, Any]:
        contract = self.contract.to_dict()
        return {"path": str(self.path), "sha256": self.sha256, "bytes": self.size, "contract": contract}


def default_out(artifacts: Path, format: Format, precision: Precision) -> Path:
    """The default file of an export.

    The fp32 ONNX file is ``retina_multitask.onnx``, which retina-score looks for; the others have names of their own.
    """
    middle = "" if precision == "fp32" else f".{precision}"
    return artifacts / f"{Path(MODEL_NAME).stem}{middle}{ENDINGS[format]}"


def run_export(job: ExportJob) -> Exported:
    """Export, compare with PyTorch, and only then give the file its name; write its sha256 and contract beside it.

    Raises:
        ModelFileError: the checkpoint cannot be read or is not ours.
        ParityError: the file's answers differ from PyTorch's, or int8 loses too much accuracy.
        OutputError: a file cannot be written.
        MissingExtraError: the package for signing is not installed.
        PictureError, UsageError, AnnotationError: the signing key, the framing or image size for a bare state_dict, or
            the photographs to compare or calibrate on, cannot be used.
    """
    read = [path for path in (job.checkpoint, job.sign, job.check) if path is not None]
    require_places(job.out, read)
    if job.conformance is not None:
        require_folder(job.conformance, "--conformance")
    remove_leftovers(job.out.parent)
    if job.sign is not None:
        require_key(job.sign)
    if job.calibration is not None and not os.path.isdir(job.calibration):
        raise UsageError(f"--calibration {job.calibration}: expected the data folder given to retina-train, found none")
    checkpoint = load_checkpoint(job.checkpoint, framing=job.bare_framing, image_size=job.bare_image_size)
    contract = replace(
        checkpoint.contract,
        explain=job.explain,
        precision=job.precision,
        unfamiliar_from=None,
        provenance=provenance(job.checkpoint, checkpoint),
    )
    size = sum(tensor.nbytes for tensor in checkpoint.weights.values()) // (4 if job.precision == "int8" else 1)
    require_free(job.out.absolute().parent, size, "room for the file", "; make room, or name another --out")
    model = checkpoint.build_model()
    photographs = choose_photographs(job.check, checkpoint)
    file, int8 = _convert(job, checkpoint, DeployedModel(model, contract), contract)
    if int8 is not None:
        contract = replace(contract, thresholds=dict(int8.thresholds))
    bounds = FP32 if job.precision == "fp32" else INT8
    with replacing_model(job.out) as temporary:
        file.write(temporary, contract)
        parity = check_parity(
            file.open(temporary, contract), Reference(model, contract), photographs, bounds, photographs.source
        )
        contract = replace(contract, parity=parity.to_dict() | ({} if int8 is None else {"int8": int8.to_dict()}))
        file.write(temporary, contract)
    digest = write_beside(job.out, contract)
    if job.sign is not None:
        sign(job.out, job.sign)
    if job.conformance is not None:
        write_kit(RetinaModel(job.out), job.conformance)
    assumed = assumption(job.checkpoint, checkpoint, job.bare_framing, job.bare_image_size)
    return Exported(job.out, digest, contract, parity, int8, assumed)


def provenance(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file was made from, without paths of this machine or anything that changes between equal exports."""
    return {
        **checkpoint.contract.provenance,
        "checkpoint_sha256": sha256_of(path),
        "backbone": checkpoint.backbone,
        "epoch": checkpoint.epoch,
        "package_version": own_version(),
        "metrics": _finite(checkpoint.metrics),
    }


def _convert(
    job: ExportJob, checkpoint: Checkpoint, deployed: DeployedModel, contract: Contract
) -> tuple[ModelFile, Int8 | None]:
    file: ModelFile
    with progress(1, "Converting") as advance:
        if job.format == "torchscript":
            file = TorchScriptFile.of(deployed)
        elif job.format == "pt2":
            file = Pt2File.of(deployed)
        else:
            file = OnnxFile.of(deployed, contract)
        advance()
    if job.calibration is None or not isinstance(file, OnnxFile):
        return file, None
    me_positive_from = job.me_positive_from or checkpoint.config.get("me_positive_from")
    int8 = to_int8(file.model, contract, job.calibration, me_positive_from, force=job.force)
    return OnnxFile(int8.model), int8


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
