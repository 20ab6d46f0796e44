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

METHODS = ("mean", "widest")
"""How a range comes out of many photographs: the mean of each one's extremes, or the extremes over all. Percentiles are
not among them: in a trained ResNet-50, clipping the first convolution's range to 0.7 of itself took the pooled features
from 19 dB to 1 dB, since the rare large values are the disc's rim and the edge of the lit field."""


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
    seen: list[NDArray[np.float32]] = []  # each (tensors, 2)
    for pixels in photographs:
        values = session.run(tensors, {INPUT_NAME: pixels[None]})
        seen.append(np.array([(value.min(), value.max()) for value in values], dtype=np.float32))
    each = np.stack(seen)  # (photographs, tensors, 2)
    widest = np.stack([each[..., 0].min(axis=0), each[..., 1].max(axis=0)], axis=-1)
    ends = np.stack([each.mean(axis=0), widest], axis=1)  # (tensors, methods, 2)
    return Ranges(dict(zip(tensors, ends, strict=True)), len(seen))
