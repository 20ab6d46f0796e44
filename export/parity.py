"""Checks that an exported file gives the same answers as PyTorch: names, then axes, then shapes, then values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..runtime.contract import (
    DECISIONS,
    DR_CAM,
    DR_CAM_PER_GRADE,
    DR_PROBS,
    ME_CAM,
    ME_CAM_PER_LABEL,
    ME_PROBS,
    Contract,
    decide,
)
from ..runtime.errors import ParityError
from ..train.framing import make_preprocess
from ..train.model import RetinaNet

Pixels = NDArray[np.uint8]
Predictor = Callable[[Pixels], Mapping[str, NDArray[np.float32]]]
"""(N, H, W, 3) uint8 RGB -> every output of the contract by name."""

SIZES = ((32, 32), (33, 57), (700, 40), (512, 768), (2848, 4288))
"""Heights and widths in pixels to which the first photograph is resized, from the smallest to a camera original."""


@dataclass(frozen=True)
class Bounds:
    """How far an exported file may differ from PyTorch; None: the difference is only reported."""

    probability: float | None
    """Largest absolute difference of a probability."""
    cam: float | None
    """Largest difference of a Grad-CAM map, relative to the map's largest magnitude before ReLU."""
    alone: float
    """Largest absolute difference between a picture's probabilities in a batch and alone."""
    equal_decisions: bool
    """Whether every picture must have the same DR grade, ME risk and referrals."""


FP32 = Bounds(probability=1e-4, cam=1e-3, alone=1e-5, equal_decisions=True)
INT8 = Bounds(probability=None, cam=None, alone=1e-2, equal_decisions=False)
"""int8's accuracy is checked by gate.py instead. In a batch, a value may round differently, by one step of 255."""


@dataclass(frozen=True)
class Parity:
    """What was compared, and the differences found."""

    photographs: int
    """Number of photographs, real or synthetic; further pictures are made from the first: batches, sizes, black."""
    source: str
    """Where the photographs came from."""
    pictures: int
    """Number of all pictures compared."""
    worst: float
    """Largest absolute difference of a probability."""
    worst_output: str
    worst_image: str
    """The output and the picture with that difference."""
    batch_against_alone: float
    """Largest absolute difference between a picture's probabilities in a batch and alone."""
    equal_decisions: float
    """Share of pictures with the same decisions, in [0, 1]."""
    worst_cam: float | None
    """Largest relative difference of a Grad-CAM map from PyTorch's autograd; None without ``explain``."""

    def to_dict(self) -> dict[str, Any]:
        """For the contract, which travels: without the name of a photograph, which may be a patient's."""
        return {name: value for name, value in asdict(self).items() if name != "worst_image"}


@dataclass(frozen=True)
class Expected:
    """PyTorch's answer for a batch."""

    values: dict[str, NDArray[np.float32]]
    scales: dict[str, NDArray[np.float32]]
    """For each Grad-CAM output its maps' largest magnitudes before ReLU, shaped to broadcast, and never 0."""


@dataclass(frozen=True)
class Reference:
    """The trained network in PyTorch, with Grad-CAM by autograd, so that it shares no formula with the exported graph.

    Called with pixels (N, H, W, 3) uint8 RGB.
    """

    model: RetinaNet
    contract: Contract

    def __call__(self, pixels: Pixels) -> Expected:
        preprocess = make_preprocess(self.contract.preprocessing)
        with torch.no_grad():
            feature_map = self.model.feature_map(preprocess(torch.from_numpy(pixels)))
        feature_map.requires_grad_()
        features = self.model.backbone.avgpool(feature_map).flatten(1)
        values: dict[str, NDArray[np.float32]] = {}
        scales: dict[str, NDArray[np.float32]] = {}
        for head, probs_name, cam_name, cams_name in (
            (self.model.dr_head, DR_PROBS, DR_CAM, DR_CAM_PER_GRADE),
            (self.model.me_head, ME_PROBS, ME_CAM, ME_CAM_PER_LABEL),
        ):
            logits = head(features)
            probs = logits.softmax(dim=1).detach().numpy()
            values[probs_name] = probs
            if not self.contract.explain:
                continue
            maps = np.stack([_autograd_cam(logits[:, k], feature_map) for k in range(logits.shape[1])], axis=1)
            scale = np.maximum(np.abs(maps).max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny)
            rows, predicted = np.arange(len(probs)), probs.argmax(axis=1)
            values[cams_name], scales[cams_name] = np.maximum(maps, 0), scale
            values[cam_name], scales[cam_name] = values[cams_name][rows, predicted], scale[rows, predicted]
        return Expected({name: values[name] for name in self.contract.output_names}, scales)


