"""A folder of overlays: full-size overlays of each photograph for each head, a panel and a row, and an index of all."""

from __future__ import annotations

import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL.Image import Image

from ..runtime.contract import HEADS, Head
from ..runtime.errors import OutputError, PictureError, UsageError
from ..runtime.field import LitField
from ..runtime.folder import find_pictures, is_picture
from ..runtime.formats import NO_MEMORY
from ..runtime.image_file import ImageFormat, fault_of_picture, write_image
from ..runtime.output_file import require_folder, write_bytes_atomically
from ..runtime.overlay import overlay_path, peak_at, write_overlays
from ..runtime.picture import load
from ..runtime.second_look import needs_second_look
from ..runtime.workers import usable_cores
from .explainer import Explainer, Explanation, Pixels
from .index import INDEX, ROWS, write_index, write_rows
from .item import GalleryItem
from .panel import draw_panel

Scale = Literal["image", "shared"]
BATCH = 8
"""Photographs per forward pass; more is no faster on a CPU."""


@dataclass(frozen=True)
class Gallery:
    """Where overlays go, and how they are drawn."""

    folder: Path
    scale: Scale = "image"
    """Top of the colour scale: each map's own maximum, or for each head the largest of all photographs."""
    npy: bool = False
    """Also write each raw map beside its overlay, (h, w) float32."""
    image_format: ImageFormat = "jpeg"
    """Of the overlays."""

    def make(
        self,
        explainer: Explainer,
        photographs: Sequence[GalleryItem],
        on_step: Callable[[], object] = lambda: None,
    ) -> list[GalleryItem]:
        """Explain and draw all photographs; one that cannot be read, explained or drawn keeps its row, with the
        reason.

        Args:
            explainer: the model.
            photographs: as ``list_photographs`` returns them.
            on_step: called when a photograph is drawn; with a shared scale, for which all are explained first, also
                when it is explained. See ``steps``.

        Returns:
            the photographs in the same order, with their results.

        Raises:
            UsageError: an overlay or panel would overwrite one of the photographs.
            OutputError: the folder is not writable or the disk is full.
        """
        self._require_unread(photographs)
        require_folder(self.folder, "--out")
        on_explained = on_step if self.scale == "shared" else lambda: None
        with ThreadPoolExecutor(usable_cores()) as pool:
            answered: Iterable[GalleryItem] = self._answered(explainer, photographs, pool, on_explained)
            scale_max = None
            if self.scale == "shared":
                answered = list(answered)
                scale_max = _scale_max(answered)
            drawn = list(self._drawn(explainer, answered, scale_max, pool, on_step))
        write_rows(self.folder / ROWS, drawn)
        write_index(self.folder / INDEX, drawn)
        return drawn

    def steps(self, photographs: Sequence[GalleryItem]) -> int:
        """How often ``make`` calls ``on_step``."""
        return len(photographs) * (2 if self.scale == "shared" else 1)

    def _require_unread(self, photographs: Sequence[GalleryItem]) -> None:
        """Refuse to overwrite a photograph with an overlay or panel, whatever they are called."""
        read = {os.path.realpath(photograph.path) for photograph in photographs}
        folder = Path(os.path.realpath(self.folder))
        for base in (folder / photograph.stem for photograph in photographs):
            overlays = [overlay_path(base, head, self.image_format) for head in HEADS]
            for path in (*overlays, _panel_path(base)):
                if str(path) in read:
                    raise UsageError(f"{path}: expected a name to write to, found a photograph; give another --out")

    def _answered(
        self,
        explainer: Explainer,
        photographs: Sequence[GalleryItem],
        pool: ThreadPoolExecutor,
        on_explained: Callable[[], object],
    ) -> Iterator[GalleryItem]:
        """Forward passes in batches, while the pool decodes the next batch."""

        def start(batch: Sequence[GalleryItem]) -> list[Future[Pixels | str]]:
            return [pool.submit(_decoded, explainer, photograph.path) for photograph in batch]

        batches = [photographs[i : i + BATCH] for i in range(0, len(photographs), BATCH)]
        waiting = start(batches[0]) if batches else []
        for i, batch in enumerate(batches):
            decoded = [future.result() for future in waiting]
            waiting = start(batches[i + 1]) if i + 1 < len(batches) else []
            explanations = iter(_explained(explainer, [pixels for pixels in decoded if not isinstance(pixels, str)]))
            for photograph, pixels in zip(batch, decoded, strict=True):
                on_explained()
                explanation = pixels if isinstance(pixels, str) else next(explanations)
                if not isinstance(pixels, str) and isinstance(explanation, Explanation):
                    explanation = _looked_at_again(explainer, photograph.path, pixels, explanation)
                if isinstance(explanation, str):
                    yield replace(
                        photograph, undone="read" if isinstance(pixels, str) else "explained", error=explanation
                    )
                else:
                    yield replace(photograph, explanation=explanation)

    def _drawn(
        self,
        explainer: Explainer,
        photographs: Iterable[GalleryItem],
        scale_max: Mapping[Head, float] | None,
        pool: ThreadPoolExecutor,
        on_step: Callable[[], object],
    ) -> Iterator[GalleryItem]:
        """Draw in the pool, in order, never more than a batch ahead of the results taken."""
        pending: deque[Future[GalleryItem]] = deque()
        for photograph in photographs:
            pending.append(pool.submit(self._draw, explainer, photograph, scale_max))
            if len(pending) > BATCH:
                on_step()
                yield pending.popleft().result()
        while pending:
            on_step()
            yield pending.popleft().result()

    def _draw(
        self, explainer: Explainer, photograph: GalleryItem, scale_max: Mapping[Head, float] | None
    ) -> GalleryItem:
        explanation = photograph.explanation
        if explanation is None:
            return photograph
        try:
            picture = load(photograph.path)
            lit = LitField.find(picture, explainer.contract.preprocessing)
            peaks = {head: peak_at(head_map, lit, picture.size) for head, head_map in explanation.maps.items()}
            photograph = replace(photograph, peaks=peaks)
            return self._write(photograph, explanation, picture, lit, scale_max)
        except PictureError as err:  # removed or replaced since it was explained
            return replace(photograph, explanation=None, undone="read", error=err.reason)
        except MemoryError:
            return replace(photograph, undone="drawn", error=NO_MEMORY)
        except OutputError as err:
            if not (fault := fault_of_picture(err)):
                raise
            return replace(photograph, undone="drawn", error=f"overlays cannot be written: {fault}")

    def _write(
        self,
        photograph: GalleryItem,
        explanation: Explanation,
        picture: Image,
        lit: LitField,
        scale_max: Mapping[Head, float] | None,
    ) -> GalleryItem:
        base = self.folder / photograph.stem
        overlays = write_overlays(base, picture, lit, explanation.maps.values(), self.image_format, scale_max)
        if self.npy:
            for overlay, head_map in zip(overlays, explanation.maps.values(), strict=True):
                file = io.BytesIO()  # np.save would append .npy to the name of a temporary file
                np.save(file, head_map.values)
                write_bytes_atomically(overlay.with_suffix(".npy"), file.getbuffer())
        answers, maps, unfamiliar = explanation.prediction, explanation.maps, photograph.unfamiliar
        panel = draw_panel(picture, photograph.name, answers, maps, lit, scale_max, unfamiliar=unfamiliar)
        write_image(_panel_path(base), panel)
        written = dict(
            zip(explanation.maps, (path.relative_to(self.folder).as_posix() for path in overlays), strict=True)
        )
        return replace(photograph, overlays=written)


