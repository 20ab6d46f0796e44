"""Augmentation that imitates other cameras, operators and eyes, for training that has to generalise.

Each change is applied with its own probability and a strength drawn from its range, both from torch's global generator.
The ranges were chosen by eye so that a photograph stays gradable. Colours are changed in [0, 1] and multiplicatively,
so that the black around the field stays black.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ..runtime.field import LIT_FROM, LIT_TO

_FLIPS = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.3)])
_POSE = v2.RandomAffine(
    25.0,
    translate=(0.05, 0.05),
    scale=(0.8, 1.2),
    shear=(-4.0, 4.0, -4.0, 4.0),
    interpolation=InterpolationMode.BILINEAR,
)
_HAZE = torch.tensor([0.70, 0.55, 0.40]).view(3, 1, 1)
"""RGB in [0, 1] of the light that a clouded lens scatters back."""
_REFERENCE_SIDE = 384
"""Defocus is given in pixels of a square of this side, so that it means the same at every image size. Sharpening is not
scaled, because the released model was trained without."""


def as_another_camera(picture: Tensor) -> Tensor:
    """Augment one framed photograph, (3, S, S) uint8 RGB in and out."""
    picture = _POSE(_FLIPS(picture))
    if _chance(0.3):
        picture = _other_mask(picture)
    x = picture.float() / 255.0
    lit = ((picture.amax(dim=0, keepdim=True).float() - LIT_FROM) / (LIT_TO - LIT_FROM)).clamp(0.0, 1.0)
    if _chance(0.9):
        x = _other_colours(x, lit)
    if _chance(0.4):
        x = x * (1.0 + _uneven(x, -0.5, 0.5))
    if _chance(0.2):
        veil = _uneven(x, 0.0, 1.0).clamp(0.0, 1.0) * _between(0.0, 0.5)
        x = x * (1.0 - veil) + _HAZE * _spread(0.3) * veil * lit
    if _chance(0.4):
        x = x * (1.0 - _between(0.04, 0.5) * _specks(x) * _spread(0.1))
    if _chance(0.1):
        veil = _between(0.04, 0.4) * _specks(x) * lit
        x = x * (1.0 - veil) + _HAZE * _spread(0.3) * veil
    x = _other_sharpness(x.clamp(0.0, 1.0))
    if _chance(0.2):
        x = x + torch.randn_like(x) * _between(0.005, 0.04) * lit
    picture = (x.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return recompressed(picture, 25, 90) if _chance(0.3) else picture


def recompressed(picture: Tensor, lowest: int, highest: int) -> Tensor:
    """Compress (3, S, S) uint8 RGB as JPEG and decode it again.

    The quality (Pillow's, 0 to 95) is drawn uniformly from ``lowest`` to ``highest``.
    """
    file = io.BytesIO()
    quality = int(torch.randint(lowest, highest + 1, ()))
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).contiguous()


def _other_mask(picture: Tensor) -> Tensor:
    """Cut off the field at top and bottom, as many sensors do, or reduce it to a smaller circle."""
    size = picture.shape[-1]
    if _chance(0.5):
        rows = torch.arange(size).view(-1, 1)
        return picture * ((rows >= _between(0.0, 0.14) * size) & (rows < (1.0 - _between(0.0, 0.14)) * size))
    centred = torch.linspace(-1.0, 1.0, size)
    return picture * (centred.view(-1, 1) ** 2 + centred**2 < _between(0.8, 1.0) ** 2)


def _other_colours(x: Tensor, lit: Tensor) -> Tensor:
    """Change exposure, gamma, white balance, saturation and contrast of (3, S, S) in [0, 1]; ``lit`` is (1, S, S)."""
    gamma = math.exp(_between(-0.5, 0.5)) * _spread(0.2)
    gain = math.exp(_between(-0.3, 0.3)) * _spread(0.25)
    x = x.clamp(min=1e-4) ** gamma * gain
    grey = x.mean(dim=0, keepdim=True)
    x = grey + (x - grey) * _between(0.5, 1.5)
    mean = (x * lit).sum(dim=(1, 2), keepdim=True) / lit.sum().clamp(min=1.0)
    return (mean + (x - mean) * math.exp(_between(-0.4, 0.4))) * lit


def _other_sharpness(x: Tensor) -> Tensor:
    """Defocus, fewer pixels, sharpening by the camera, or no change of (3, S, S) in [0, 1]."""
    size = x.shape[-1]
    what = torch.rand(()).item()
    if what < 0.18:
        sigma = _between(0.3, 2.2) * size / _REFERENCE_SIDE
        side = 2 * math.ceil(2.5 * sigma) + 1
        return _blurred(x, side, sigma)
    if what < 0.36:
        few = int(_between(0.35, 0.8) * size)
        x = F.interpolate(x[None], size=(few, few), mode="bilinear", antialias=True)
        return F.interpolate(x, size=(size, size), mode="bilinear")[0]
    if what < 0.46:
        return (x + _between(0.3, 1.5) * (x - _blurred(x, 5, 1.2))).clamp(0.0, 1.0)
    return x


def _blurred(x: Tensor, side: int, sigma: float) -> Tensor:
    """A Gaussian blur of (C, S, S); ``side`` of the kernel in pixels, odd.

    One direction after the other. torchvision's ``gaussian_blur`` sums over the whole square of the kernel: the same up
    to rounding, but it takes 2.4 times as long for 17 pixels.
    """
    row = _gaussian(side, sigma).expand(len(x), 1, 1, side)
    padded = F.pad(x[None], [side // 2] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, row, groups=len(x)), row.transpose(2, 3), groups=len(x))[0]


def _gaussian(side: int, sigma: float) -> Tensor:
    """(side,): the kernel of a Gaussian blur, which sums to 1."""
    kernel = torch.exp(-0.5 * ((torch.arange(side) - side // 2) / sigma) ** 2)
    return kernel / kernel.sum()


def _uneven(x: Tensor, low: float, high: float) -> Tensor:
    """(1, S, S): values that vary slowly over the picture, interpolated from 3 x 3 random ones in [low, high]."""
    corners = low + (high - low) * torch.rand(1, 1, 3, 3)
    return F.interpolate(corners, size=x.shape[-2:], mode="bicubic", align_corners=True)[0]


def _specks(x: Tensor) -> Tensor:
    """(1, S, S) in [0, 1]: one to sixty grains of dust on lens or sensor, all equally out of focus."""
    size = x.shape[-1]
    places = torch.unique(torch.randint(size * size, (int(math.exp(_between(0.0, math.log(60.0)))),)))
    sigma = math.exp(_between(math.log(0.5), math.log(3.5))) * size / _REFERENCE_SIDE
    depth = 0.4 + 0.6 * torch.rand(size * size)[places]
    half = math.ceil(3.0 * sigma)
    side = 2 * half + 1
    row = _gaussian(side, sigma)
    grain = row[:, None] * row
    specks = torch.zeros(size + 2 * half, size + 2 * half)
    for place, strength in zip(places.tolist(), depth, strict=True):
        top, left = divmod(place, size)
        specks[top : top + side, left : left + side] += strength * grain
    specks = specks[None, half:-half, half:-half]
    return (specks * (2.0 * math.pi * sigma**2 * _between(1.0, 2.5))).clamp(max=1.0)


def _spread(width: float) -> Tensor:
    """(3, 1, 1): factors between exp(-width) and exp(width), one per channel."""
    return torch.exp((2.0 * torch.rand(3, 1, 1) - 1.0) * width)


def _between(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _chance(share: float) -> bool:
    return torch.rand(()).item() < share
