"""The contents of a gallery: ``gradcam.csv`` for programs, ``index.html`` for people."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ..runtime.annotations import IMAGE_NAME
from ..runtime.contract import HEADS
from ..runtime.output_file import write_text_atomically
from ..runtime.wording import counted, percent
from .item import GalleryItem
from .panel import NOTE, UNFAMILIAR, in_words

INDEX, ROWS = "index.html", "gradcam.csv"
"""What the files are called."""
_OF_HEAD = ("target", "target_prob", "peak", "total", "blank", "peak_x", "peak_y", "overlay")
COLUMNS = (
    IMAGE_NAME, "dr_grade", "me_risk", *(f"{head}_{name}" for head in HEADS for name in _OF_HEAD), "status", "error"
)  # fmt: skip
"""For each head, ``target`` and ``target_prob``: the class that the map explains, and its probability; ``peak`` and
``total``: the map's largest value and the sum of its cells, in logits for Grad-CAM and HiResCAM of the last layer, else
to compare with each other only; ``blank``: 1 if the map is drawn blank; ``peak_x`` and ``peak_y``: where it is largest
within the lit field, in pixels of the photograph; ``overlay``: its file."""


def write_rows(path: Path, photographs: Sequence[GalleryItem]) -> None:
    """Write a row for each photograph, with the COLUMNS; values that were not requested or do not exist stay empty.

    A photograph that was explained but could not be drawn has the status ``error``, and its answer.
    The file is UTF-8; a name that is not is written as in retina-score's table.

    Raises:
        OutputError: as ``replacing``.
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(_row(photograph) for photograph in photographs)
    write_text_atomically(path, lines.getvalue())


def _row(photograph: GalleryItem) -> dict[str, object]:
    status = "error" if photograph.undone else "ok"
    row: dict[str, object] = {IMAGE_NAME: photograph.name, "status": status, "error": photograph.error}
    if photograph.explanation is None:
        return row
    prediction = photograph.explanation.prediction
    row |= {"dr_grade": prediction.grade, "me_risk": prediction.me_risk}
    for head, head_map in photograph.explanation.maps.items():
        x, y = photograph.peaks.get(head) or ("", "")
        of_head = (
            head_map.target, f"{head_map.probability:.6f}", f"{head_map.peak:.6g}", f"{head_map.values.sum():.6g}",
            int(head_map.is_blank), x, y, photograph.overlays.get(head, ""),
        )  # fmt: skip
        row |= {f"{head}_{name}": value for name, value in zip(_OF_HEAD, of_head, strict=True)}
    return row


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #181c22; background: #f4f5f7; overflow-wrap: anywhere }
body { margin: 0 auto; max-width: 1220px; padding: 24px }
article { background: #fff; border: 1px solid #d8dce2; border-radius: 8px; margin: 20px 0; padding: 12px 16px }
h1 { font-size: 24px } h2 { font-size: 17px; margin: 4px 0 } img { width: 100%; min-width: 44rem; height: auto }
.panel { overflow-x: auto }
p { margin: 4px 0 } .error { color: #8a1c1c } .note { color: #5c6670 } a { color: #1c4ebe }
"""


def write_index(path: Path, photographs: Sequence[GalleryItem]) -> None:
    """Write a page with every panel, which any browser can open without a network.

    Raises:
        OutputError: as ``replacing``.
    """
    failed = Counter(photograph.undone for photograph in photographs if photograph.undone)
    of = counted(len(photographs), "photograph")
    counts = ", ".join([of, *(f"{count} not {undone}" for undone, count in failed.items())])
    if unfamiliar := sum(photograph.unfamiliar for photograph in photographs):
        counts += f"; {unfamiliar} of them unfamiliar"
    body = "\n".join(_article(photograph) for photograph in photographs)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Grad-CAM of {of}</title><style>{_STYLE}</style></head><body>
<h1>Where the model's answers come from</h1>
<p>{counts}. Numbers: <a href="{ROWS}">{ROWS}</a>.</p>
<p class="note">{html.escape(NOTE)}</p>
{body}
</body></html>
"""
    write_text_atomically(path, page)


def _article(photograph: GalleryItem) -> str:
    title = f"<h2>{html.escape(photograph.name)}</h2>"
    if photograph.unfamiliar:
        title += f'<p class="error">{html.escape(UNFAMILIAR)} Look at it before you use its answer.</p>'
    if photograph.explanation is None or photograph.undone:
        reason = f"Not {photograph.undone}: {html.escape(photograph.error)}"
        return f'<article>{title}<p class="error">{reason}</p></article>'
    links = " · ".join(
        f'<a href="{_link(photograph.overlays[head])}">{in_words(head, head_map.target)},'
        f" {html.escape(percent(head_map.probability))}: full size</a>"
        for head, head_map in photograph.explanation.maps.items()
    )
    picture = f'<img loading="lazy" alt="photograph and maps" src="{_link(f"{photograph.stem}_panel.jpg")}">'
    panel = f'<div class="panel">{picture}</div>'
    # With the name as text, though the panel has it: where no font of the system helps, the panel has only ASCII.
    return f"<article>{title}{panel}<p>{links}</p></article>"


def _link(name: str) -> str:
    return quote(name, errors="surrogateescape")
