"""retina-score: options, exit codes and printing."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .memory import use_one_heap
from .model_file import RELEASED
from .options import SETTINGS, PathName, me_positive_option, model_options, open_model
from .table import TABLE_NAME, Row, record, utf8
from .terminal import PrintableLines, exit_codes, spell_out_what_is_lacking, stop_without_output, tell, warn
from .wording import counted

if TYPE_CHECKING:
    from .annotations import Annotation
    from .job import Job

_GO_ON = "; the same command goes on from here"


@click.command(context_settings=SETTINGS)
@click.argument("paths", nargs=-1, metavar="FOLDER|FILES...")
@click.option(
    "--out",
    type=PathName(),
    default=Path(TABLE_NAME),
    metavar="FILE",
    help="The table to write.",
)
@model_options
@click.option(
    "--annotations",
    type=PathName(),
    metavar="CSV",
    help="Grades given by human readers, in the columns Image name, Retinopathy grade, Risk of macular edema (NA where "
    "there is none): fills the two True columns and prints accuracy, kappa, confusion matrices and how well referral "
    "works.",
)
@me_positive_option("Count ME grades of N and above as risk, where annotations grade it 0/1/2.")
@click.option(
    "--referral",
    is_flag=True,
    help="Add the columns referable, referable_prob and referable_me: whom to refer, by the model's thresholds, which "
    "may be lower than what makes a grade or risk the most probable one.",
)
@click.option(
    "--novelty",
    is_flag=True,
    help="Add the columns novelty and unfamiliar: how unlike the photographs that the model was trained on each one is "
    "(1 is usual), and 1 if as unlike as pictures that show no retina (from 10 on in the model that ships). Needs a "
    "model made by python -m retina.export.novelty, such as that one.",
)
@click.option(
    "--overlays",
    type=PathName(),
    metavar="DIR",
    help="Also draw each answer's Grad-CAM map on the full-size photograph. Needs a model made by "
    "retina-export --explain.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Continue where a stopped run left off, or score everything again.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object per photograph on standard output, in order, and all else on standard error.",
)
@click.version_option(package_name="retina-edge")
def main(paths: tuple[str, ...], **options: Any) -> None:
    """Score retina photographs: diabetic retinopathy grade and macular edema risk.

    Writes one row per photograph, sorted by name: the grade, the risk, their probabilities, or for a file that
    cannot be read the reason. Takes folders (with their subfolders; JPEG, PNG, TIFF, BMP, WebP, JPEG 2000 and DICOM,
    recognised by their endings), files of any ending, and lists of paths: @FILE, or - for standard input.

    Any picture gets a grade, even one that shows no retina. A model that can tell, such as the one that ships, counts
    pictures that are unfamiliar to it; --novelty shows which ones.

    \b
    Examples:
      retina-score photographs/
      retina-score photographs/ --out scores.csv --annotations annotations.csv
      find /archive -name '*.dcm' -print0 | retina-score - --out scores.csv

    If it is stopped at any moment, the same command continues where it was. The table appears under its name only when
    it is complete.

    Exit code 0: all scored. 1: done, some files failed. 2: nothing could be done, or not everything; what was scored is
    kept. 130: stopped. Research and demonstration only, not for clinical use.
    """  # noqa: D301 - click's mark for a block that keeps its lines is the character itself
    if not paths:
        raise click.UsageError("name a folder or files, for example:  retina-score photographs/")
    _hush()
    use_one_heap()
    try:
        with exit_codes("retina-score", f"stopped{_GO_ON}"), _one_stop():
            failed, told = _run(paths, **options)
    except OSError as err:  # from standard output: all other OSErrors became RetinaErrors where they occurred
        stop_without_output("retina-score", err, _GO_ON)
    say = warn if options["as_json"] else tell
    for line in told:  # of the table, which is complete whether or not this has a reader
        say(line)
    sys.exit(1 if failed else 0)


def _run(
    paths: tuple[str, ...],
    out: Path,
    model: Path | None,
    artifacts: Path,
    annotations: Path | None,
    me_positive_from: int | None,
    referral: bool,
    novelty: bool,
    workers: int | None,
    provider: str,
    exact: bool,
    overlays: Path | None,
    verify: Path | None,
    resume: bool,
    as_json: bool,
) -> tuple[int, list[str]]:
    """Score and write the table; returns the number of files that failed, and the lines of the summary."""
    from .folder import gather
    from .job import Job
    from .progress import progress
    from .scoring import is_drawn

    listing = gather(paths)
    with Job(
        open_model(model, artifacts, verify, provider, exact=exact),
        listing,
        out,
        annotations=annotations,
        me_positive_from=me_positive_from,
        referral=referral,
        novelty=novelty,
        overlays=overlays,
        workers=workers,
        resume=resume,
        inputs=[] if verify is None else [verify],
    ) as job:
        _tell_start(job)
        _tell_rows(job)
        start, drawn = time.monotonic(), 0
        with progress(len(listing.names)) as advance:

            def seen(row: Row, true: Annotation | None, known: bool) -> None:
                nonlocal drawn
                drawn += overlays is not None and row.prediction is not None and is_drawn(overlays, row.name)
                if as_json:
                    click.echo(json.dumps(record(row, true)))
                advance(known=known)

            summary = job.run(seen)
    told = list(summary.lines(time.monotonic() - start))
    if overlays is not None:
        told.append(f"wrote overlays of {drawn} of {counted(len(listing.names), 'photograph')} into {overlays}")
    told.append(f"wrote {job.out}: {counted(len(listing.names), 'row')}; ignored {listing.ignored_text}")
    return summary.failed, told


@contextmanager
def _one_stop() -> Iterator[None]:
    """Obey only the first Ctrl-C: a second one would interrupt the wait for the photographs in progress, and the
    process would abort while its threads are still running.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as in a shell's background job
        yield
        return
    signal.signal(signal.SIGINT, stop)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _hush() -> None:
    """Let only our own warnings through: what is wrong with a damaged file is in its row.

    Pillow and pydicom would repeat it at length, and pydicom might quote the patient's data.
    """
    # A stream that the parent process closed leaves its descriptor free: the next file opened would get the output.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - open to the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        spell_out_what_is_lacking(stream)
    handler = logging.StreamHandler()
    handler.addFilter(logging.Filter("retina"))
    handler.setFormatter(PrintableLines("retina-score: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    warnings.filterwarnings("ignore", module=r"PIL|pydicom")


def _tell_start(job: Job) -> None:
    model = job.model
    which = "the model that ships with this package" if model.path == RELEASED else str(model.path)
    checked = "" if model.digest_known else ", no .sha256 beside it to check"
    warn(
        f"{counted(len(job.listing.names), 'photograph')}, {counted(job.workers, 'worker')}, {which} "
        f"({model.contract.precision}, sha256 {model.sha256[:12]}{checked})",
    )
    if model.contract.caution:
        warn(f"Caution: {model.contract.caution}")
    if job.truth is not None and job.truth.unmatched:
        such = f"{len(job.truth.unmatched)} (such as {utf8(job.truth.unmatched[0])!r})"
        warn(f"annotations that name no photograph scored here: {such}")


def _tell_rows(job: Job) -> None:
    from .scoring import rows_at_hand

    if job.journal.changed:
        warn(f"scoring all again: {', '.join(job.journal.changed)} changed since the last run")
        return
    known, usable = len(job.journal), rows_at_hand(job.listing, job.journal)
    if usable:
        warn(f"resuming: {counted(usable, 'row')} of an earlier run")
    if usable < known:
        warn(
            f"not used: {counted(known - usable, 'row')} of an earlier run, of other photographs or of ones that have "
            "changed. The finished table drops them; to keep them, stop now and name another --out",
        )
