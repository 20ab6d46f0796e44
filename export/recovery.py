"""Recovers a checkpoint from a model file, to train further from it or to explain it with PyTorch if there is no other.

    python -m retina.export.recovery PHOTOGRAPHS --model retina_multitask.onnx --out recovered.pth

How: see ``recovered.recover``.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from ..runtime.errors import UsageError
from ..runtime.extras import require_extra
from ..runtime.folder import find_pictures
from ..runtime.model import RetinaModel
from ..runtime.options import SETTINGS, PathName
from ..runtime.output_file import require_place
from ..runtime.terminal import exit_codes, tell


@click.command(context_settings=SETTINGS)
@click.argument("photographs", type=PathName())
@click.option("--model", type=PathName(), metavar="FILE", help="[default: as for retina-score]")
@click.option("--out", required=True, type=PathName(), metavar="FILE", help="The checkpoint to write.")
def main(photographs: Path, model: Path | None, out: Path) -> None:
    """Write a checkpoint that gives the same answers as an ONNX file of retina-export, such as the one that ships.

    `retina-train --weights` trains on from it; retina-gradcam and retina-export accept it too. The batch-norm
    statistics are measured on PHOTOGRAPHS, a folder of photographs like those that training would continue with.
    """
    with exit_codes("retina.export.recovery"):
        require_extra("export")
        from .photographs import spread
        from .recovered import MEASURED_ON, recover

        opened = RetinaModel(model, exact=True)
        require_place(out, [opened.path])
        names = find_pictures(photographs).names if os.path.isdir(photographs) else []
        if not names:
            raise UsageError(f"{photographs}: expected a folder with photographs to measure batch-norm on, found none")
        chosen = [photographs / name for name in spread(names, MEASURED_ON)]
        checkpoint, apart = recover(opened, chosen)
        checkpoint.save(out)
    prep = checkpoint.contract.preprocessing
    like_it = ["--backbone", checkpoint.backbone, "--framing", prep.framing, "--image-size", str(prep.image_size)]
    # A tenth of the notebook's rates, and thresholds fitted anew, as those of the file were.
    gently = ["--lr-backbone", "1e-5", "--lr-heads", "1e-4", "--calibrate", "valid"]
    go_on = shlex.join(["retina-train", "DATA", "--weights", str(out), *like_it, *gently])
    tell(
        f"{out}: from {opened.path.name} ({opened.contract.precision}, sha256 {opened.sha256[:12]}), batch-norm from "
        f"{len(chosen)} photographs. Its probabilities are {apart:.5f} from the file's on average. "
        f"Continue with:  {go_on}"
    )


if __name__ == "__main__":
    main()
