"""retina-export: options, exit codes and printing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..runtime.contract import Framing, Precision
from ..runtime.extras import require_extra
from ..runtime.file_state import stamp
from ..runtime.model import RetinaModel
from ..runtime.model_file import INT8_NAME, MODEL_NAME
from ..runtime.options import SETTINGS, PathName, artifacts_option, me_positive_option, require_alone
from ..runtime.output_file import require_place
from ..runtime.signature import signature_path
from ..runtime.terminal import answer, exit_codes, warn
from ..train.options import bare_options

if TYPE_CHECKING:
    from .job import Exported, Format


@click.command(context_settings=SETTINGS)
@click.argument("checkpoint", required=False, type=PathName(), metavar="[CHECKPOINT]")
@click.option(
    "--format",
    type=click.Choice(["onnx", "torchscript", "pt2"]),
    default="onnx",
    help="onnx for retina-score and any onnxruntime; torchscript for libtorch; pt2 for torch.export, its successor.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    help="int8 (ONNX only): a quarter of the size, and faster. Tries six ways to quantise and keeps the fastest that "
    "is as accurate on valid as fp32 and close to it, else the closest that is as accurate. If none is, it writes "
    "nothing.",
)
@click.option(
    "--calibration",
    type=PathName(),
    metavar="DATA",
    help="For int8: the data folder given to retina-train. Calibrates on train/, evaluates on valid/, and fits the "
    "referral thresholds of a calibrated checkpoint to int8's own answers there.",
)
@me_positive_option(
    "For --calibration: count ME grades of N and above as risk.  [default: as the checkpoint was trained]"
)
@click.option("--explain", is_flag=True, help="Add Grad-CAM outputs: dr_cam and me_cam, and a map of every class.")
@click.option(
    "--check",
    type=PathName(),
    metavar="IMAGES",
    help="Photographs on which to compare with PyTorch.  "
    "[default: 32 of the run's validation split, else synthetic ones]",
)
@click.option(
    "--out",
    type=PathName(),
    metavar="FILE",
    help="The file to write.  [default: in --artifacts, retina_multitask.onnx, which retina-score looks for; for int8 "
    "retina_multitask.int8.onnx, which it uses if the former is missing; for other formats .pt or .pt2]",
)
@click.option("--force", is_flag=True, help="Keep an int8 file that fails its accuracy gate, marked in the contract.")
@click.option(
    "--sign",
    type=PathName(),
    metavar="KEY",
    help="Sign with an elliptic-curve private key (PEM) into FILE.sig; retina-score --verify checks it. With "
    "--inspect, signs that file.",
)
@click.option(
    "--conformance",
    type=PathName(),
    metavar="DIR",
    help="Write a conformance kit (ONNX only): raw pixels and the expected answers; with --inspect, for that file.",
)
@bare_options
@artifacts_option("Where retina-train wrote its checkpoint and exports are written")
@click.option(
    "--inspect",
    type=PathName(),
    metavar="FILE",
    help="Print a model file's contract, and export nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.version_option(package_name="retina-edge")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Export a checkpoint to one self-contained file: decoded pixels in, probabilities out.

    CHECKPOINT is one of retina-train, or a state_dict of the original notebook; by default
    artifacts/retina_multitask_best.pth. Framing, resizing and normalising are inside the file. It is compared with
    PyTorch on photographs, alone, in batches and at sizes from 32 px to a camera original, and gets its name only if
    it gives the same answers; its sha256 and contract are written beside it.

    \b
    Examples:
      retina-export
      retina-export best.pth --explain --check photographs/ --out eye.onnx
      retina-export --precision int8 --calibration data/
      retina-export --inspect artifacts/retina_multitask.onnx
      retina-export --conformance kit/    # to prove an embedding right

    Exit code 0: exported. 2: refused, with the reason. 130: stopped. Research and demonstration only, not for
    clinical use.
    """  # noqa: D301 - click's mark for a block that keeps its lines is the character itself
    with exit_codes("retina-export"):
        _run(context, **options)


