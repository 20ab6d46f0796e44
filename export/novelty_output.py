"""The output ``novelty`` of a finished model file: fitted to photographs, and added to the graph.

Novelty is a squared Mahalanobis distance, as Lee et al. (NeurIPS 2018) use to tell pictures of another kind: the mean
over each channel of an early feature map is centred and scaled, and the distance is taken in the directions in which
photographs of retinas vary most, and divided by the number of directions. It is therefore 1 on average for the
photographs that it was fitted to.

An early map (the output of ``layer2``) shows colours and textures, which other cameras share, and not yet what the
network grades. Measured in docs/recipe.md, "Unfamiliar pictures".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..runtime.contract import NOVELTY, Contract
from ..runtime.errors import ModelFileError, ParityError, PictureError, UsageError
from ..runtime.model import RetinaModel
from ..runtime.output_file import remove_leftovers
from ..runtime.picture import decode
from ..runtime.progress import tracked
from ..runtime.workers import ordered_map, workers_or_cores
from .photographs import spread
from .placing import replacing_model, write_beside
from .probe import open_probe
from .to_onnx import OnnxFile

FITTED_TO = 1024
"""Largest number of photographs that novelty is fitted to, evenly spread."""
AT_LEAST = 100
"""Fewest photographs that the command fits it to."""
DIRECTIONS = 24
"""Directions in which the distance is taken: with 16 or 48, photographs of other cameras and pictures without a retina
were less far apart."""
UNFAMILIAR_FROM = 10.0
"""The contract's ``unfamiliar_from``: above the photographs of a camera that novelty was not fitted to, and below
pictures without a retina (docs/recipe.md, "Unfamiliar pictures")."""
COMPARED_ON = 16
"""How many of the photographs the written file is compared on."""
MOST_APART = 1e-3
"""Largest difference of a probability from the former file's, and relative difference of novelty from the one
computed."""

_LEAST_SCALE = 0.03
"""Added to each channel's standard deviation, as a share of that of all. A channel that hardly varies would otherwise
count as much as any, and in int8 its rounding with it."""
_LEAST_VARIANCE = 1e-9
"""Smallest variance along a direction, as a share of the largest: below, photographs do not differ in it."""
_POOLED, _AXES, _WEIGHT, _BIAS, _WHITENED, _AXIS = (
    f"{NOVELTY}_{part}" for part in ("pooled", "axes", "weight", "bias", "whitened", "axis")
)


@dataclass(frozen=True)
class Novelty:
    """What turns pooled features f (N, C) into novelty (N,): ``sum((f @ weight + bias) ** 2)``."""

    weight: NDArray[np.float64]
    """(C, D)"""
    bias: NDArray[np.float64]
    """(D,)"""

    @classmethod
    def fit(cls, features: NDArray[np.floating], directions: int = DIRECTIONS) -> Novelty:
        """Fit to the pooled features (N, C) of photographs, whose mean novelty is then (N - 1) / N.

        Raises:
            UsageError: they differ in fewer directions.
        """
        x = features.astype(np.float64)
        centre = x.mean(axis=0)
        scale = x.std(axis=0) + _LEAST_SCALE * x.std()
        variances, axes = np.linalg.eigh(np.cov((x - centre) / scale, rowvar=False))  # in rising order
        variances, axes = variances[::-1][:directions], axes[:, ::-1][:, :directions]
        if variances[-1] <= _LEAST_VARIANCE * variances[0]:
            raise UsageError(f"expected photographs that differ in {directions} ways or more, found fewer; add others")
        weight = axes / np.sqrt(variances * directions) / scale[:, None]
        return cls(weight, -centre @ weight)

    def of(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """The novelty (N,) of pooled features (N, C)."""
        distances: NDArray[np.float64] = np.square(features @ self.weight + self.bias).sum(axis=1)
        return distances


def add_novelty(model: RetinaModel, photographs: Sequence[Path], out: Path) -> tuple[Contract, NDArray[np.float64]]:
    """Write a model file anew, with the output ``novelty`` or with a new one in its place. The answers stay the same.

    Args:
        model: the file.
        photographs: what it was trained on; up to ``FITTED_TO`` of them are used.
        out: the file to write, with its sha256 and contract beside it.

    Returns:
        the new file's contract, and the novelty (N,) of the photographs used.

    Raises:
        ModelFileError: the file was not made by retina-export, or changed since it was opened.
        UsageError: photographs cannot be read, or are too much alike.
        ParityError: the new file's answers are not the former ones.
        OutputError: a file cannot be written.
    """
    used = spread(photographs, FITTED_TO)
    graph = onnx.load_from_string(model.content())
    add_pooling(graph.graph, model.path)
    features = pooled_features(graph, used)
    novelty = Novelty.fit(features)
    _add(graph.graph, novelty)
    contract = replace(
        model.contract,
        unfamiliar_from=UNFAMILIAR_FROM,
        provenance={**model.contract.provenance, "novelty": f"fitted to {len(used)} photographs"},
    )
    computed = novelty.of(features)
    remove_leftovers(out.parent)
    with replacing_model(out) as temporary:
        OnnxFile(graph).write(temporary, contract)
        places = spread(range(len(used)), COMPARED_ON)
        _compare(model, RetinaModel(temporary), [used[place] for place in places], computed[places], out)
    write_beside(out, contract)
    return contract, computed


def pooled_features(model: onnx.ModelProto, photographs: Sequence[Path]) -> NDArray[np.float32]:
    """The features (N, C) of photographs that novelty is made from, by a model with ``add_pooling``.

    Raises:
        UsageError: photographs cannot be read; all of them are listed.
    """
    probe = open_probe(model, [_POOLED])

    def run(photograph: Path) -> NDArray[np.float32] | PictureError:
        try:
            return probe(decode(photograph))[0]
        except PictureError as err:
            return err

    found = list(tracked(ordered_map(run, photographs, workers_or_cores(None)), "Measuring", len(photographs)))
    if faults := [str(row) for row in found if isinstance(row, PictureError)]:
        raise UsageError("expected photographs, found some that cannot be read; remove them:\n  " + "\n  ".join(faults))
    return np.concatenate([row for row in found if not isinstance(row, PictureError)])


def _add(graph: onnx.GraphProto, novelty: Novelty) -> None:
    graph.initializer.extend(
        [
            numpy_helper.from_array(novelty.weight.astype(np.float32), _WEIGHT),
            numpy_helper.from_array(novelty.bias.astype(np.float32), _BIAS),
            numpy_helper.from_array(np.array([1], np.int64), _AXIS),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Gemm", [_POOLED, _WEIGHT, _BIAS], [_WHITENED], name=_WHITENED),
            helper.make_node("ReduceSumSquare", [_WHITENED, _AXIS], [NOVELTY], name=NOVELTY, keepdims=0),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(NOVELTY, TensorProto.FLOAT, ["N"]))


def add_pooling(graph: onnx.GraphProto, path: Path) -> None:
    """Add the mean over height and width of what the first convolution of ``layer3`` sees; takes out a former novelty.

    Raises:
        ModelFileError: there is no such convolution; ``path`` is for the message.
    """
    for parts in (graph.node, graph.initializer, graph.output):
        kept = [part for part in parts if part.name.partition("_")[0] != NOVELTY]
        del parts[:]
        parts.extend(kept)
    weight = "model.backbone.layer3.0.conv1.weight"
    found = [node.input[0] for node in graph.node if node.op_type == "Conv" and node.input[1].startswith(weight)]
    if len(found) != 1:
        raise ModelFileError(f"{path}: expected the network that retina-export writes, found {weight} missing")
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), _AXES))
    graph.node.append(helper.make_node("ReduceMean", [found[0], _AXES], [_POOLED], name=_POOLED, keepdims=0))


def _compare(
    before: RetinaModel, after: RetinaModel, photographs: Sequence[Path], computed: NDArray[np.float64], out: Path
) -> None:
    """Compare the new file's probabilities with the former file's, and its novelty with the one computed.

    Raises:
        ParityError: they differ by more than ``MOST_APART``.
    """
    for path, expected in zip(tracked(photographs, "Comparing"), computed, strict=True):
        pixels = decode(path)
        old, new = (model.predict_pixels(pixels, maps=False) for model in (before, after))
        probs = [abs(new.dr_probs[grade] - old.dr_probs[grade]) for grade in old.dr_probs]
        apart = max(*probs, abs(new.me_prob - old.me_prob), abs((new.novelty or 0.0) / expected - 1.0))
        if not apart <= MOST_APART:
            raise ParityError(
                f"{out}: expected the probabilities of {before.path.name} and the novelty computed (within "
                f"{MOST_APART:g}, novelty relative), found {path.name} {apart:.2g} apart; nothing was written"
            )
