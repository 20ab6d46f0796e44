"""Export to ONNX: one self-contained file that any onnxruntime opens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ..runtime.contract import INPUT_NAME, METADATA_KEY, Contract
from ..runtime.model import RetinaModel
from ..runtime.session import open_session
from ..runtime.versions import own_version
from .graph import DeployedModel, example_input
from .parity import Pixels, Predictor

OPSET = 18
"""The first opset with an antialiased Resize; not the newest, so that older runtimes can open the file."""
DISCLAIMER = "For research and demonstration. Not a medical device: not for clinical use."


@dataclass(frozen=True)
class OnnxFile:
    """A model that any onnxruntime opens without this package."""

    model: onnx.ModelProto

    @classmethod
    def of(cls, deployed: DeployedModel, contract: Contract) -> OnnxFile:
        return cls(to_onnx(deployed, contract))

    def write(self, path: Path, contract: Contract) -> None:
        """Write the model and its contract to one file, after onnx's own full check."""
        set_metadata(self.model, contract)
        onnx.checker.check_model(self.model, full_check=True)
        path.write_bytes(self.model.SerializeToString(deterministic=True))

    def open(self, path: Path, contract: Contract) -> Predictor:
        RetinaModel(path)  # refuse here what retina-score would refuse
        session = open_session(path.read_bytes())

        def answer(pixels: Pixels) -> dict[str, NDArray[np.float32]]:
            outputs = session.run(None, {INPUT_NAME: pixels})
            return {node.name: output for node, output in zip(session.get_outputs(), outputs, strict=True)}

        return answer


def to_onnx(deployed: DeployedModel, contract: Contract) -> onnx.ModelProto:
    """Export for any N, H and W, without the exporter's debug metadata, which contains source paths."""
    program = torch.onnx.export(
        deployed,
        (example_input(),),
        input_names=[INPUT_NAME],
        output_names=contract.output_names,
        dynamic_shapes=({0: "N", 1: "H", 2: "W"},),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    strip_debug(model)
    return model


def strip_debug(model: onnx.ModelProto) -> None:
    """Remove doc strings and exporter metadata from the model, its graph, nodes, tensors and values."""
    graph = model.graph
    parts: Iterable[Any] = (
        model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info
    )  # fmt: skip
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def set_metadata(model: onnx.ModelProto, contract: Contract) -> None:
    """Set the contract as the model's metadata, and, derived from it, the plain keys that other tools look for."""
    package_version = own_version()
    size = contract.preprocessing.image_size
    names = {str(index): f"DR grade {grade}" for index, grade in enumerate(contract.dr_grades)}
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model,
        {
            METADATA_KEY: contract.to_json(),
            "description": f"Diabetic retinopathy grade and macular edema risk. {DISCLAIMER}",
            "author": "The retina-edge developers",
            "version": package_version,
            "task": "classify",
            "names": json.dumps(names),
            "imgsz": json.dumps([size, size]),
            # ONNX's standard image metadata (MetadataProps.md): unmodified decoded 8-bit RGB pixels.
            "Image.BitmapPixelFormat": "Rgb8",
            "Image.ColorSpaceGamma": "SRGB",
            "Image.NominalPixelRange": "NominalRange_0_255",
        },
    )
    model.producer_name, model.producer_version = "retina-edge", package_version
    model.graph.name = "retina"
    model.graph.doc_string = DISCLAIMER
