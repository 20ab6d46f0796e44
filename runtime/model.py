"""An open model file that predicts: a photograph is decoded, goes through the graph, and is decided by the contract."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
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
    MIN_SIDE,
    NOVELTY,
    Head,
)
from .digest import check_digest
from .errors import ModelFileError, PictureError, UsageError
from .model_file import find_model, read_model
from .prediction import Prediction, Scored
from .second_look import least_side, needs_second_look
from .session import first_line, handing_back, open_checked
from .workers import ordered_map, workers_or_cores

if TYPE_CHECKING:
    from PIL.Image import Image

Buffer: TypeAlias = bytes | bytearray | memoryview
FilePath: TypeAlias = "str | os.PathLike[str]"
Source: TypeAlias = "FilePath | Buffer | NDArray[np.uint8] | Image"


class RetinaModel:
    """An open model file. Thread-safe: one instance serves any number of threads at once, and is meant to be shared.

    It cannot be pickled: of several processes, each opens its own.

    Attributes:
        path: the file.
        sha256: digest of its bytes, in hexadecimal.
        digest_known: whether FILE.sha256 stands beside the file, and so agrees.
        contract: what the file promises.
        provider: onnxruntime execution provider, as it was asked for.
        exact: whether every picture is decoded at full size.
    """

    def __init__(
        self, path: FilePath | None = None, *, threads: int = 1, provider: str = "cpu", exact: bool = False
    ) -> None:
        """Open a model file.

        Args:
            path: an ONNX file made by retina-export; None: see ``find_model``.
            threads: threads within one prediction, 1 or more. Keep 1 if several photographs are scored at once.
            provider: onnxruntime execution provider: ``cpu``, ``cuda``, ``openvino``, ``coreml``, ...
            exact: decode every picture at full size. Otherwise pictures much larger than the network's input are
                decoded at reduced size; on 12 originals probabilities moved by up to 0.03 (docs/scoring.md).

        Raises:
            ModelFileError: the file cannot be read, does not match its ``.sha256`` file, or does not keep the contract.
            UsageError: ``threads`` below 1, or the provider is not installed or cannot be started.
        """
        if threads < 1:
            raise UsageError(f"threads: expected a number from 1, found {threads}")
        self.path = find_model(path)
        self.provider, self.exact = provider, exact
        content = read_model(self.path)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.digest_known = check_digest(self.path, self.sha256)
        self._session, self.contract = open_checked(self.path, content, threads, provider)
        self._second_look = threading.Lock()
        self._at_least = None if exact else least_side(self.contract.preprocessing)

    def content(self) -> bytes:
        """Read the bytes of the file again.

        Raises:
            ModelFileError: the file cannot be read, or has changed since it was opened.
        """
        content = read_model(self.path)
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise ModelFileError(f"{self.path}: expected sha256 {self.sha256} as opened, found {found}. Start again.")
        return content

    def predict(self, source: Source, *, maps: bool = True) -> Prediction:
        """Predict for one photograph.

        Unless ``exact``, a large picture is reduced: a JPEG file by its decoder, other files and Pillow images by
        averaging, an array not at all, so that their answers for one photograph differ a little. If a decision is then
        within ``CLOSE_CALL`` of changing, it is predicted again at full size, so that decisions hardly depend on the
        reduction. To bound memory, only one picture at a time is predicted again, and its memory is returned to the
        system.

        Args:
            source: a path, the bytes of a file in any buffer, decoded pixels (H, W, 3) uint8 RGB, or a Pillow image, to
                which its EXIF orientation is applied as to a file.
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
        with_novelty = self.contract.unfamiliar_from is not None
        names = [DR_PROBS, ME_PROBS, *([NOVELTY] if with_novelty else [])]
        names += [DR_CAM_PER_GRADE, ME_CAM_PER_LABEL] if with_maps else []
        try:
            found = self._session.run(names, {INPUT_NAME: pixels[None]}, handing_back() if hand_back else None)
        except Exception as err:  # noqa: BLE001 - onnxruntime's exceptions share no other root
            reason = f"the model could not take this picture of {pixels.shape}: {first_line(err)}"
            raise PictureError(f"{self.path}: {reason}", reason) from None
        outputs = {name: output[0] for name, output in zip(names, found, strict=True)}
        dr, me, novelty = outputs[DR_PROBS], outputs[ME_PROBS], outputs.get(NOVELTY)
        if not (np.isfinite(dr).all() and np.isfinite(me).all()):
            raise ModelFileError(f"{self.path}: expected probabilities, found {dr} and {me}")
        if novelty is not None:
            novelty = float(novelty)
            if not math.isfinite(novelty):
                raise ModelFileError(f"{self.path}: expected a finite {NOVELTY}, found {novelty}")
        if not with_maps:
            return Prediction.of(self.contract, dr, me, novelty=novelty)
        cams: dict[str, NDArray[np.float32]] = {}
        for head, probs, per_class in (
            ("dr", dr, outputs[DR_CAM_PER_GRADE]), ("me", me, outputs[ME_CAM_PER_LABEL])
        ):  # fmt: skip
            asked = (of or {}).get(head)
            cams[head] = per_class[probs.argmax() if asked is None else self.contract.classes(head).index(asked)]
        return Prediction.of(self.contract, dr, me, cams, novelty)

    def score(self, paths: Iterable[FilePath], *, workers: int | None = None, maps: bool = False) -> Iterator[Scored]:
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
        if isinstance(paths, str | os.PathLike):
            raise TypeError(f"expected several paths, found one: {paths}; use predict")
        return ordered_map(lambda path: self.score_file(path, maps=maps), paths, workers_or_cores(workers))

    def score_file(self, source: FilePath | Buffer, *, maps: bool = False) -> Scored:
        """Score one file, given by its path or as bytes (the result's ``source`` is then empty).

        An unreadable photograph becomes a ``Scored`` with an error.
        """
        name = "" if isinstance(source, Buffer) else source
        try:
            return Scored(name, self.predict(source, maps=maps), None)
        except PictureError as err:
            return Scored(name, None, err.reason)


def _pixels(source: Source, at_least: int | None) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _checked_pixels(source)
    from PIL.Image import Image

    from .picture import decode, from_image

    if isinstance(source, Buffer):
        return decode(bytes(source), at_least=at_least)
    if isinstance(source, (str, os.PathLike)):
        return decode(os.fspath(source), at_least=at_least)
    if isinstance(source, Image):
        return from_image(source, at_least=at_least)
    raise TypeError(f"expected a path, bytes, an array or a Pillow image, found {type(source).__name__}")


def _checked_pixels(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    fits = pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= MIN_SIDE
    if not fits or pixels.dtype != np.uint8:
        raise PictureError(
            f"array: expected (H, W, 3) uint8 RGB of at least {MIN_SIDE} pixels a side, found {pixels.shape} "
            f"{pixels.dtype}"
        )
    return np.ascontiguousarray(pixels)
