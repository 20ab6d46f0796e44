"""retina-train: options, exit codes and printing."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from ..runtime.errors import UsageError
from ..runtime.extras import require_extra
from ..runtime.options import SETTINGS, Command, PathName, artifacts_option, is_given, require_alone, require_artifacts
from ..runtime.terminal import answer, exit_codes, tell
from .config import BOUNDS, TrainConfig
from .hangup import hangup

if TYPE_CHECKING:
    from .run import Run

DEFAULTS = TrainConfig(data="")
_TYPES = get_type_hints(TrainConfig)
MAY_CHANGE = ("workers", "cache")
"""Options that cannot change what is learned, so that a resumed run may have others."""


def _option(name: str, text: str, kind: Any = None, metavar: str | None = None) -> Callable[[Command], Command]:
    """An option with the default value, the choices and the bounds of its TrainConfig field."""
    field = name.replace("-", "_")
    if field in BOUNDS:
        low, high = BOUNDS[field]
        is_whole = isinstance(low, int)  # of other numbers, TrainConfig refuses nan and inf
        kind = click.IntRange(low, high) if is_whole else click.FloatRange(low, high, max_open=high is not None)  # type: ignore[arg-type]
    choices = [choice for choice in get_args(_TYPES[field]) if isinstance(choice, str)]
    default = getattr(DEFAULTS, field)
    return click.option(
        f"--{name}",
        type=click.Choice(choices) if choices else kind,
        default=default,
        metavar=metavar,
        help=text,
    )


@click.command(context_settings=SETTINGS)
@click.argument("data", required=False, type=PathName())
@_option(
    "recipe",
    "Default values for the other options: the original notebook's, or those that trained the released model: "
    "released, then each of the others with --weights FINAL.pth of that run. It is the mean of these three "
    "(docs/recipe.md).",
)
@_option("epochs", "Passes over the training photographs.")
@_option("batch-size", "Photographs per forward pass and device.")
@_option("accumulate", "Forward passes whose gradients are summed for one optimiser step.")
@_option("image-size", "Side in pixels of the square that the network sees.")
@_option("framing", "field: cut out the lit field, on black. squash: the whole picture, as the original notebook did.")
@_option("backbone", "Any ResNet of torchvision: resnet18, resnet50, resnext50_32x4d, ...", str)
@_option(
    "weights",
    "What to start from: imagenet, none, a torchvision state_dict, or the checkpoint of an earlier run.",
    str,
    "imagenet|none|FILE",
)
@_option("lr-backbone", "Learning rate of the backbone.")
@_option("lr-heads", "Learning rate of the two heads.")
@_option("dr-weight", "Weight of the DR cross-entropy in the loss.")
@_option("me-weight", "Weight of the ME cross-entropy in the loss.")
@_option("class-weights", "inverse: rare DR grades count more in the loss.")
@_option("dr-targets", "ordinal: a near miss costs less than a far one.")
@_option("optimizer", "adamw: Adam with decoupled weight decay.")
@_option("schedule", "plateau: halve the rates when the loss on valid stops falling. cosine: warm up, then fall to 0.")
@_option(
    "ema",
    "Evaluate and keep a running average of the weights; its decay per step. 0: no averaging.",
)
@_option("calibrate", "valid: calibrate the probabilities and fit screening thresholds on valid.")
@_option(
    "sensitivity", "With --calibrate valid: share of those with the condition that referral finds there, at least."
)
@_option("sampler", "weighted: draw each DR grade equally often. Meant for --class-weights none.")
@_option(
    "augment",
    "notebook: flips, rotation, colour jitter. cameras: imitate other cameras, operators and eyes.",
)
@_option(
    "unfreeze-epoch",
    "Epoch from which the frozen first layers are trained too, the whole backbone then at a tenth of its rate. "
    "(With --weights none no layer is frozen, and only the rate falls.)",
    metavar="N",
)
@_option(
    "me-positive-from",
    "Count ME grades of N and above as risk, where annotations grade it 0/1/2.",
    metavar="N",
)
@_option("seed", "Seed of weights, sampling and augmentation.")
@_option("precision", "auto: bf16 if the device computes it in hardware. Evaluation is always fp32.")
@_option("cache", "Where framed photographs are kept, so that originals are decoded only once.")
@_option(
    "workers",
    "Processes that load photographs during training, per device.  [default: 1 on a CPU, up to 16 on a GPU]",
)
@click.option("--device", default="auto", metavar="auto|cpu|cuda|mps", help="Where to train.")
@click.option("--name", metavar="RUN", help="Name of the run's folder.  [default: the date and time]")
@click.option(
    "--resume", is_flag=True, help="Continue the interrupted run --name, or the latest one, with its options."
)
@click.option(
    "--allow-leakage",
    is_flag=True,
    help="Train even if one photograph is in two splits, or twice with different labels.",
)
@click.option(
    "--track",
    type=click.Choice(["mlflow"]),
    help="Also log to MLflow, at MLFLOW_TRACKING_URI or else to mlflow.db in --artifacts.",
)
@click.option("--list", "list_only", is_flag=True, help="Show all runs side by side, and do nothing else.")
@artifacts_option("Where runs and models are kept")
@click.version_option(package_name="retina-edge")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Train on fundus photographs: one ResNet, two heads, DR grade and macular edema risk.

    DATA holds train/, valid/ and test/, each with images/ and annotations.csv (Image name, Retinopathy grade, Risk of
    macular edema; Source and Patient are used where present). To split one such folder into three by patient:  python
    -m retina.train.splitting FOLDER --out DATA

    \b
    Examples:
      retina-train data/
      retina-train data/ --weights resnet50.pth --image-size 256 --name small
      retina-train --resume
      torchrun --nproc-per-node 2 -m retina.train data/

    Writes retina_multitask_best.pth, retina_multitask_final.pth and test_predictions.csv to artifacts/, and everything
    about the run to artifacts/runs/RUN/; open report.html there. Ctrl-C saves everything at the end of the step;
    --resume continues as if nothing had happened. Next: retina-export --format onnx.

    Exit code 0: finished. 2: nothing could be done. 130: stopped; resumable if training had begun.
    """  # noqa: D301 - click's mark for a block that keeps its lines is the character itself
    # As Ctrl-C, where the training loop does not handle it: what is half written is removed.
    for number in (signal.SIGTERM, *hangup()):
        signal.signal(number, signal.default_int_handler)
    with exit_codes("retina-train", "stopped before training began. Run the same command again."):
        require_extra("train")
        finished = _run(context, **options)
    sys.exit(0 if finished else 130)


