"""A finished model file calibrated anew.

Only the constants of the heads' last layers change, so that neither PyTorch's weights nor another export is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ..runtime.contract import DR_PROBS, HEADS, ME_PROBS, Contract, Head
from ..runtime.errors import ModelFileError, ParityError
from ..runtime.model import RetinaModel
from ..runtime.output_file import remove_leftovers
from ..runtime.picture import decode
from ..runtime.progress import tracked
from ..runtime.workers import ordered_map, workers_or_cores
from ..train.calibration import fit_head, recorded, scaling_of
from ..train.data import Photo
from ..train.evaluation import score_split
from ..train.metrics import evaluate
from ..train.predictions import Predictions
from ..train.scaling import Scaling
from ..train.screening import heads_to_screen, screening_rules, sensitivity_of
from .photographs import spread
from .placing import replacing_model, write_beside
from .probe import open_probe
from .to_onnx import OnnxFile

COMPARED_ON = 64
"""How many of the photographs the written file is compared on, spread evenly over them."""
MOST_APART = 1e-4
"""Largest difference of a probability of the written file from the one computed, in fp32 and in int8, whose heads
compute in floats too."""
_INSTEAD = "Calibrate its checkpoint instead (python -m retina.train.averaging DATA CHECKPOINT), and export that."


@dataclass(frozen=True)
class LastLayer:
    """A head's last layer in a graph, whose constants hold its calibration."""

    factor: onnx.TensorProto
    """float32: its weight (K, H), or in int8 the scale of each row (K,)."""
    bias: onnx.TensorProto
    """(K,) float32."""
    logits: str
    """Name of its output, (N, K)."""

    @classmethod
    def of(cls, graph: onnx.GraphProto, head: Head, path: Path) -> LastLayer:
        """Find it under the names that retina-export gives.

        Raises:
            ModelFileError: it is not there, or not in floats; ``path`` is for the message.
        """
        layer = f"model.{head}_head.3"
        weight, scale, bias = f"{layer}.weight", f"{layer}.weight_scale", f"{layer}.bias"
        tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        nodes = [node for node in graph.node if node.op_type == "Gemm" and list(node.input[1:]) == [weight, bias]]
        factor = scale if scale in tensors else weight
        if missing := [name for name in (factor, bias) if name not in tensors] or ([] if nodes else [layer]):
            raise ModelFileError(
                f"{path}: expected the last layer of the {head.upper()} head as retina-export writes it, found "
                f"{' and '.join(missing)} missing. {_INSTEAD}"
            )
        return cls(tensors[factor], tensors[bias], nodes[0].output[0])

    def exchange(self, before: Scaling, after: Scaling) -> None:
        """Take the calibration ``before`` out of the constants, and fold ``after`` into them."""
        ratio = before.temperature / after.temperature
        factor, bias = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in (self.factor, self.bias))
        _set(self.factor, factor * ratio)
        _set(self.bias, (bias - before.bias.numpy()) * ratio + after.bias.numpy())


def recalibrate(
    model: RetinaModel,
    photos: tuple[Photo, ...],
    heads: Sequence[Head],
    out: Path,
    sensitivity: float | None = None,
) -> tuple[Contract, dict[str, Any]]:
    """Write a model file anew, calibrated to its own answers.

    Args:
        model: the file.
        photos: N that it was not trained on, whose grades are the model's.
        heads: those to calibrate; at least one of the photographs has a label for each.
        out: the file to write, with its sha256 and contract beside it.
        sensitivity: of these heads' referral thresholds, at least; None: each head's own (``sensitivity_of``).

    Returns:
        the new file's contract, and its figures on these photographs (``metrics.evaluate``).

    Raises:
        ModelFileError: the file was not made by retina-export, or changed since it was opened.
        PictureError: a photograph cannot be read.
        UsageError: photographs have DR grades but none is referable, or ME labels but no risk.
        ParityError: the new file's answers are not those that were computed.
        OutputError: a file cannot be written.
    """
    graph, contract = onnx.load_from_string(model.content()), model.contract
    layers = {head: LastLayer.of(graph.graph, head, model.path) for head in heads}
    said, logits = _answers(graph, contract, layers, photos)
    before = {head: scaling_of(contract, head) for head in heads}
    raw = {head: before[head].undone(logits[head]) for head in heads}
    after = {head: fit_head(head, raw[head], said.true(head)) for head in heads}
    probs = {head: after[head](raw[head]).softmax(1).float().numpy() for head in heads}
    computed = replace(said, dr_probs=probs.get("dr", said.dr_probs), me_probs=probs.get("me", said.me_probs))

    judged = computed.without_labels([head for head in HEADS if head not in heads])
    screened = heads_to_screen(contract, judged)
    asked = {head: sensitivity_of(contract, head) if sensitivity is None else sensitivity for head in screened}
    contract = recorded(contract, after, asked)
    contract = replace(contract, thresholds=screening_rules(contract, judged))
    figures = evaluate(computed, contract)
    facts = dict(contract.provenance)
    facts.pop("calibrated_on", None)
    facts["metrics"] = {"splits": {"valid": figures}}
    facts["recalibrated"] = (
        f"{' and '.join(head.upper() for head in heads)} on valid; the metrics are this file's own there, the parity "
        "of the file before"
    )
    contract = replace(contract, provenance=facts)

    for head, layer in layers.items():
        layer.exchange(before[head], after[head])
    remove_leftovers(out.parent)
    with replacing_model(out) as temporary:
        OnnxFile(graph).write(temporary, contract)
        _compare(temporary, photos, computed, out)
    write_beside(out, contract)
    return contract, figures


def _answers(
    model: onnx.ModelProto, contract: Contract, layers: Mapping[Head, LastLayer], photos: Sequence[Photo]
) -> tuple[Predictions, dict[Head, torch.Tensor]]:
    """The file's answers, and for each of ``layers`` the logits (N, K) float64 that they come from.

    The logits of a probability that rounds to 0 or 1 could not be computed from it. An overconfident network gives
    many such, and a new temperature would depend on them.
    """
    probe = open_probe(model, [DR_PROBS, ME_PROBS, *(layer.logits for layer in layers.values())])
    rows = ordered_map(lambda photo: probe(decode(photo.path)), photos, workers_or_cores(None))
    columns = zip(*tracked(rows, "Scoring", len(photos)), strict=True)
    dr, me, *logits = (np.concatenate(column) for column in columns)
    found = {head: torch.from_numpy(values).double() for head, values in zip(layers, logits, strict=True)}
    return Predictions.of(photos, contract.dr_grades, dr, me), found


def _compare(written: Path, photos: Sequence[Photo], computed: Predictions, out: Path) -> None:
    """Compare the written file's answers with those computed, those of a head that was not calibrated too.

    Raises:
        ParityError: they differ by more than ``MOST_APART``; ``out`` is for the message.
    """
    places = spread(range(len(photos)), COMPARED_ON)
    found = score_split(RetinaModel(written, exact=True), tuple(photos[place] for place in places))
    for head in HEADS:
        apart = float(np.abs(found.probs(head) - computed.probs(head)[places]).max())
        if not apart <= MOST_APART:
            raise ParityError(
                f"{out}: expected {head.upper()} probabilities within {MOST_APART} of those that its calibration "
                f"gives, found {apart:.2g} apart; nothing was written. {_INSTEAD}"
            )


def _set(tensor: onnx.TensorProto, values: NDArray[np.float64]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
