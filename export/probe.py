"""A model's inner tensors for given pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.contract import INPUT_NAME
from ..runtime.session import open_session

Probe: TypeAlias = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""(H, W, 3) uint8 RGB -> each tensor's value, (1, ...) float32."""


def open_probe(model: onnx.ModelProto, tensors: Sequence[str]) -> Probe:
    """Open a copy of a model whose outputs are these tensors alone. It serves several threads at once."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = open_session(copy.SerializeToString())

    def probe(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        values: list[NDArray[np.float32]] = session.run(list(tensors), {INPUT_NAME: pixels[None]})
        return values

    return probe
