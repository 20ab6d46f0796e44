"""Perceptual hashes, by which near-identical photographs are recognised."""

from __future__ import annotations

from collections.abc import Iterable

import imagehash
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..runtime.contract import Preprocessing
from .framing import make_frame

PHASH_SIDE = 16
"""Side of a perceptual hash: 256 bits. imagehash's default of 64 bits hardly sees more than the lit disc, which all
fundus photographs have in common."""
FRAMED = Preprocessing(image_size=384)
"""How a photograph is framed to be hashed, whatever a run trains on, so that the same pairs are near in each run."""

Bits = NDArray[np.float32]


@torch.inference_mode()
def views(pixels: NDArray[np.uint8]) -> tuple[Image.Image, Image.Image]:
    """The two pictures of a photograph (H, W, 3) that are hashed: its framed field, and its whole.

    A copy with another surround has the same field. In a shrunk or recompressed one the field's edge may be found some
    pixels away, which changes the framed picture but not the whole one.
    """
    framed = make_frame(FRAMED)(torch.from_numpy(pixels).unsqueeze(0))[0].round().to(torch.uint8)
    return Image.fromarray(framed.permute(1, 2, 0).numpy()), Image.fromarray(pixels)


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """Of both ``views`` of a photograph (H, W, 3), one after the other in hexadecimal, 16 x 16 bits each."""
    return "".join(str(imagehash.phash(view, PHASH_SIDE)) for view in views(pixels))


def bits(hashes: Iterable[str]) -> Bits:
    """The ``perceptual_hash`` of n photographs as (n, 2, 256) float32, each bit -1 or 1."""
    packed = np.frombuffer(b"".join(map(bytes.fromhex, hashes)), dtype=np.uint8)
    return (np.unpackbits(packed).astype(np.float32) * 2 - 1).reshape(-1, 2, PHASH_SIDE**2)


def distances(left: Bits, right: Bits) -> Bits:
    """In how many bits each of n photographs differs from each of m, view by view: (2, n, m) float32.

    Args:
        left: (n, 2, 256), -1 or 1.
        right: (m, 2, 256), -1 or 1.
    """
    # Bits are -1 or 1, so a dot product counts agreements minus disagreements.
    agreement: Bits = left.transpose(1, 0, 2) @ right.transpose(1, 2, 0)
    agreement -= PHASH_SIDE**2
    agreement /= -2
    return agreement
