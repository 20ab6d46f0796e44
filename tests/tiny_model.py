"""A model file of a few kilobytes whose answers are easy to compute: softmax of a linear map of the mean colour.

With m = the mean colour (3,) in [0, 1]: dr_probs = softmax(m @ DR_WEIGHT + DR_BIAS), me_probs = softmax(m @ ME_WEIGHT),
the maps (4, 4) are the mean red and the mean green times RAMP, and novelty is 20 times the mean blue.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from retina.runtime.contract import METADATA_KEY, Contract, Preprocessing

DR_WEIGHT = np.array([[-4, -2, 0, 3, 6], [5, 1, 0, -2, -4], [0, 3, -1, 2, -3]], np.float32)
DR_BIAS = np.array([0.5, 0, 0, -0.5, -0.5], np.float32)
ME_WEIGHT = np.array([[-3, 3], [4, -4], [0, 1]], np.float32)
RAMP = np.arange(16, dtype=np.float32) / 16

CONTRACT = Contract(Preprocessing(framing="squash", image_size=32))


def expected_probs(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """dr_probs (5,) and me_probs (2,) by hand for pixels (H, W, 3)."""
    mean = pixels.reshape(-1, 3).mean(0) / 255
    return _softmax(mean @ DR_WEIGHT + DR_BIAS), _softmax(mean @ ME_WEIGHT)


def tiny_model(
    *, contract: Contract | None = CONTRACT, names: dict[str, str] | None = None, input_type: int = TensorProto.UINT8
) -> onnx.ModelProto:
    """Build the model; ``names`` renames outputs, and with ``contract`` None there is no metadata."""
    explain = contract is not None and contract.explain
    grades = len(contract.dr_grades) if contract else 5
    tensors = {
        "dr_weight": DR_WEIGHT[:, :grades],
        "dr_bias": DR_BIAS[:grades],
        "me_weight": ME_WEIGHT,
        "scale": np.float32(255),
        "first_side": np.array([1]),
        "ramp": RAMP[None],
        "red": np.array([[1], [0], [0]], np.float32),
        "green": np.array([[0], [1], [0]], np.float32),
        "blue": np.array([0, 0, 20], np.float32),
        "map_shape": np.array([-1, 4, 4]),
        "class_axis": np.array([1]),
        "dr_repeats": np.array([1, grades, 1, 1]),
        "me_repeats": np.array([1, 2, 1, 1]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        # One side after the other, because a single float32 sum over a camera original would lose the sixth decimal.
        node("ReduceMean", ["float", "first_side"], ["columns"], keepdims=0),
        node("ReduceMean", ["columns", "first_side"], ["levels"], keepdims=0),
        node("Div", ["levels", "scale"], ["mean"]),
        node("MatMul", ["mean", "dr_weight"], ["dr_raw"]),
        node("Add", ["dr_raw", "dr_bias"], ["dr_logits"]),
        node("Softmax", ["dr_logits"], ["dr_probs"], axis=1),
        node("MatMul", ["mean", "me_weight"], ["me_logits"]),
        node("Softmax", ["me_logits"], ["me_probs"], axis=1),
    ]
    for task, colour, per_class in (("dr", "red", "dr_cam_per_grade"), ("me", "green", "me_cam_per_label")):
        nodes += [
            node("MatMul", ["mean", colour], [f"{task}_colour"]),
            node("MatMul", [f"{task}_colour", "ramp"], [f"{task}_flat"]),
            node("Reshape", [f"{task}_flat", "map_shape"], [f"{task}_cam"]),
            node("Unsqueeze", [f"{task}_cam", "class_axis"], [f"{task}_one"]),
            node("Tile", [f"{task}_one", f"{task}_repeats"], [per_class]),
        ]
    nodes = nodes if explain else nodes[:9]
    if contract is not None and contract.unfamiliar_from is not None:
        nodes.append(node("MatMul", ["mean", "blue"], ["novelty"]))
    names = names or {}
    for item in nodes:
        item.output[:] = [names.get(name, name) for name in item.output]
        item.input[:] = [names.get(name, name) for name in item.input]
    described = replace(contract or CONTRACT, explain=explain).outputs
    outputs = [
        helper.make_tensor_value_info(names.get(out["name"], out["name"]), TensorProto.FLOAT, out["shape"])
        for out in described
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", input_type, ["N", "H", "W", 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if contract is not None:
        helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    onnx.checker.check_model(model)
    return model


def write_tiny_model(path: Path, **variant: Any) -> Path:
    """Write the model, or a variant of it, and return its path."""
    path.write_bytes(tiny_model(**variant).SerializeToString())
    return path


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents = np.exp(logits - logits.max())
    probs: NDArray[np.float64] = exponents / exponents.sum()
    return probs
