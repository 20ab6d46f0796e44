"""Averages the weights of several checkpoints whose training started from the same one, and calibrates the mean.

    python -m retina.train.averaging DATA A.pth B.pth C.pth --out best.pth

The mean is that of ``soup.average``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ..runtime.extras import require_extra
from ..runtime.options import SETTINGS, PathName
from ..runtime.output_file import require_place
from ..runtime.terminal import exit_codes, tell
from .markdown import main_figures


@click.command(context_settings=SETTINGS)
@click.argument("data", type=PathName())
@click.argument("checkpoints", nargs=-1, required=True, type=PathName(), metavar="CHECKPOINT...")
@click.option("--out", required=True, type=PathName(), metavar="FILE", help="The checkpoint to write.")
def main(data: Path, checkpoints: tuple[Path, ...], out: Path) -> None:
    """Average CHECKPOINTs of retina-train that started from the same one, and calibrate the mean on DATA's valid split.

    DATA is the data that they were trained on. A checkpoint given twice counts twice. The mean has the --image-size and
    the --sensitivity of the first one. It is an ordinary checkpoint, for retina-export and retina-gradcam.
    """
    with exit_codes("retina.train.averaging"):
        require_extra("train")
        from .calibration import calibrated, calibration_line, calibration_notes
        from .checkpoint import load_checkpoint
        from .data import read_dataset
        from .soup import average, evaluate_checkpoint, items_of, predict_logits, require_same_data

        require_place(out, checkpoints)
        loaded = {path: load_checkpoint(path) for path in checkpoints}
        mean = average([(str(path), loaded[path]) for path in checkpoints])
        read = read_dataset(data, mean.config.get("me_positive_from"), known_grades=mean.contract.dr_grades)
        require_same_data(read, mean)
        for note in calibration_notes(read, mean.contract):
            tell(note)
        items = items_of(mean, read, "valid")
        mean = calibrated(mean, items, *predict_logits(mean, items))
        figures = evaluate_checkpoint(mean, items)
        replace(mean, metrics={"splits": {"valid": figures}}).save(out)
    tell(
        f"{out}: {mean.contract.provenance['run']}. Calibrated on valid: {calibration_line(mean.contract)}. There: "
        f"{main_figures(figures)}."
    )


if __name__ == "__main__":
    main()
