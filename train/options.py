"""Options of every command that opens a checkpoint, for checkpoints that do not record how they were trained."""

from __future__ import annotations

from typing import get_args

import click

from ..runtime.contract import MAX_IMAGE_SIZE, MIN_SIDE, Framing
from ..runtime.options import together
from .config import BARE_FRAMING, BARE_IMAGE_SIZE

bare_options = together(
    click.option(
        "--framing",
        type=click.Choice(get_args(Framing)),
        help="For a bare state_dict, which does not record how it was trained: how pictures were framed.  "
        f"[default: {BARE_FRAMING}]",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(MIN_SIDE, MAX_IMAGE_SIZE),
        metavar="PIXELS",
        help=f"Likewise: the side of the square that it was trained on.  [default: {BARE_IMAGE_SIZE}]",
    ),
)