def _run(
    context: click.Context,
    checkpoint: Path | None,
    format: Format,
    precision: Precision,
    calibration: Path | None,
    me_positive_from: int | None,
    explain: bool,
    check: Path | None,
    out: Path | None,
    force: bool,
    sign: Path | None,
    conformance: Path | None,
    framing: Framing | None,
    image_size: int | None,
    artifacts: Path,
    inspect: Path | None,
    as_json: bool,
) -> None:
    if inspect is not None:
        require_alone(context, "--inspect", "inspect", "sign", "conformance", "as_json", "artifacts")
        answer(_inspected(inspect, sign, conformance, as_json=as_json), "retina-export")
        return
    # Stopped by a service manager too, it removes what is half written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    require_extra("export")
    from ..train.config import BEST_NAME
    from .job import ExportJob, default_out, run_export

    job = ExportJob(
        checkpoint=checkpoint or artifacts / BEST_NAME,
        out=out or default_out(artifacts, format, precision),
        format=format,
        precision=precision,
        explain=explain,
        check=check,
        calibration=calibration,
        me_positive_from=me_positive_from,
        force=force,
        sign=sign,
        conformance=conformance,
        bare_framing=framing,
        bare_image_size=image_size,
    )
    what = f"{format}, {precision}{', explain' if explain else ''}"
    warn(f"{job.checkpoint} to {job.out} ({what}): exporting, then comparing with PyTorch")
    before = stamp(job.out)
    try:
        exported = run_export(job)
    except KeyboardInterrupt:
        told = (
            "nothing was written" if stamp(job.out) == before else f"{job.out} is whole, what stands beside it is not"
        )
        raise KeyboardInterrupt(f"; {told}") from None
    text = json.dumps(exported.to_dict(), indent=1) if as_json else "\n".join(_lines(exported, conformance))
    answer(text, "retina-export")


def _inspected(file: Path, key: Path | None, kit: Path | None, *, as_json: bool) -> str:
    from .inspection import inspect_file

    if key is not None:
        from .signature import require_key, sign

        require_key(key)
        require_place(signature_path(file), [key])
    inspection = inspect_file(file)
    if kit is not None:
        from .conformance import write_kit

        write_kit(RetinaModel(file), kit)
    lines = inspection.lines()
    if key is not None:
        lines.append(f"signed: {sign(file, key)}")
    return json.dumps(inspection.to_dict(), indent=1) if as_json else "\n".join(lines)


def _lines(exported: Exported, kit: Path | None) -> list[str]:
    parity = exported.parity
    cam = [] if parity.worst_cam is None else [f"  Grad-CAM within {parity.worst_cam:.1e} of autograd, relatively"]
    return [
        *exported.assumed,
        *([f"Caution: {exported.contract.caution}"] if exported.contract.caution else []),
        f"compared with PyTorch on {parity.pictures} pictures ({parity.photographs} from: {parity.source})",
        f"  largest difference {parity.worst:.1e} in {parity.worst_output} of {parity.worst_image}",
        f"  equal decisions {parity.equal_decisions:.1%}; in a batch as alone within {parity.batch_against_alone:.1e}",
        *cam,
        *([] if exported.int8 is None else exported.int8.lines()),
        f"wrote {exported.path}, {exported.size / 1e6:.1f} MB, sha256 {exported.sha256[:12]}...",
        "beside it .sha256 and .contract.json",
        *([] if kit is None else [f"conformance kit: {kit}"]),
        *_unseen(exported.path),
    ]


def _unseen(written: Path) -> list[str]:
    first = written.with_name(MODEL_NAME)
    if written.name != INT8_NAME or not os.path.isfile(first):
        return []
    return [f"retina-score takes {first} beside it unless told otherwise: --model {written}"]
