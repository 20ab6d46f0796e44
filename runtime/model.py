"""Open a model file, check it against its contract, and predict."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import memory
from .contract import (
    DR_CAM_PER_GRADE,
    DR_PROBS,
    HEADS,
    INPUT_NAME,
    ME_CAM_PER_LABEL,
    ME_PROBS,
    METADATA_KEY,
    MIN_SIDE,
    Contract,
    Decision,
    Head,
    Preprocessing,
    decide,
)
from .digest import check_digest
from .errors import ModelFileError, PictureError, UsageError
from .workers import ordered_map, workers_or_cores

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions
    from PIL.Image import Image

MODEL_NAME = "retina_multitask.onnx"
INT8_NAME = "retina_multitask.int8.onnx"
"""Default names of retina-export's files; the first that exists is used."""
RELEASED = Path(__file__).with_name("released.onnx")
"""The model that ships with the package."""

DECODE_MARGIN = 1.8
"""Smallest side of a picture decoded at reduced size, as a multiple of the square that the graph first resizes it to;
measured in docs/scoring.md."""

CLOSE_CALL = 0.025
"""If a change of a probability by less than this would change a decision, the photograph is predicted again at full
size. It is larger than any change that decoding at half size was seen to cause in fp32 (docs/scoring.md). Changes due
to int8's own rounding need no margin: a second prediction would only round differently."""

Buffer: TypeAlias = bytes | bytearray | memoryview
Source: TypeAlias = "str | Path | Buffer | NDArray[np.uint8] | Image"

_PROVIDER_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
}


