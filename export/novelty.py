"""Teaches a finished model file to tell pictures that are unlike its training photographs.

    python -m retina.export.novelty data/train/images --model retina_multitask.onnx --out told.onnx

How: see ``novelty_output``.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..runtime.errors import UsageError
from ..runtime.extras import require_extra
from ..runtime.folder import find_pictures
from ..runtime.model import RetinaModel
from ..runtime.model_file import RELEASED
from ..runtime.options import SETTINGS, PathName
from ..runtime.terminal import exit_codes, tell, warn


@click.command(context_settings=SETTINGS)
@click.argument("photographs", type=PathName())
@click.option("--model", type=PathName(), metavar="FILE", help="[default: as for retina-score]")
@click.option("--out", required=True, type=PathName(), metavar="FILE", help="The model file to write.")
def main(photographs: Path, model: Path | None, out: Path) -> None:
    """Write an ONNX file of retina-export anew, with the output novelty: how unlike PHOTOGRAPHS a photograph is.

    PHOTOGRAPHS is a folder of those that the model was trained on, such as data/train/images: 100 or more, of which up
    to 1024 are used. The other answers stay as they are. The sha256 and contract are written beside the new file.

    retina-score --model FILE then counts unfamiliar pictures and shows them with --novelty; retina-gradcam, the service
    and its page mark them. The model that ships with this package has this output already.
    """
    with exit_codes("retina.export.novelty"):
        require_extra("export")
        from .novelty_output import AT_LEAST, add_novelty
        from .placing import require_places

        opened = RetinaModel(model)
        require_places(out, [opened.path])
        is_folder = os.path.isdir(photographs)
        names = find_pictures(photographs).names if is_folder else []
        if len(names) < AT_LEAST:
            counted = str(len(names)) if is_folder else "no folder"
            raise UsageError(f"{photographs}: expected a folder with {AT_LEAST} photographs or more, found {counted}")
        if opened.path == RELEASED:
            warn(f"{opened.path.name} ships with this package: {photographs} should be what it was trained on")
        contract, found = add_novelty(opened, [photographs / name for name in names], out)
    tell(
        f"{out}: from {opened.path.name} ({opened.contract.precision}, sha256 {opened.sha256[:12]}), with novelty "
        f"fitted to {len(found)} photographs. Theirs is {found.mean():.1f} on average and {found.max():.1f} at most; "
        f"unfamiliar is what reaches {contract.unfamiliar_from:g}."
    )


if __name__ == "__main__":
    main()