def list_photographs(inputs: Sequence[Path]) -> list[GalleryItem]:
    """The files given, each once, and all photographs in the folders given and their subfolders.

    Among others, one that is named like a picture need not exist: reading it reports the fault.

    Raises:
        UsageError: no input exists or one that is not named like a picture does not, a folder has no photographs or
            cannot be listed, or the overlays of two photographs would have the same name.
    """
    found: list[tuple[Path, str]] = []
    for given in inputs:
        if os.path.isdir(given):
            listing = find_pictures(given)
            if not listing.names:
                raise UsageError(f"{given}: expected photographs in the folder, found none. Give another folder.")
            found += [(given / name, name) for name in listing.names]
        elif os.path.isfile(given) or (is_picture(given.name) and any(map(os.path.exists, inputs))):
            found.append((given, given.name))
        else:
            raise UsageError(f"{given}: expected a photograph or a folder of photographs, found nothing there")
    once: dict[str, tuple[Path, str]] = {}
    for path, name in found:
        place = os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 - a link is one of its own
        once.setdefault(place, (path, name))
    found = list(once.values())
    names = Counter(name for _, name in found)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        for path, name in found:
            if name == twice and not os.path.exists(path):
                raise UsageError(f"{path}: expected a photograph, found nothing there")
        paths = " and ".join(str(path) for path, name in found if name == twice)
        raise UsageError(f"{paths}: their overlays would have the same name. Give the folder that holds both.")
    # The name without its ending, unless another photograph's overlays would begin with that too.
    stems = {name: str(Path(name).with_suffix("")) for name in names}
    used = Counter(stems.values()) + names
    return [GalleryItem(path, name, stems[name] if used[stems[name]] == 1 else name) for path, name in found]


