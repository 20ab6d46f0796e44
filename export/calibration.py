"""The range of every activation over real photographs, which is what static quantisation has to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ..runtime.contract import INPUT_NAME
from ..runtime.model import session_options

METHODS = ("widest", "mean", "percentile")
"""How a range comes out of many photographs: the extremes over all, the mean of each one's extremes, and the mean of
each one's ``PERCENTILE``, beyond which values are clipped."""
PERCENTILE = 0.99999
STRIDE = 2
"""Rows and columns of a large map looked at: neighbours are alike, and sorting is most of the work."""


@dataclass(frozen=True)
class Ranges:
    """Lower and upper end of each activation, by each of ``METHODS``."""

    ends: dict[str, NDArray[np.float32]]
    """Tensor name to (len(METHODS), 2)."""
    photographs: int

    def by(self, method: str) -> dict[str, tuple[np.float32, np.float32]]:
        """Tensor name to its two ends."""
        row = METHODS.index(method)
        return {name: (ends[row, 0], ends[row, 1]) for name, ends in self.ends.items()}


def measure_ranges(model: onnx.ModelProto, tensors: list[str], photographs: Iterable[NDArray[np.uint8]]) -> Ranges:
    """Run photographs (H, W, 3) uint8, at least one, through the fp32 model and measure ``tensors``."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = ort.InferenceSession(probe.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    seen: list[NDArray[np.float32]] = []  # each (tensors, 4)
    for pixels in photographs:
        values = session.run(tensors, {INPUT_NAME: pixels[None]})
        seen.append(np.stack([_ends(value) for value in values]))
    each = np.stack(seen)  # (photographs, tensors, 4): least, largest, percentile from below and from above
    widest = np.stack([each[..., 0].min(axis=0), each[..., 1].max(axis=0)], axis=-1)
    mean, percentile = each[..., :2].mean(axis=0), each[..., 2:].mean(axis=0)
    ends = np.stack([widest, mean, percentile], axis=1)  # (tensors, methods, 2)
    return Ranges(dict(zip(tensors, ends, strict=True)), len(seen))


def _ends(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4,): least, largest, and the percentile from below and from above."""
    sample = value[..., ::STRIDE, ::STRIDE].ravel()
    last = sample.size - 1
    high = round(PERCENTILE * last)
    ordered = np.partition(sample, sorted({last - high, high}))
    return np.array([value.min(), value.max(), ordered[last - high], ordered[high]], dtype=np.float32)
