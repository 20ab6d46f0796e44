"""int8: convolutions in eight bits, framing, heads' arithmetic and softmax in floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from .calibration import Ranges

QUANTIZED = ("Conv", "Relu", "MaxPool", "Add")
"""What computes in eight bits; anything else in the network's body passes floats."""


@dataclass(frozen=True)
class Recipe:
    """One way to quantise."""

    method: str
    """How activations' ranges are found, one of calibration.METHODS."""
    fp32_stem: bool = False
    """Leave the first convolution, which sees the photograph, in floats."""

    def __str__(self) -> str:
        return f"{self.method} ranges{', first convolution in fp32' if self.fp32_stem else ''}"


def body_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The network's nodes: from the first convolution on; what comes before is framing and stays as it is."""
    first = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    return list(model.graph.node[first:])


def tensors_to_measure(model: onnx.ModelProto) -> list[str]:
    """The activations that quantising needs the ranges of."""
    body = [node for node in body_of(model) if node.op_type in QUANTIZED]
    return [body[0].input[0], *(node.output[0] for node in body)]


def quantize(model: onnx.ModelProto, ranges: Ranges, recipe: Recipe) -> onnx.ModelProto:
    """Static QDQ: uint8 activations, int8 weights with a scale per output channel.

    uint8 and not int8 activations, because that is what x86's VNNI multiplies: onnxruntime left 20 of 53
    int8-activation convolutions in floats and was three times slower. The heads keep float
    activations, whose rounding moved decisions more than the whole backbone's; their weights, a sixteenth of the
    network's, are stored in eight bits.
    """
    work = onnx.shape_inference.infer_shapes(model)
    body = body_of(work)
    inside = {node.name for node in body if node.op_type in QUANTIZED}
    excluded = [node.name for node in work.graph.node if node.name not in inside]
    if recipe.fp32_stem:
        excluded.append(body[0].name)
    measured = TensorsData(CalibrationMethod.MinMax, ranges.by(recipe.method))
    quantizer = QDQQuantizer(
        work, True, False, QuantType.QInt8, QuantType.QUInt8, measured, [], excluded, list(QUANTIZED), {}
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # the new nodes stand at the end, which onnx.checker refuses
    quantized: onnx.ModelProto = quantizer.model.model
    for weight in {node.input[1] for node in quantized.graph.node if node.op_type == "Gemm"}:
        _store_as_int8(quantized.graph, weight)
    _drop_unused(quantized.graph)
    del quantized.graph.value_info[:]
    return quantized


def _store_as_int8(graph: onnx.GraphProto, name: str) -> None:
    """Replace a float matrix by int8 with a scale per row and a DequantizeLinear, for all who read it."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor)  # (rows, columns)
    scale = np.maximum(np.abs(value).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)
    rounded = np.clip(np.rint(value / scale[:, None]), -127, 127).astype(np.int8)
    graph.initializer.remove(tensor)
    graph.initializer.extend(
        [
            numpy_helper.from_array(rounded, f"{name}_int8"),
            numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
            helper.make_tensor(f"{name}_zero", TensorProto.INT8, [len(scale)], [0] * len(scale)),
        ]
    )
    inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
    graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_floats", axis=0))


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove tensors that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