def require_apart(out: Path, inputs: Sequence[Path]) -> None:
    """Check before any work that the overlays' folder is not among the photographs.

    Otherwise the next run would explain this run's overlays, and ``eye_dr.jpg`` could overwrite a photograph of that
    name.

    Raises:
        UsageError: ``out`` is in one of the folders given, or is the folder of a photograph given.
    """
    place = Path(os.path.realpath(out))
    for given in inputs:
        folder = Path(os.path.realpath(given if os.path.isdir(given) else given.parent))
        if place == folder or (os.path.isdir(given) and place.is_relative_to(folder)):
            raise UsageError(
                f"--out {out}: expected a folder outside {folder}, or its pictures would be taken for photographs and "
                "could replace them; give another --out"
            )


def _panel_path(base: Path) -> Path:
    return base.with_name(f"{base.name}_panel.jpg")


def _decoded(explainer: Explainer, path: Path, *, whole: bool = False) -> Pixels | str:
    """The photograph, or why it cannot be read."""
    try:
        return explainer.decode(path, whole=whole)
    except PictureError as err:
        return err.reason


def _explained(explainer: Explainer, photographs: Sequence[Pixels]) -> list[Explanation | str]:
    """An explanation for each photograph, or the reason why there is none; if a batch fails, each is tried alone."""
    if not photographs:
        return []
    try:
        return list(explainer.explain(photographs))
    except PictureError as err:
        if len(photographs) == 1:
            return [err.reason]
    return [explanation for pixels in photographs for explanation in _explained(explainer, [pixels])]


def _looked_at_again(explainer: Explainer, path: Path, pixels: Pixels, explanation: Explanation) -> Explanation | str:
    """The explanation; for a close call at reduced size, that for the photograph at full size, as in retina-score."""
    if not needs_second_look(explainer.contract, explanation.prediction, pixels):
        return explanation
    whole = _decoded(explainer, path, whole=True)
    if isinstance(whole, str):
        return whole
    return explanation if whole.shape == pixels.shape else _explained(explainer, [whole])[0]


def _scale_max(photographs: Iterable[GalleryItem]) -> dict[Head, float]:
    """The largest value of each head's maps over all photographs."""
    scale_max: dict[Head, float] = {}
    for photograph in photographs:
        for head, head_map in (photograph.explanation.maps if photograph.explanation else {}).items():
            scale_max[head] = max(scale_max.get(head, 0.0), head_map.peak)
    return scale_max
