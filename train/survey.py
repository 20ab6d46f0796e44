"""Reads, decodes and checks a data set before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric

from ..runtime.annotations import fault_report
from ..runtime.contract import Contract, Head, Preprocessing
from ..runtime.errors import AnnotationError
from .calibration import calibration_faults, calibration_notes
from .config import TrainConfig
from .console import Console
from .data import SPLITS, DataSet, fingerprint, scan_dataset
from .frames import DecodedFrames, Frames, Look, PixelType, look_through
from .labels import grade_faults, label_faults, label_notes, untrained_heads
from .leakage import Leak, find_copies, find_leaks, unnamed_patients


@dataclass(frozen=True)
class Survey:
    """A data set that has been read, decoded and checked."""

    data: DataSet
    frames: dict[str, Frames]
    fingerprint: str
    """See ``data.fingerprint``."""
    train_order: str
    """sha256, in hexadecimal, of the training photographs in the order of their names, which epochs draw from."""
    leaks: list[Leak]
    """All between two splits; a survey with copies in two exists only if they were allowed."""


def survey_data(
    config: TrainConfig,
    preprocessing: Preprocessing,
    cache_folder: Path,
    allow_leakage: bool,
    console: Console,
    fabric: Fabric,
    untrained: Collection[Head],
    known_grades: Collection[int] = (),
) -> Survey:
    """Read annotations, decode every photograph once, and look for leakage.

    Args:
        config: the run's options.
        preprocessing: how photographs are framed.
        cache_folder: where framed photographs are kept.
        allow_leakage: accept copies of one photograph in two splits.
        console: of the run.
        fabric: of the run; its first device fills the cache.
        untrained: heads that had seen no label before the run.
        known_grades: DR grades of the checkpoint that the run started from, none if they are not known.

    Raises:
        AnnotationError: annotations or photographs have faults, calibration lacks photographs, or copies of one
            photograph are in two splits, or in one with different labels; all faults are listed.
        OutputError: the cache folder cannot be written or lacks space.
        UsageError: as ``scan_dataset``.
    """
    data, faults = scan_dataset(Path(config.data), config.me_positive_from, known_grades=known_grades)
    faults += grade_faults(data)
    frames, looks = _read_photographs(data, config, preprocessing, cache_folder, console, fabric)
    for name in SPLITS:
        photos = data.splits[name].photos
        where = data.splits[name].annotations
        faults += [
            f"{where}, line {p.line}: {look.fault}" for p, look in zip(photos, looks[name], strict=True) if look.fault
        ]
    if not faults:
        faults += label_faults(data, config)
    calibrates = config.calibrate == "valid"
    contract = Contract(provenance={"untrained_heads": untrained_heads(data, config, untrained)})
    if calibrates:
        faults += calibration_faults(data, contract)
    leaks = find_leaks(data, looks)
    copies = [leak for leak in leaks if leak.kind == "same bytes"]
    twice = find_copies(data, looks)
    if not allow_leakage:
        faults += [f"{leak} (keep it in one split, or train anyway with --allow-leakage)" for leak in copies]
        faults += [f"{copy} (keep one, or train anyway with --allow-leakage)" for copy in twice if copy.conflict]
    if faults:
        raise AnnotationError(fault_report(data.root, faults, "nothing was trained. Fix and run again"))

    counts = ", ".join(f"{name} {len(data.splits[name].photos)}" for name in SPLITS)
    console.say(f"Photographs: {counts}. DR grades {list(data.dr_grades) or 'none'}.")
    for note in [*label_notes(data, config), *(calibration_notes(data, contract) if calibrates else [])]:
        console.say(note)
    if note := unnamed_patients(data):
        console.say(f"Note: {note}")
    for leak in leaks + twice:
        console.say(f"Warning: {leak}")
    digests = {name: [look.sha256 for look in looks[name]] for name in SPLITS}
    order = hashlib.sha256("\n".join(digests["train"]).encode()).hexdigest()
    return Survey(data, frames, fingerprint(data, digests), order, leaks)


def _read_photographs(
    data: DataSet,
    config: TrainConfig,
    preprocessing: Preprocessing,
    cache_folder: Path,
    console: Console,
    fabric: Fabric,
) -> tuple[dict[str, Frames], dict[str, list[Look]]]:
    """Each split's photographs, framed, and what reading them found."""
    frames: dict[str, Frames] = {}
    looks: dict[str, list[Look]] = {}
    total = sum(len(split.photos) for split in data.splits.values())
    with console.progress(total, "Reading photographs") as advance:
        for name in SPLITS:
            paths, cache = data.splits[name].paths, "off" if name == "test" else config.cache
            dtype: PixelType = "uint8" if name == "train" else "float32"
            read = partial(look_through, paths, preprocessing, dtype, cache, cache_folder, advance)
            if cache == "off":  # the first device tells the others what it found
                frames[name] = DecodedFrames(paths, preprocessing)
                looks[name] = fabric.broadcast(read()[1] if fabric.is_global_zero else [])
            else:  # the first device fills the cache, and the others map what it wrote
                with fabric.rank_zero_first(local=True):
                    frames[name], looks[name] = read()
    return frames, looks