@dataclass(frozen=True, kw_only=True)
class Prediction(Decision):
    """What the model says about one photograph: the decisions, and the probabilities that they were made from."""

    dr_probs: Mapping[int, float]
    """Probability of each DR grade, in [0, 1], summing to 1."""
    me_prob: float
    """Probability of macular edema risk, in [0, 1]."""
    maps: Mapping[str, NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)
    """Grad-CAM maps over the framed square, under the keys ``dr`` and ``me``: (h, w) float32, at least 0, in logits, of
    the most probable class or the one asked for. None if the file has no maps or they were not requested."""

    @classmethod
    def of(
        cls,
        contract: Contract,
        dr_probs: NDArray[np.floating],
        me_probs: NDArray[np.floating],
        maps: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> Prediction:
        """Apply a contract's rules to one photograph's probabilities, dr_probs (K,) and me_probs (2,)."""
        return cls(
            **vars(decide(contract, dr_probs, me_probs)),
            dr_probs={grade: float(p) for grade, p in zip(contract.dr_grades, dr_probs, strict=True)},
            me_prob=float(me_probs[1]),
            maps=maps,
        )


@dataclass(frozen=True)
class Scored:
    """One photograph of a sequence: a prediction, or the reason why there is none."""

    source: str | Path
    prediction: Prediction | None
    error: str | None
    """Without the file's name; None if there is a prediction."""


class RetinaModel:
    """An open model file. Thread-safe: one instance serves any number of threads at once, and is meant to be shared.

    Attributes:
        path: the file.
        sha256: digest of its bytes, in hexadecimal.
        digest_known: whether FILE.sha256 stands beside the file, and so agrees.
        contract: what the file promises.
        provider: onnxruntime execution provider, as it was asked for.
        exact: whether every picture is decoded at full size.
    """

    def __init__(
        self, path: str | Path | None = None, *, threads: int = 1, provider: str = "cpu", exact: bool = False
    ) -> None:
        """Open a model file.

        Args:
            path: an ONNX file made by retina-export; None: see ``find_model``.
            threads: threads within one prediction. Keep 1 if several photographs are scored at once.
            provider: onnxruntime execution provider: ``cpu``, ``cuda``, ``openvino``, ``coreml``, ...
            exact: decode every picture at full size. Otherwise pictures much larger than the network's input are
                decoded at reduced size; on 12 originals no probability moved by over 0.023 (docs/scoring.md).

        Raises:
            ModelFileError: the file cannot be read, does not match its ``.sha256`` file, or does not keep the contract.
            UsageError: the provider is not installed or cannot be started.
        """
        self.path = find_model(path)
        self.provider, self.exact = provider, exact
        content = _read(self.path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.digest_known = check_digest(self.path, self.sha256)
        _check_single_file(self.path, content)
        self._session = _open(self.path, content, threads, provider)
        self.contract = _contract(self.path, self._session)
        _check_graph(self.path, self._session, self.contract)
        self._second_look = threading.Lock()
        self._at_least = None if exact else least_side(self.contract.preprocessing)

    def content(self) -> bytes:
        """Read the bytes of the file again.

        Raises:
            ModelFileError: the file cannot be read, or has changed since it was opened.
        """
        content = _read(self.path)
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise ModelFileError(f"{self.path}: expected sha256 {self.sha256} as opened, found {found}. Start again.")
        return content

    def predict(self, source: Source, *, maps: bool = True) -> Prediction:
        """Predict for one photograph.

        Unless ``exact``, a large picture is decoded at reduced size. If a decision is then within ``CLOSE_CALL`` of
        changing, it is predicted again at full size, so that decisions hardly depend on the reduction. To bound
        memory, only one picture at a time is predicted again, and its memory is returned to the system.

        Args:
            source: a path, the bytes of a file in any buffer, decoded pixels (H, W, 3) uint8 RGB, or a Pillow image.
            maps: whether to return the Grad-CAM maps, if the file has them.

        Raises:
            PictureError: not a readable photograph, or too large for the available memory.
            ModelFileError: the model's output is not finite.
            TypeError: a source of another type.
        """
        pixels = self.decode(source)
        prediction = self.predict_pixels(pixels, maps=maps)
        if self._at_least is None or not needs_second_look(self.contract, prediction, pixels):
            return prediction
        with self._second_look:
            scaled = pixels.shape
            del pixels
            whole = _pixels(source, at_least=None)
            if whole.shape == scaled:
                return prediction
            memory.hand_back()  # free what decoding used before the graph allocates
            return self.predict_pixels(whole, maps=maps, hand_back=True)

    def decode(self, source: Source) -> NDArray[np.uint8]:
        """The pixels (H, W, 3) uint8 RGB that ``predict`` first passes to the graph.

        Raises the errors of ``predict``, except ModelFileError.
        """
        return _pixels(source, at_least=self._at_least)

    def predict_pixels(
        self,
        pixels: NDArray[np.uint8],
        *,
        maps: bool = True,
        of: Mapping[Head, int] | None = None,
        hand_back: bool = False,
    ) -> Prediction:
        """Predict for decoded pixels.

        Args:
            pixels: (H, W, 3) uint8 RGB, H and W at least 32.
            maps: whether to return the Grad-CAM maps, if the file has them.
            of: the class that a head's map should explain instead of the most probable one: a DR grade, or 0 or 1 for
                the ME risk.
            hand_back: return the memory that the graph used to the system afterwards, which costs some time.

        Raises:
            PictureError: pixels of another shape or dtype, or too many for the available memory.
            UsageError: ``of`` names a grade or label that the model does not have.
            ModelFileError: the model's output is not finite.
        """
        for head, label in (of or {}).items():
            if head not in HEADS:
                raise UsageError(f"of: expected the heads {' and '.join(HEADS)}, found {head}")
            if label not in (classes := self.contract.classes(head)):
                raise UsageError(f"of: expected one of {', '.join(map(str, classes))} for {head}, found {label}")
        pixels = _checked_pixels(pixels)
        with_maps = maps and self.contract.explain
        names = [DR_PROBS, ME_PROBS, *([DR_CAM_PER_GRADE, ME_CAM_PER_LABEL] if with_maps else [])]
        try:
            outputs = self._session.run(names, {INPUT_NAME: pixels[None]}, _handing_back() if hand_back else None)
        except Exception as err:  # noqa: BLE001 - onnxruntime's exceptions share no other root
            reason = f"the model could not take this picture of {pixels.shape}: {_first_line(err)}"
            raise PictureError(f"{self.path}: {reason}", reason) from None
        dr, me = outputs[0][0], outputs[1][0]
        if not (np.isfinite(dr).all() and np.isfinite(me).all()):
            raise ModelFileError(f"{self.path}: expected probabilities, found {dr} and {me}")
        if not with_maps:
            return Prediction.of(self.contract, dr, me)
        asked = of or {}
        grade = self.contract.dr_grades.index(asked["dr"]) if "dr" in asked else int(dr.argmax())
        label = asked.get("me", int(me.argmax()))
        return Prediction.of(self.contract, dr, me, {"dr": outputs[2][0, grade], "me": outputs[3][0, label]})

    def score(self, paths: Iterable[str | Path], *, workers: int | None = None, maps: bool = False) -> Iterator[Scored]:
        """Score many files on several threads and yield the results in the order given.

        ``paths`` is read only a little ahead, and results are dropped once yielded, so memory does not depend on the
        number of files. A file that cannot be read becomes a ``Scored`` with an error and does not stop the others.

        Args:
            paths: the files.
            workers: photographs scored at once; None: the cores that this process may use.
            maps: whether to return the Grad-CAM maps, if the file has them.

        Raises:
            ModelFileError: the model's output is not finite.
            UsageError: ``workers`` below 1, or more than the system allows.
            TypeError: a single path.
        """
        if isinstance(paths, str | Path):
            raise TypeError(f"expected several paths, found one: {paths}; use predict")
        return ordered_map(lambda path: self.score_one(path, maps=maps), paths, workers_or_cores(workers))

    def score_one(self, source: str | Path | Buffer, *, maps: bool = False) -> Scored:
        """Score one file, given by its path or as bytes (the result's ``source`` is then empty).

        An unreadable photograph becomes a ``Scored`` with an error.
        """
        name = "" if isinstance(source, Buffer) else source
        try:
            return Scored(name, self.predict(source, maps=maps), None)
        except PictureError as err:
            return Scored(name, None, err.reason)


def find_model(path: str | Path | None = None, artifacts: str | Path | None = None) -> Path:
    """The model file to use: ``path``, else the export in ``artifacts``, else the one shipped in the package.

    ``artifacts`` defaults to the environment variable RETINA_ARTIFACTS, else to ``artifacts`` in the working directory.
    An fp32 export takes precedence over an int8 one. A given ``path`` is returned unchecked.

    Raises:
        ModelFileError: there is none, or one of these places cannot be examined.
    """
    if path is not None:
        return Path(path)
    asked_for = None if artifacts else os.environ.get("RETINA_ARTIFACTS")
    if asked_for and not os.path.isdir(asked_for):
        raise ModelFileError(f"{asked_for}: expected the folder that RETINA_ARTIFACTS names, found none")
    folder = Path(artifacts or asked_for or "artifacts")
    for candidate in (folder / MODEL_NAME, folder / INT8_NAME, RELEASED):
        # Where something else is, such as a link to a share that is not mounted, another model would be a silent
        # substitute.
        try:
            if stat.S_ISREG(os.stat(candidate).st_mode):  # noqa: PTH116
                return candidate
            raise ModelFileError(f"{candidate}: expected a model file or none, found something else")
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(candidate):
                raise ModelFileError(f"{candidate}: expected a model file or none, found a link to none") from None
        except OSError as err:
            raise ModelFileError(f"{candidate}: expected a model file or none, found: {err.strerror}") from None
    raise ModelFileError(
        f"{folder / MODEL_NAME}: expected a model file, found none, and none ships with this installation. Make one "
        "with  retina-train DATA and retina-export, or name one (retina-score --model FILE)."
    )


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
    # Memory plans are cached per input shape, and every photograph may have its own: memory would grow with the folder.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # fatal messages only: errors arrive as exceptions
    return ort.InferenceSession(content, options, providers=[provider])


def _handing_back() -> RunOptions:
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ModelFileError(f"{path}: expected a model file, found: {err.strerror}") from None
    if not content:
        raise ModelFileError(f"{path}: expected a model file, found an empty one. Export it again.")
    return content


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
        found = _first_line(err)
        if content.startswith(b"PK"):
            found = "a file of PyTorch's. Of a checkpoint make an ONNX file:  retina-export CHECKPOINT --out FILE.onnx"
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


def _pixels(source: Source, at_least: int | None) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _checked_pixels(source)
    from PIL.Image import Image

    from .picture import decode, from_image

    if isinstance(source, Buffer):
        return decode(bytes(source), at_least=at_least)
    if isinstance(source, (str, Path)):
        return decode(source, at_least=at_least)
    if isinstance(source, Image):
        return from_image(source, at_least=at_least)
    raise TypeError(f"expected a path, bytes, an array or a Pillow image, found {type(source).__name__}")


def least_side(preprocessing: Preprocessing) -> int:
    """Smallest side in pixels of a picture decoded at reduced size: see ``picture.decode``."""
    return round(DECODE_MARGIN * preprocessing.intermediate_size)


def is_close_call(contract: Contract, prediction: Prediction, margin: float = CLOSE_CALL) -> bool:
    """Whether a change of less than ``margin`` could change a decision.

    That is a change in a probability, or in the difference between the two most probable DR grades.
    """
    second, first = sorted(prediction.dr_probs.values())[-2:]
    me, referable_me, referable_dr = (
        contract.thresholds[task].level for task in ("me", "referable_me", "referable_dr")
    )
    to_me = min(abs(prediction.me_prob - me), abs(prediction.me_prob - referable_me))
    to_referable = abs(prediction.referable_prob - referable_dr)
    return min(first - second, to_me, to_referable) < margin


def needs_second_look(contract: Contract, prediction: Prediction, pixels: NDArray[np.uint8]) -> bool:
    """Whether a prediction for a photograph as it was decoded is to be made again at full size.

    That is for a close call, unless the pixels are too few to come from decoding at reduced size.
    """
    return min(pixels.shape[:2]) >= least_side(contract.preprocessing) and is_close_call(contract, prediction)


def _checked_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    fits = pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= MIN_SIDE
    if not fits or pixels.dtype != np.uint8:
        raise PictureError(
            f"array: expected (H, W, 3) uint8 RGB of at least {MIN_SIDE} pixels a side, found {pixels.shape} "
            f"{pixels.dtype}"
        )
    return np.ascontiguousarray(pixels)


def _first_line(err: Exception) -> str:
    return str(err).strip().split("\n", 1)[0][:300]
