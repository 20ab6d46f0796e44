"""Opens a model in onnxruntime, and checks it against its contract."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contract import INPUT_NAME, METADATA_KEY, Contract
from .errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

_PROVIDER_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
}


def open_session(content: bytes, threads: int = 1, provider: str = "CPUExecutionProvider") -> InferenceSession:
    """Open an ONNX model with the settings used wherever this project runs one, including export's parity check.

    ``threads`` share the work of one prediction. Idle threads sleep, because spinning ones would take cores away from
    the photographs being decoded at the same time. Any exception of onnxruntime may be raised.
    """
    import onnxruntime as ort

    # For Windows, and where onnxruntime was loaded before this package (__init__.py).
    if os.environ.get("ORT_DISABLE_TELEMETRY") != "0":
        ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of memory is kept for each size that comes again: 40 MB more for the released model, and no faster.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # fatal messages only: errors arrive as exceptions
    return ort.InferenceSession(content, options, providers=[provider])


def handing_back() -> RunOptions:
    """Options of a run after which the graph's memory is returned to the system."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def open_checked(path: Path, content: bytes, threads: int, provider: str) -> tuple[InferenceSession, Contract]:
    """Open a model file that has been read, and check its graph against its contract.

    Args:
        path: the file, named in errors.
        content: its bytes.
        threads: see ``open_session``.
        provider: onnxruntime execution provider, as on the command line: ``cpu``, ``cuda``, ...

    Raises:
        ModelFileError: the file is not an ONNX model in one piece, or does not keep the contract.
        UsageError: the provider is not installed or cannot be started.
    """
    _check_single_file(path, content)
    session = _open(path, content, threads, provider)
    contract = _contract(path, session)
    _check_graph(path, session, contract)
    return session, contract


def _check_single_file(path: Path, content: bytes) -> None:
    # An external tensor names its file under the key "location". These are the protobuf bytes of that key: they cannot
    # occur in text, and in weights only with a probability of 2^-80. onnxruntime would look for the named file in the
    # working directory.
    if b"\x0a\x08location\x12" in content:
        raise ModelFileError(f"{path}: expected a single file, found weights kept in another one. Export it again.")


def _open(path: Path, content: bytes, threads: int, provider: str) -> InferenceSession:
    import onnxruntime as ort

    available = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    available.pop("azure", None)  # in every build, but it calls a remote service instead of running the model here
    key = provider.lower().removesuffix("executionprovider")
    if key not in available:
        package = _PROVIDER_PACKAGES.get(key)
        hint = f" Install it in place of onnxruntime:  pip install {package}" if package else ""
        raise UsageError(f"--provider {provider}: expected one of {', '.join(sorted(available))}.{hint}")
    try:
        session = open_session(content, threads, available[key])
    except Exception as err:  # noqa: BLE001 - onnxruntime's exceptions share no other root
        found = first_line(err)
        if content.startswith(b"PK"):
            found = (
                "a file of PyTorch's. To make an ONNX file from a checkpoint:  retina-export CHECKPOINT --out FILE.onnx"
            )
        raise ModelFileError(f"{path}: expected an ONNX model, found: {found}") from None
    if session.get_providers()[0] != available[key]:
        raise UsageError(f"--provider {provider}: installed, but it could not be started on this machine")
    return session


def _contract(path: Path, session: InferenceSession) -> Contract:
    metadata = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in metadata:
        raise ModelFileError(
            f"{path}: expected a contract under the metadata key {METADATA_KEY}, found {sorted(metadata) or 'none'}. "
            "Only files made by retina-export can be used."
        )
    return Contract.from_json(metadata[METADATA_KEY], source=str(path))


def _check_graph(path: Path, session: InferenceSession, contract: Contract) -> None:
    """Check names, types and shapes of inputs and outputs: output sizes as in the contract, and no fixed input size."""

    def expect(what: str, expected: list[Any], found: list[Any]) -> None:
        if expected != found:
            raise ModelFileError(f"{path}: {what}: expected {expected}, found {found}. Export the model again.")

    inputs, outputs = session.get_inputs(), session.get_outputs()
    expect("inputs", [INPUT_NAME], [node.name for node in inputs])
    # A later version may add outputs without raising the schema.
    promised = [node for node in outputs if node.name in contract.output_names]
    if contract.output_names != [node.name for node in promised]:
        expect("outputs", contract.output_names, [node.name for node in outputs])
    outputs = promised
    expect("input type", ["tensor(uint8)"], [node.type for node in inputs])
    expect("output types", ["tensor(float)"] * len(outputs), [node.type for node in outputs])
    shapes = [["N", "H", "W", 3], *(output["shape"] for output in contract.outputs)]
    for node, expected in zip([*inputs, *outputs], shapes, strict=True):
        expect(f"axes of {node.name}", [len(expected)], [len(node.shape)])
        numbers = [(wanted, axis) for wanted, axis in zip(expected, node.shape, strict=True) if isinstance(axis, int)]
        free = node in inputs
        if any(wanted != axis for wanted, axis in numbers if free or isinstance(wanted, int)):
            expect(f"shape of {node.name}", expected, list(node.shape))


def first_line(err: Exception) -> str:
    """The first line of an error's message, which onnxruntime's may fill a page with."""
    return str(err).strip().split("\n", 1)[0][:300]
