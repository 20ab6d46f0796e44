"""A table from its inputs to its name: what ``retina-score`` does, without options and printing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from .agreement import read_truth
from .annotations import MAX_ME_GRADE, Annotation
from .destination import destination, require_room
from .errors import UsageError
from .folder import Listing, gather
from .journal import ENDING as JOURNAL
from .journal import Journal
from .model import FilePath, RetinaModel
from .scoring import depends_on, require_maps, score_rows
from .summary import Summary
from .table import TABLE_NAME, Row, Table, cells, columns
from .workers import workers_or_cores

Seen = Callable[[Row, Annotation | None, bool], None]
"""Called with each row once it is written, its annotation, and whether it comes from an earlier run."""


class Job:
    """A table to be made. All that can be known before the work is checked when it is created.

    A context manager: until the end of its block it holds the lock on the table's journal.

    Attributes:
        model: the model that scores.
        listing: the photographs.
        out: the file that the table will be; if it is a link, its target.
        journal: the rows of an earlier run.
        truth: the annotations of the photographs, or None.
        overlays: the folder that Grad-CAM maps are drawn into, or None.
        workers: photographs scored at once.
    """

    def __init__(
        self,
        model: RetinaModel,
        listing: Listing,
        out: Path,
        *,
        annotations: Path | None = None,
        me_positive_from: int | None = None,
        referral: bool = False,
        novelty: bool = False,
        overlays: Path | None = None,
        workers: int | None = None,
        resume: bool = True,
        inputs: Iterable[Path] = (),
    ) -> None:
        """Check the inputs and the places to write to, make the table's folder, and open the journal.

        Args:
            model: shared by all workers.
            listing: one photograph or more.
            out: the table.
            annotations: grades of human readers, for the two True columns and the summary.
            me_positive_from: ME grades of this value, 1 to 3, and above count as risk; None accepts 0 and 1 only.
            referral: whether the table has the referral decisions.
            novelty: whether the table says how unlike the training photographs each one is.
            overlays: a folder to draw Grad-CAM maps into.
            workers: photographs scored at once; None: the cores that this process may use.
            resume: whether rows of an earlier run are used.
            inputs: further files that must not be overwritten.

        Raises:
            UsageError: ``workers`` or ``me_positive_from`` out of range, the latter without annotations, ``novelty``
                of a model file that cannot tell, or see ``require_maps``.
            AnnotationError: see ``read_truth``.
            OutputError: see ``destination``, ``require_room`` and ``Journal``.
        """
        self.workers = workers_or_cores(workers)
        if me_positive_from is not None and not 1 <= me_positive_from <= MAX_ME_GRADE:
            raise UsageError(f"me_positive_from: expected 1 to {MAX_ME_GRADE}, found {me_positive_from}")
        if me_positive_from is not None and annotations is None:
            raise UsageError("--me-positive-from: expected --annotations CSV, whose grades it reads, found none")
        if novelty and model.contract.unfamiliar_from is None:
            raise UsageError(
                f"--novelty: expected a model file with the output novelty, found {model.path} without. Leave it out, "
                "or make such a file:  python -m retina.export.novelty PHOTOGRAPHS --model FILE --out FILE"
            )
        self.model, self.listing, self.out = model, listing, destination(out)
        self.overlays, self._referral, self._novelty = overlays, referral, novelty
        read = (model.path, annotations, *listing.lists, *inputs)
        kept = [Path(os.path.realpath(path)) for path in read if path is not None]
        require_room(self.out, len(listing.names), [*kept, *(listing.root / name for name in listing.names)])
        self.truth = None if annotations is None else read_truth(annotations, listing, me_positive_from)
        if overlays is not None:
            require_maps(model, listing, overlays)
        place = self.out.with_name(self.out.name + JOURNAL)
        self.journal = Journal(place, depends_on(model, overlays), resume=resume)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def run(self, seen: Seen = lambda *_: None) -> Summary:
        """Score the photographs and write the table, which gets its name only when it is complete. Once, in the block.

        Whatever ends the work before, an exception of ``seen`` included, leaves the journal for the next job.

        Raises:
            OutputError: the table, the journal or an overlay can no longer be written.
            ModelFileError: the model's output is not finite.
        """
        grades = self.model.contract.dr_grades
        summary = Summary(self.model.contract, listed=self._referral, novelty_listed=self._novelty)
        optional = {"referral": self._referral, "novelty": self._novelty}
        with Table(self.out, columns(grades, **optional)) as table:
            for row, known in score_rows(self.model, self.listing, self.journal, self.workers, self.overlays):
                true = self.truth.by_name.get(row.name) if self.truth else None
                table.write(cells(row, grades, true, **optional))
                summary.add(row, known=known, truth=true)
                seen(row, true, known)
        self.journal.discard()
        return summary


def score_folder(
    photographs: FilePath | Iterable[FilePath],
    out: FilePath = TABLE_NAME,
    *,
    model: RetinaModel | FilePath | None = None,
    annotations: FilePath | None = None,
    me_positive_from: int | None = None,
    referral: bool = False,
    novelty: bool = False,
    overlays: FilePath | None = None,
    workers: int | None = None,
    resume: bool = True,
) -> Summary:
    """Score photographs into a table, as ``retina-score`` does; stopped, the same call continues where it was.

    Args:
        photographs: a folder, a file, or several of them; a file may have any ending.
        out: the table to write; its folder is made.
        model: an open model, or a file; None: see ``find_model``.
        annotations: a table of human readers' grades, with which the summary compares.
        me_positive_from: ME grades of this value, 1 to 3, and above count as risk; None accepts 0 and 1 only.
        referral: whether the table also says whom to refer.
        novelty: whether it also says how unlike the model's training photographs each one is; for a model file that
            has this output.
        overlays: a folder to draw Grad-CAM maps into, if the model has them.
        workers: photographs scored at once; None: the cores that this process may use.
        resume: whether to use the rows of an earlier run.

    Returns:
        What was counted: ``scored``, ``failed``, and with annotations the confusion matrices ``dr`` and ``me``.

    Raises:
        RetinaError: nothing could be done, or not everything (see ``Job``); what was scored is kept. A photograph that
            cannot be read raises nothing: it has its row in the table.
    """
    named = [photographs] if isinstance(photographs, str | os.PathLike) else photographs
    opened = model if isinstance(model, RetinaModel) else RetinaModel(model)
    with Job(
        opened,
        gather([os.fspath(path) for path in named], lists=False),
        Path(out),
        annotations=None if annotations is None else Path(annotations),
        me_positive_from=me_positive_from,
        referral=referral,
        novelty=novelty,
        overlays=None if overlays is None else Path(overlays),
        workers=workers,
        resume=resume,
    ) as job:
        return job.run()
