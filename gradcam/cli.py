"""retina-gradcam: options, exit codes and printing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..runtime.contract import HEADS, Head
from ..runtime.errors import MissingExtraError, UsageError
from ..runtime.extras import require_extra
from ..runtime.image_file import ImageFormat
from ..runtime.model_file import RELEASED
from ..runtime.options import SETTINGS, PathName, artifacts_option, asked_for_model, require_alone
from ..runtime.output_file import require_folder, write_text_atomically
from ..runtime.progress import progress
from ..runtime.terminal import exit_codes, tell, warn
from ..runtime.wording import counted
from ..train.config import BEST_NAME, HOW_TO_GET_A_CHECKPOINT
from ..train.options import bare_options

if TYPE_CHECKING:
    from .explainer import CheckpointExplainer, Explainer
    from .gallery import Scale

_OF_MAPS = ("checkpoint", "target", "layers", "method", "framing", "image_size")
"""Names of the options that say which maps of which checkpoint: those that --evaluate obeys as well."""


@click.command(context_settings=SETTINGS)
@click.argument("inputs", metavar="IMAGE|FOLDER...", nargs=-1, type=PathName())
@click.option("--head", type=click.Choice([*HEADS, "both"]), default="both", help="Which answer to explain.")
@click.option(
    "--target", type=int, metavar="GRADE", help="DR grade to explain; with --head me: 0 or 1.  [default: the answer]"
)
@click.option(
    "--layer", "layers", multiple=True, default=["layer4"], help="Layer to explain by; repeat to average several."
)
@click.option(
    "--method",
    type=click.Choice(["gradcam", "gradcam++", "hirescam"]),
    default="gradcam",
    help="How to weight the layer's channels.",
)
@click.option("--out", type=PathName(), help="Folder for the overlays.  [default: ARTIFACTS/gradcam]")
@click.option(
    "--scale", type=click.Choice(["image", "shared"]), default="image",
    help="Top of the colour scale: each map's own maximum, or the largest of all photographs of this run.",
)  # fmt: skip
@click.option(
    "--format", "image_format", type=click.Choice(get_args(ImageFormat)), default="jpeg",
    help="Format of the overlays: jpeg is quick and small; png keeps every pixel, at ten times the size.",
)  # fmt: skip
@click.option(
    "--npy",
    is_flag=True,
    help="Also write the raw maps, (h, w) float32: in logits, unless --method or --layer asks for other maps.",
)
@click.option(
    "--checkpoint", type=PathName(),
    help=f"Trained model.  [default: ARTIFACTS/{BEST_NAME}; if there is none, the file that retina-score uses]",
)  # fmt: skip
@bare_options
@click.option(
    "--model", type=PathName(),
    help="Instead of a checkpoint: an ONNX file from `retina-export --explain`; needs no torch.",
)  # fmt: skip
@click.option(
    "--evaluate", type=PathName(), metavar="LESIONS",
    help="Instead of drawing: measure how faithful the maps are on this folder of photographs with lesion masks.",
)  # fmt: skip
@artifacts_option("Where the commands write files and find them")
@click.version_option(package_name="retina-edge")
def main(
    inputs: tuple[Path, ...], head: str, artifacts: Path, out: Path | None, evaluate: Path | None, **options: Any
) -> None:
    """Show where the answers come from: Grad-CAM overlays of photographs.

    Writes to OUT, for each photograph, an overlay for each head at the photograph's full size, a panel with the answers
    in words, and a row in gradcam.csv; index.html shows all panels. From a model file that can tell, such as the one
    that ships with this package, it marks pictures as unlike its training photographs as pictures without a retina.

    \b
      retina-gradcam photographs/                    both heads, as answered
      retina-gradcam eye.jpg --head dr --target 4    what speaks for grade 4
      retina-gradcam eye.jpg --model explain.onnx    without torch
      retina-gradcam --evaluate lesions/             do maps look at lesions?

    --evaluate writes faithfulness.csv, .md and .png. LESIONS holds lesions.csv (column Image name), photographs X.jpg,
    and masks X_EX.png, X_HE.png, ...

    Exit code 0: all done. 1: done, but some files failed, or the maps do not depend on the weights. 2: nothing could be
    done. 130: stopped.
    """  # noqa: D301 - click's mark for a block that keeps its lines is the character itself
    out = out or artifacts / "gradcam"
    left = "what was drawn stays, without a new gradcam.csv and index.html" if evaluate is None else "no new tables"
    with exit_codes("retina-gradcam", f"stopped; {left}"):
        if evaluate is None:
            code = _explain(inputs, head, out, artifacts, **options)
        else:
            require_alone(click.get_current_context(), "--evaluate", "evaluate", "head", "out", "artifacts", *_OF_MAPS)
            code = _evaluate(evaluate, head, out, artifacts, **{name: options[name] for name in _OF_MAPS})
    sys.exit(code)


def _explain(
    inputs: tuple[Path, ...],
    head: str,
    out: Path,
    artifacts: Path,
    *,
    scale: Scale,
    npy: bool,
    image_format: ImageFormat,
    **source: Any,
) -> int:
    from .gallery import Gallery, list_photographs, require_apart
    from .index import INDEX

    if not inputs:
        raise UsageError("expected photographs or folders to explain, found none. See retina-gradcam --help.")
    photographs = list_photographs(inputs)
    require_apart(out, inputs)
    explainer = _open(head, artifacts, **source)
    if explainer.contract.caution:
        warn(f"Caution: {explainer.contract.caution}")
    gallery = Gallery(out, scale, npy, image_format)
    with progress(gallery.steps(photographs), "Grad-CAM") as advance:
        done = gallery.make(explainer, photographs, advance)
    failed = [photograph for photograph in done if photograph.undone]
    for photograph in failed:
        warn(f"{photograph.name}: {photograph.error}")
    unfamiliar = sum(photograph.unfamiliar for photograph in done)
    unlike = f"; {unfamiliar} of {len(done)} unfamiliar" if unfamiliar else ""
    tell(f"{counted(len(done) - len(failed), 'photograph')} drawn, {len(failed)} failed{unlike}: {out / INDEX}")
    return 1 if failed else 0


def _evaluate(lesions: Path, head: str, out: Path, artifacts: Path, **source: Any) -> int:
    require_extra("gradcam")
    from .faithfulness import measure, steps
    from .faithfulness_report import as_markdown, write_picture, write_table
    from .lesions import read_lesions

    photographs = read_lesions(lesions)
    explainer = _open_checkpoint(head, artifacts, "--evaluate", **source)
    require_folder(out, "--out")
    with progress(steps(photographs), "Faithfulness") as advance:
        found = measure(explainer, photographs, advance)
    write_table(out / "faithfulness.csv", found)
    write_text_atomically(out / "faithfulness.md", as_markdown(found) + "\n")
    write_picture(out / "faithfulness.png", found)
    tell(as_markdown(found))
    tell(f"\n{out / 'faithfulness.csv'}, faithfulness.md and faithfulness.png")
    return 0 if found.depends_on_weights else 1


def _open(head: str, artifacts: Path, *, checkpoint: Path | None, model: Path | None, **how: Any) -> Explainer:
    from .explainer import OnnxExplainer

    of_checkpoints = {
        "--checkpoint": checkpoint is not None,
        "--layer": how["layers"] != ("layer4",),
        "--method": how["method"] != "gradcam",
        "--framing": how["framing"] is not None,
        "--image-size": how["image_size"] is not None,
    }
    given = ", ".join(option for option, is_given in of_checkpoints.items() if is_given)
    if model is None:
        if given or os.path.lexists(artifacts / BEST_NAME):
            return _open_checkpoint(head, artifacts, given, checkpoint=checkpoint, **how)
        model = asked_for_model(None, artifacts)
        which = "the model that ships with this package" if model == RELEASED else str(model)
        warn(f"{artifacts / BEST_NAME}: no checkpoint there; explaining {which}")
    elif given:
        raise UsageError(
            f"{given}: expected without --model, whose file holds Grad-CAM of layer4. Explain from the checkpoint "
            "instead."
        )
    return OnnxExplainer(model, _heads(head), how["target"])


def _open_checkpoint(
    head: str, artifacts: Path, given: str, *, checkpoint: Path | None, **how: Any
) -> CheckpointExplainer:
    """Open the checkpoint that the options ``given`` need."""
    path = checkpoint or artifacts / BEST_NAME
    if checkpoint is None and not os.path.lexists(path):
        raise UsageError(
            f"{given}: expected a checkpoint at {path}, found none. {HOW_TO_GET_A_CHECKPOINT}  Then name it with "
            "--checkpoint."
        )
    try:
        require_extra("gradcam")
    except MissingExtraError as err:
        raise MissingExtraError(
            f"{path}: expected torch to read a checkpoint, found: {err}\n"
            f"Or explain an ONNX file that holds maps, as the model that ships does:  --model {RELEASED}"
        ) from None
    from .explainer import CheckpointExplainer

    explainer = CheckpointExplainer(path, _heads(head), **how)
    for line in explainer.assumed:
        warn(line)
    return explainer


def _heads(head: str) -> list[Head]:
    return [each for each in HEADS if head in (each, "both")]


if __name__ == "__main__":
    main()