def _autograd_cam(logit: Tensor, feature_map: Tensor) -> NDArray[np.float32]:
    """Grad-CAM without its ReLU (Selvaraju et al. 2017, equations 1 and 2): (N,) logits of one class -> (N, h, w)."""
    (gradient,) = torch.autograd.grad(logit.sum(), feature_map, retain_graph=True)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    cam: NDArray[np.float32] = (weights * feature_map).sum(dim=1).detach().numpy()
    return cam


def predictor_of_module(module: nn.Module, contract: Contract) -> Predictor:
    """Make a ``Predictor`` of a torch module whose outputs are in the contract's order.

    It raises ParityError if the number of outputs is not the contract's.
    """

    def predict(pixels: Pixels) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(pixels))
        if len(outputs) != len(contract.output_names):
            raise ParityError(f"outputs: expected {contract.output_names}, found {len(outputs)} tensors")
        return {name: output.numpy() for name, output in zip(contract.output_names, outputs, strict=True)}

    return predict


def check_parity(
    predictor: Predictor,
    reference: Reference,
    photographs: Iterable[tuple[str, Pixels]],
    bounds: Bounds,
    source: str,
) -> Parity:
    """Compare a file's answers with PyTorch's, on each photograph alone, and on batches and sizes made from the first.

    Args:
        predictor: the file as its users open it.
        reference: the network.
        photographs: name and (H, W, 3) uint8 RGB; at least one.
        bounds: the allowed differences.
        source: where the photographs came from, for the record.

    Raises:
        ParityError: a difference is out of bounds, or there is no photograph. The message names the output, the
            picture, the expected and the found value.
    """
    tally = _Tally(reference.contract, bounds)
    count = 0
    first: Pixels | None = None
    for name, pixels in photographs:
        tally.compare([name], pixels[None], predictor, reference)
        first = pixels if first is None else first
        count += 1
    if first is None:
        raise ParityError(f"{source}: expected at least one photograph to compare on, found none")
    for names, batch in _batches(first):
        found = tally.compare(names, batch, predictor, reference)
        for name, picture, row in zip(names, batch, range(len(batch)), strict=True):
            tally.compare_alone(name, {key: value[row] for key, value in found.items()}, predictor(picture[None]))
    for height, width in SIZES:
        resized = np.array(Image.fromarray(first).resize((width, height), Image.Resampling.BILINEAR))
        tally.compare([f"the first photograph at {width} x {height}"], resized[None], predictor, reference)
    return tally.parity(count, source)


def _batches(first: Pixels) -> Iterator[tuple[Sequence[str], Pixels]]:
    """Batches of 2 and 5 different pictures of one size; the last picture of the second batch is black."""
    mirrored, turned = first[:, ::-1], first[::-1, ::-1]
    upside_down, black = first[::-1], np.zeros_like(first)
    yield ("the first photograph", "the first, mirrored"), np.stack([first, mirrored])
    names = ("the first photograph", "the first, mirrored", "the first, turned", "the first, upside down", "black")
    yield names, np.stack([first, mirrored, turned, upside_down, black])