def _run(
    context: click.Context,
    data: Path | None,
    device: str,
    name: str | None,
    resume: bool,
    allow_leakage: bool,
    track: str | None,
    list_only: bool,
    artifacts: Path,
    **recipe: Any,
) -> bool:
    if list_only:
        require_alone(context, "--list", "list_only", "artifacts")
        require_artifacts(context, artifacts)
        from .runs import format_table, list_runs

        answer(format_table(list_runs(artifacts)), "retina-train")
        return True
    from .pipeline import train
    from .tracking import make_tracker

    _silence_libraries()
    if resume:
        run, config = _interrupted(context, artifacts, name, data, recipe)
        asked = run.facts().get("asked", {})
        device = device if is_given(context, "device") else asked.get("device", device)
        track = track or asked.get("track")
    else:
        run, config = _new(context, artifacts, name, data, recipe)
    tracker = make_tracker(track, artifacts)
    try:
        return train(
            config,
            run,
            device=device,
            resume=resume,
            allow_leakage=allow_leakage,
            tracker=tracker,
            say=tell,
        )
    except KeyboardInterrupt:  # a second one during an epoch, or one after the last epoch: nothing more was saved
        if run.has_finished:
            return True
        if not os.path.isfile(run.resume_file):
            raise
        _say_what_is_saved(run, config)
        return False


def _silence_libraries() -> None:
    """Libraries' notices about their own choices do not concern the user."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    for module in ("PIL", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=module)


def _new(
    context: click.Context, artifacts: Path, name: str | None, data: Path | None, recipe: dict[str, Any]
) -> tuple[Run, TrainConfig]:
    """A run that does not exist yet, and its options."""
    from .run import Run

    if data is None:
        raise UsageError("name the data folder, for example:  retina-train data/   (retina-train --help)")
    given = {key: value for key, value in recipe.items() if is_given(context, key)}
    config = TrainConfig.of_recipe(recipe["recipe"], {**given, "data": os.path.realpath(data)})
    return Run(artifacts, f"{datetime.now():%Y%m%d-%H%M%S}" if name is None else name), config


def _interrupted(
    context: click.Context, artifacts: Path, name: str | None, data: Path | None, recipe: dict[str, Any]
) -> tuple[Run, TrainConfig]:
    """The run to resume, and its options with what may be changed."""
    from .run import interrupted_run

    run = interrupted_run(artifacts, name)
    config = run.config()
    _refuse_changes(context, config, recipe)
    config = replace(config, **{key: recipe[key] for key in MAY_CHANGE if is_given(context, key)})
    if data is not None:  # it may have moved; check_same compares its fingerprint
        config = replace(config, data=os.path.realpath(data))
    return run, config


def _say_what_is_saved(run: Run, config: TrainConfig) -> None:
    from .resume import saved_progress

    place = saved_progress(run.resume_file).place(config.epochs)
    tell(f"Stopped. Saved up to {place}; what came after is done again. Continue with:  {run.resume_command}")


def _refuse_changes(context: click.Context, config: TrainConfig, recipe: dict[str, Any]) -> None:
    given = [key for key in recipe if is_given(context, key) and key not in MAY_CHANGE]
    changes = [(key, getattr(config, key), recipe[key]) for key in given if recipe[key] != getattr(config, key)]
    if changes:
        listed = "; ".join(f"{key}: expected {old} as the run began, found {new}" for key, old, new in changes)
        raise UsageError(f"--resume keeps the run's options. {listed}. Leave these out, or start a new run.")
