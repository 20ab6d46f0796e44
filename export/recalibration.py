"""Calibrates a finished model file anew, to its own answers on other photographs.

    python -m retina.export.recalibration DATA --model retina_multitask.onnx --out calibrated.onnx

How: see ``recalibrated.recalibrate``.
"""

from __future__ import annotations

from math import isnan
from pathlib import Path

import click

from ..runtime.annotations import ANNOTATIONS_FILE, fault_report
from ..runtime.contract import HEADS, Head
from ..runtime.errors import AnnotationError, UsageError
from ..runtime.extras import require_extra
from ..runtime.model import RetinaModel
from ..runtime.options import SETTINGS, PathName, me_positive_option
from ..runtime.terminal import exit_codes, tell
from ..train.config import BOUNDS

_LEAST, _BELOW = BOUNDS["sensitivity"]


@click.command(context_settings=SETTINGS)
@click.argument("data", type=PathName())
@click.option("--model", type=PathName(), metavar="FILE", help="[default: as for retina-score]")
@click.option("--out", required=True, type=PathName(), metavar="FILE", help="The model file to write.")
@click.option(
    "--head",
    "asked",
    type=click.Choice(HEADS),
    multiple=True,
    default=HEADS,
    help="The head to calibrate; may be given twice.",
)
@click.option(
    "--sensitivity",
    type=click.FloatRange(_LEAST, _BELOW, max_open=True),
    help="Share of those with the condition that referral finds there, at least.  [default: the file's own, or 0.9]",
)
@me_positive_option("As for retina-train.")
def main(
    data: Path,
    model: Path | None,
    out: Path,
    asked: tuple[Head, ...],
    sensitivity: float | None,
    me_positive_from: int | None,
) -> None:
    """Write an ONNX file of retina-export anew, calibrated on DATA's valid split, which it was not trained on.

    DATA is laid out as for retina-train; train and test may be absent. The temperatures, biases and referral thresholds
    of the file are replaced by those that fit its own answers there. Its sha256 and contract are written beside it.
    """
    with exit_codes("retina.export.recalibration"):
        require_extra("export")
        from ..train.calibration import (
            calibration_faults,
            calibration_line,
            calibration_notes,
            heads_to_calibrate,
            without_scaling,
        )
        from ..train.data import read_dataset, unknown_grades
        from ..train.markdown import main_figures
        from .placing import require_places
        from .recalibrated import recalibrate

        if sensitivity is not None and isnan(sensitivity):
            raise UsageError(f"--sensitivity: expected a number from {_LEAST} to below {_BELOW}, found nan")
        opened = RetinaModel(model)
        contract = opened.contract
        require_places(out, [opened.path, data / "valid" / ANNOTATIONS_FILE])
        read = read_dataset(data, me_positive_from, splits=("valid",), known_grades=contract.dr_grades)
        valid = read.splits["valid"]
        if unknown := unknown_grades(valid.photos, contract.dr_grades):
            raise UsageError(f"{data}: expected the model's grades {list(contract.dr_grades)}, found {unknown} too")
        heads = heads_to_calibrate(read, contract, asked)
        if not heads:
            why = without_scaling(contract, asked)
            raise AnnotationError(f"{valid.annotations}: expected labels to calibrate on, found none{why}")
        if faults := calibration_faults(read, contract, asked):
            raise AnnotationError(fault_report(data, faults))
        for note in calibration_notes(read, contract, asked):
            tell(note)
        contract, figures = recalibrate(opened, valid.photos, heads, out, sensitivity)
    tell(
        f"{out}: from {opened.path.name} ({contract.precision}, sha256 {opened.sha256[:12]}). Calibrated on valid: "
        f"{calibration_line(contract, heads, asked)}. There: {main_figures(figures)}."
    )


if __name__ == "__main__":
    main()