class _Tally:
    """Makes the checks in order for each batch, and keeps the largest differences."""

    def __init__(self, contract: Contract, bounds: Bounds) -> None:
        self.contract, self.bounds = contract, bounds
        self.worst, self.worst_output, self.worst_image = 0.0, DR_PROBS, ""
        self.worst_cam = 0.0
        self.alone = 0.0
        self.pictures = self.equal = 0

    def compare(
        self, names: Sequence[str], batch: Pixels, predictor: Predictor, reference: Reference
    ) -> Mapping[str, NDArray[np.float32]]:
        found, expected = predictor(batch), reference(batch)
        self._names(names[0], found)
        for output, value in expected.values.items():
            _axes_and_shapes(output, names[0], value, found[output])
        for output, value in expected.values.items():
            self._values(output, names, value, found[output], expected.scales.get(output))
        self._decisions(names, expected.values, found)
        return found

    def compare_alone(
        self, name: str, in_batch: Mapping[str, NDArray[np.float32]], alone: Mapping[str, NDArray[np.float32]]
    ) -> None:
        for output in (DR_PROBS, ME_PROBS):
            difference = float(np.abs(in_batch[output] - alone[output][0]).max())
            self.alone = max(self.alone, difference)
            if not difference <= self.bounds.alone:
                raise ParityError(
                    f"{output} of {name}: expected the same in a batch as alone within {self.bounds.alone:g}, "
                    f"found a difference of {difference:.3g}"
                )

    def parity(self, photographs: int, source: str) -> Parity:
        return Parity(
            photographs, source, self.pictures, self.worst, self.worst_output, self.worst_image, self.alone,
            self.equal / self.pictures, self.worst_cam if self.contract.explain else None,
        )  # fmt: skip

    def _names(self, picture: str, found: Mapping[str, NDArray[np.float32]]) -> None:
        if list(found) != self.contract.output_names:
            raise ParityError(f"outputs for {picture}: expected {self.contract.output_names}, found {list(found)}")

    def _values(
        self,
        output: str,
        names: Sequence[str],
        expected: NDArray[np.float32],
        found: NDArray[np.float32],
        scale: NDArray[np.float32] | None,
    ) -> None:
        difference = np.abs(found - expected) / (1.0 if scale is None else scale)
        place = tuple(
            int(i) for i in np.unravel_index(np.argmax(difference), difference.shape)
        )  # NaN counts as largest
        worst, bound = float(difference[place]), self.bounds.probability if scale is None else self.bounds.cam
        if not worst <= (np.finfo(np.float32).max if bound is None else bound):
            raise ParityError(
                f"{output} of {names[place[0]]} at {list(place[1:])}: expected {expected[place]:.7g}, found "
                f"{found[place]:.7g}: {'' if scale is None else 'relative '}difference {worst:.3g}, allowed {bound}"
            )
        if scale is not None:
            self.worst_cam = max(self.worst_cam, worst)
        elif worst >= self.worst:
            self.worst, self.worst_output, self.worst_image = worst, output, names[place[0]]

    def _decisions(
        self,
        names: Sequence[str],
        expected: Mapping[str, NDArray[np.float32]],
        found: Mapping[str, NDArray[np.float32]],
    ) -> None:
        for row, name in enumerate(names):
            ours, theirs = (decide(self.contract, v[DR_PROBS][row], v[ME_PROBS][row]) for v in (expected, found))
            differing = [field for field in DECISIONS if getattr(ours, field) != getattr(theirs, field)]
            self.pictures += 1
            self.equal += not differing
            if differing and self.bounds.equal_decisions:
                raise ParityError(
                    f"decision on {name}: expected {differing[0]} {getattr(ours, differing[0])}, found "
                    f"{getattr(theirs, differing[0])}, with probabilities within the bound: the picture is on the edge"
                )


def _axes_and_shapes(output: str, picture: str, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    if found.ndim != expected.ndim:
        raise ParityError(f"{output} for {picture}: expected {expected.ndim} axes, found {found.ndim}")
    if found.shape != expected.shape:
        raise ParityError(f"{output} for {picture}: expected the shape {expected.shape}, found {found.shape}")
    if found.dtype != np.float32:
        raise ParityError(f"{output} for {picture}: expected float32, found {found.dtype}")
