"""One summary picture per photograph: the original beside its maps, the answers in words, and the colour scale."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.contract import HEADS, Decision, Head
from ..runtime.field import LitField
from ..runtime.overlay import HeadMap, colours, draw
from ..runtime.wording import percent

TILE = 560
"""Longest side of each picture in pixels."""
_GAP, _HEADER, _CAPTION, _FOOTER = 20, 62, 66, 92
_INK, _GREY, _RED, _PAPER = (24, 28, 34), (96, 104, 112), (138, 28, 28), (255, 255, 255)
_RETINA = (150, 72, 34)
"""RGB of an average retina, under the colour scale, so that it looks as on the photograph."""
GRADE_NAMES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
"""Names of the grades 0 to 4 of the International Clinical Diabetic Retinopathy scale (Wilkinson et al., 2003)."""
_SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "msyh.ttc", "arial.ttf")
"""Looked for, in this order, for a name that is not ASCII: of such letters Pillow's own font has none."""
UNFAMILIAR = "Unfamiliar: as unlike the model's training photographs as pictures without a retina."
NOTE = "For research and demonstration, not for clinical use. A map shows what moved the model, not where lesions are."


def in_words(head: Head, value: int) -> str:
    """An answer in words: "DR grade 2 (moderate)" or "macular edema: risk"."""
    if head == "me":
        return "macular edema: risk" if value else "macular edema: no risk"
    return f"DR grade {value}" + (f" ({GRADE_NAMES[value]})" if 0 <= value < len(GRADE_NAMES) else "")


def draw_panel(
    photograph: Image.Image,
    name: str,
    decision: Decision,
    maps: Mapping[Head, HeadMap],
    field: LitField,
    scale_max: Mapping[Head, float] | None = None,
    *,
    unfamiliar: bool = False,
) -> Image.Image:
    """The original and its maps side by side, cropped to the part that the network sees, as an RGB image.

    Args:
        photograph: RGB.
        name: for the header; long names are shortened.
        decision: the model's answers.
        maps: one for each head that was explained.
        field: of this photograph.
        scale_max: for each head, the value at the top of the scale, if it is shared between photographs; None:
            each map's own maximum.
        unfamiliar: whether to say so beside the answers.
    """
    seen = (
        max(0, round(field.left * photograph.width)), max(0, round(field.top * photograph.height)),
        min(photograph.width, round(field.right * photograph.width)),
        min(photograph.height, round(field.bottom * photograph.height)),
    )  # fmt: skip
    factor = TILE / max(seen[2] - seen[0], seen[3] - seen[1])
    size = (max(1, round((seen[2] - seen[0]) * factor)), max(1, round((seen[3] - seen[1]) * factor)))
    # By an integer factor first, which is quick, then smoothly.
    whole = max(1, int(1 / factor))
    tile = photograph.reduce(whole, seen).resize(size, Image.Resampling.BICUBIC)
    tile_field = _cut(field, seen, photograph.size)
    shown = [head for head in HEADS if head in maps]
    width = _GAP + (1 + len(shown)) * (TILE + _GAP)
    panel = Image.new("RGB", (width, _HEADER + TILE + _CAPTION + _FOOTER), _PAPER)
    pen = ImageDraw.Draw(panel)
    _write(pen, (_GAP, 10), _shortened(name, width - 2 * _GAP), 22, _INK, bold=True)
    answers = f"Model: {in_words('dr', decision.grade)}, {in_words('me', decision.me_risk)}"
    _write(pen, (_GAP, 37), answers, 17, _GREY)
    if unfamiliar:
        _write(pen, (_GAP + round(pen.textlength(answers, _font(answers, 17))) + 16, 37), UNFAMILIAR, 17, _RED)
    for column, head in enumerate([None, *shown]):
        x, y = _GAP + column * (TILE + _GAP), _HEADER
        picture = tile if head is None else draw(tile, maps[head], tile_field, scale_max[head] if scale_max else None)
        panel.paste((0, 0, 0), (x, y, x + TILE, y + TILE))
        panel.paste(picture, (x + (TILE - size[0]) // 2, y + (TILE - size[1]) // 2))
        if head is None:
            _write(pen, (x, y + TILE + 8), "Photograph, as the model frames it", 19, _INK, bold=True)
        else:
            _caption(panel, (x, y + TILE + 8), maps[head], scale_max[head] if scale_max else None)
    _write(pen, (_GAP, panel.height - 24), NOTE, 14, _GREY)
    return panel


def _caption(panel: Image.Image, at: tuple[int, int], head_map: HeadMap, top: float | None) -> None:
    pen = ImageDraw.Draw(panel)
    x, y = at
    _write(pen, (x, y), f"Speaks for {in_words(head_map.head, head_map.target)}", 19, _INK, bold=True)
    _write(pen, (x, y + 25), f"probability {percent(head_map.probability)}", 17, _GREY)
    if head_map.is_blank:
        _write(pen, (x, y + 58), "Blank map: no region speaks for this answer.", 17, _INK)
        return
    table = colours().astype(np.float32)
    opacity = table[:, 3:] / 255
    row = (table[:, :3] * opacity + np.array(_RETINA) * (1 - opacity)).round().astype(np.uint8)
    bar = Image.fromarray(row[None]).resize((TILE, 18), Image.Resampling.NEAREST)
    panel.paste(bar, (x, y + 58))
    pen.rectangle((x, y + 58, x + TILE - 1, y + 75), outline=_GREY)
    pen.line((x + TILE // 2, y + 58, x + TILE // 2, y + 75), fill=(255, 255, 255), width=2)
    _write(pen, (x, y + 80), "nothing", 15, _GREY)
    _write(pen, (x + TILE // 2, y + 80), "half: white line", 15, _GREY, anchor="ma")
    of, unit = "of all" if top else "here", " logits" if head_map.sums_to_logit else ""
    _write(pen, (x + TILE, y + 80), f"most {of}: {top or head_map.peak:.2g}{unit}", 15, _GREY, anchor="ra")


def _cut(field: LitField, box: tuple[int, int, int, int], size: tuple[int, int]) -> LitField:
    """The field as fractions of a crop (``box``, in pixels) of its photograph of this ``size``."""
    left, top, right, bottom = box
    across, down = (right - left) / size[0], (bottom - top) / size[1]
    x, y = left / size[0], top / size[1]
    rows, columns = field.lit.shape
    area = (x * columns, y * rows, (x + across) * columns, (y + down) * rows)
    lit = np.asarray(Image.fromarray(field.lit).resize((columns, rows), Image.Resampling.BILINEAR, area))
    return LitField(
        (field.left - x) / across, (field.top - y) / down, (field.right - x) / across, (field.bottom - y) / down, lit
    )


def _shortened(name: str, room: int) -> str:
    """The name, without its middle where it is wider than ``room`` pixels in the header's letters."""
    font, short = _font(name, 22), name
    for kept in range(len(name) // 2, 0, -1):
        if font.getlength(short) <= room:
            break
        short = f"{name[:kept]} ... {name[-kept:]}"
    return short


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    fill: tuple[int, int, int],
    *,
    bold: bool = False,
    anchor: str = "la",
) -> None:
    pen.text(at, text, fill=fill, font=_font(text, size), anchor=anchor, stroke_width=0.4 if bold else 0)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same on every machine, unless it lacks letters of the text and this machine has others."""
    for name in () if text.isascii() else _SYSTEM_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
