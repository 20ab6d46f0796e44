"""Decoded pixels to model input, as torch modules: the only preprocessing in the project.

Training, evaluation and Grad-CAM use these modules, and the exported graph is made from them, so that they cannot drift
apart. All arithmetic is in float32 without rounding to grey levels, so that PyTorch and onnxruntime agree to 1e-4 in
probability (their uint8 resizes differ by up to 2 grey levels).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.contract import Preprocessing, Surround
from ..runtime.field import (
    ABOVE_SURROUND,
    CAPTION_CELLS,
    CELLS,
    DARKEST_LEVEL,
    FIELD_RAMP,
    LIT_FROM,
    LIT_SHARE,
    LIT_TO,
    SURROUND_AT_MOST,
)


def _resize(image: Tensor, side: int) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, side, side) float32, aspect ratio ignored; Pillow's BILINEAR without its rounding.

    Channel by channel, because a camera original takes 150 MB as float32, and each scoring worker would hold one.
    """
    channels = [
        F.interpolate(channel.unsqueeze(1).float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
        for channel in image.unbind(3)
    ]
    return torch.cat(channels, dim=1)


class SquashFrame(nn.Module):
    """The whole picture, squashed to a square as in the original notebook; kept for its checkpoints."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB -> (N, 3, size, size) float32 in [0, 255]."""
        return _resize(image, self.size)


class FieldFrame(nn.Module):
    """Finds the lit field and centres it in a square, so that photographs from different cameras look alike.

    The picture is first resized to an intermediate square. There the surround of the field is blackened (unless it is
    to be kept), the field's bounding box is read from the rows and columns, and the square around it is sampled with
    the picture's own aspect ratio, black beyond the picture. A picture without a lit field is kept whole.
    """

    def __init__(self, size: int, intermediate: int, surround: Surround = "black") -> None:
        super().__init__()
        self.size = size
        self.intermediate = intermediate
        self.surround = surround

    def forward(self, image: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 RGB -> (N, 3, size, size) float32 in [0, 255]."""
        x = _resize(image, self.intermediate)
        if self.surround == "black":
            x = x * field_mask(x)
        left, right, top, bottom = lit_box(x)
        # The box is in fractions of the picture's width and height; the square is square in the picture's pixels.
        height, width = image.shape[1], image.shape[2]
        side = torch.maximum((right - left) * width, (bottom - top) * height)
        # Not by affine_grid, which would put a constant of size x size x 3 floats into the exported file.
        centres = (torch.arange(self.size, device=x.device, dtype=x.dtype) + 0.5) * (2.0 / self.size) - 1.0
        columns = (side / width).view(-1, 1, 1) * centres + (left + right - 1.0).view(-1, 1, 1)  # (N, 1, size)
        rows = (side / height).view(-1, 1, 1) * centres.view(-1, 1) + (top + bottom - 1.0).view(-1, 1, 1)
        both = torch.broadcast_tensors(columns, rows)  # type: ignore[no-untyped-call]
        grid = torch.stack(both, dim=-1)  # (N, size, size, 2), in [-1, 1] of x
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def field_mask(x: Tensor) -> Tensor:
    """A factor for each pixel that keeps the field and blackens everything else.

    On a coarse grid, cells that are hardly brighter than the darkest one and much darker than the picture are surround,
    and so is anything too narrow to be the field. Cells between field cells, both in their row and in their column, are
    field (large haemorrhages are dark), and so is one more cell on every side, so that the field keeps its own edge.

    Args:
        x: (N, 3, M, M) float in [0, 255].

    Returns:
        (N, 1, M, M) in [0, 1]; all ones if nothing looks like a field.
    """
    brightest = x.amax(dim=1, keepdim=True)
    cells = F.interpolate(brightest, (CELLS, CELLS), mode="bilinear", antialias=True, align_corners=False)
    level = cells.square().sum(dim=(2, 3), keepdim=True) / cells.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
    level, dark = level.clamp(min=DARKEST_LEVEL), cells.amin(dim=(2, 3), keepdim=True)
    threshold = torch.minimum(dark + ABOVE_SURROUND * (level - dark), SURROUND_AT_MOST * level)
    lit = ((cells - threshold) / (FIELD_RAMP * level) + 0.5).clamp(0.0, 1.0)
    broad = _most_around(-_most_around(-lit, CAPTION_CELLS), CAPTION_CELLS)
    far = CELLS - 1  # ONNX has no cumulative maximum; max-pooling over a window as wide as the grid replaces it
    before, after = (F.max_pool2d(F.pad(broad, pad), (1, CELLS), 1) for pad in ((far, 0, 0, 0), (0, far, 0, 0)))
    above, below = (F.max_pool2d(F.pad(broad, pad), (CELLS, 1), 1) for pad in ((0, 0, far, 0), (0, 0, 0, far)))
    between = torch.minimum(torch.minimum(before, after), torch.minimum(above, below))
    mask = F.interpolate(_most_around(between, 3), x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(broad.amax(dim=(2, 3), keepdim=True) < 0.5, torch.ones_like(mask), mask)


def _most_around(grid: Tensor, width: int) -> Tensor:
    """The maximum over a square of ``width`` cells around each cell, padded with zeros beyond the edge."""
    return F.max_pool2d(F.pad(grid, [width // 2] * 4), width, 1)


def lit_box(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges of the lit field of each picture, as fractions of its width or height.

    Args:
        x: (N, 3, M, M) float in [0, 255].

    Returns:
        left, right, top, bottom, each (N,) in [0, 1]; the whole picture (0, 1, 0, 1) if nothing is lit.
    """
    lit = ((x.amax(dim=1) - LIT_FROM) / (LIT_TO - LIT_FROM)).clamp(0.0, 1.0)  # (N, M, M)
    columns, rows = lit.mean(dim=1), lit.mean(dim=2)
    left, right = _first_lit(columns), 1.0 - _first_lit(columns.flip(1))
    top, bottom = _first_lit(rows), 1.0 - _first_lit(rows.flip(1))
    found = (columns.amax(dim=1) >= LIT_SHARE) & (rows.amax(dim=1) >= LIT_SHARE)
    zero, one = torch.zeros_like(left), torch.ones_like(left)
    return (
        torch.where(found, left, zero),
        torch.where(found, right, one),
        torch.where(found, top, zero),
        torch.where(found, bottom, one),
    )


def _first_lit(profile: Tensor) -> Tensor:
    """Where the (N, M) lit shares first reach LIT_SHARE, (N,) in [0, 1], interpolated between neighbours.

    Without interpolation the edge would jump by a pixel when a rounding difference between two runtimes moves one
    across the threshold.
    """
    size = profile.shape[1]
    first = (profile >= LIT_SHARE).to(torch.int32).argmax(dim=1, keepdim=True)  # the first of equal maxima
    before = torch.where(first > 0, profile.gather(1, (first - 1).clamp(min=0)), torch.zeros_like(profile[:, :1]))
    here = profile.gather(1, first)
    back = (here - LIT_SHARE) / (here - before).clamp(min=1e-6)  # in [0, 1] pixels, back from the first lit one
    edge = (first.to(profile.dtype) + 0.5 - back) / size
    return edge.squeeze(1).clamp(0.0, 1.0)


class Normalize(nn.Module):
    """(N, 3, S, S) float in [0, 255] -> normalised per channel: ``(x / 255 - mean) / std``.

    ``mean`` and ``std`` are for pixel values in [0, 1], as in ``Preprocessing``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255.0 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def make_frame(preprocessing: Preprocessing) -> nn.Module:
    """The framing that a contract names: (N, H, W, 3) uint8 -> (N, 3, size, size) float32 in [0, 255]."""
    if preprocessing.framing == "squash":
        return SquashFrame(preprocessing.image_size)
    return FieldFrame(preprocessing.image_size, preprocessing.intermediate_size, preprocessing.surround)


def make_preprocess(preprocessing: Preprocessing) -> nn.Sequential:
    """Frame, resize and normalise: (N, H, W, 3) uint8 RGB -> (N, 3, size, size) float32, the network's input."""
    return nn.Sequential(make_frame(preprocessing), Normalize(preprocessing.mean, preprocessing.std))
