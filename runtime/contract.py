"""What a model file promises: the single definition of names, labels, preprocessing and decision rules.

The contract travels as JSON inside every model file: in ONNX metadata, TorchScript extra files and checkpoints. Whoever
reads a model reads its contract; nothing else says what an output means.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFileError

SCHEMA = 1
"""Raised when a reader of the previous schema could misread a file; see docs/embedding.md, "Versioning"."""
METADATA_KEY = "retina.contract"
"""Where the JSON is stored: the key in ONNX metadata, the file name among TorchScript's extra files."""

_DEPTH = 100
"""How far what a file records about itself may be nested."""

INPUT_NAME = "image"
DR_PROBS, ME_PROBS, DR_CAM, ME_CAM = "dr_probs", "me_probs", "dr_cam", "me_cam"
DR_CAM_PER_GRADE, ME_CAM_PER_LABEL = "dr_cam_per_grade", "me_cam_per_label"
"""Grad-CAM maps of every class, for callers that want another class than the predicted one. They are outputs to index
rather than selected by an input, because every runtime can fetch an output, while onnxruntime-web and OpenVINO cannot
set an optional input."""
NOVELTY = "novelty"
"""How unlike its training photographs the model finds a photograph: see ``Contract.unfamiliar_from``."""
MIN_SIDE = 32
"""Smallest height or width in pixels: a ResNet's last feature map has one cell per 32 pixels of its input."""
MAX_IMAGE_SIZE = 4096
"""Largest side in pixels of the square that a network sees: beyond it, one photograph fills a computer's memory."""

Head = Literal["dr", "me"]
HEADS: tuple[Head, Head] = ("dr", "me")
HEAD_NAMES = {"dr": "DR grade", "me": "ME risk"}
"""What each head answers, for people."""
MAX_DR_GRADE = 4
"""Highest grade of the International Clinical Diabetic Retinopathy scale (Wilkinson et al., Ophthalmology 2003)."""
ME_LABELS = ("no risk", "risk")
Framing = Literal["field", "squash"]
Surround = Literal["black", "kept"]
Resize = Literal["bilinear-antialias"]
Orientation = Literal["applied"]
Precision = Literal["fp32", "int8"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's R, G and B, of values in [0, 1], as torchvision's weights expect."""

INPUT = {"name": INPUT_NAME, "dtype": "uint8", "shape": ["N", "H", "W", 3], "colour": "RGB", "min_side": MIN_SIDE}


@dataclass(frozen=True)
class Preprocessing:
    """What the graph does to the decoded pixels. For information: callers must not repeat it.

    Raises:
        ModelFileError: an unknown ``framing``, ``resize``, ``exif_orientation`` or ``surround``, an ``image_size`` that
            is not a whole number from 32 to 4096, or a ``mean`` or ``std`` that is not three numbers, those of ``std``
            above 0.
    """

    framing: Framing = "field"
    """``field``: find the lit field and centre it in a square. ``squash``: the whole picture, aspect ratio ignored."""
    image_size: int = 384
    """Side of the square that the network sees, in pixels."""
    resize: Resize = "bilinear-antialias"
    """Pillow's BILINEAR, but without its rounding to whole grey levels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Normalisation of R, G and B, of pixel values divided by 255: ``(value / 255 - mean) / std``."""
    exif_orientation: Orientation = "applied"
    """The decoder applies it, before the graph sees the pixels."""
    surround: Surround = "black"
    """What becomes of the pixels around the field. ``black``: they are blackened, so that noise and captions there are
    not seen and do not shift the square. ``kept``: unchanged; always so for ``squash``, which finds no field."""

    @property
    def intermediate_size(self) -> int:
        """Side in pixels of the square that the graph first resizes a photograph to.

        For ``field`` it is 1.5 times ``image_size``, so that cropping to the lit field loses no detail as long as the
        field spans at least two thirds of each side. A decoder may discard resolution beyond this (picture.decode).
        """
        return (3 * self.image_size + 1) // 2 if self.framing == "field" else self.image_size

    def __post_init__(self) -> None:
        for name, choices in (
            ("framing", Framing), ("surround", Surround), ("resize", Resize), ("exif_orientation", Orientation)
        ):  # fmt: skip
            known, found = get_args(choices), getattr(self, name)
            _expect(f"preprocessing.{name}", found in known, " or ".join(known), found)
        for name, least in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, name)
            # Not math.isfinite, which fails on a whole number beyond the floating-point ones.
            finite = (type(v) in (int, float) and abs(v) <= sys.float_info.max and v > least for v in values)
            ok = len(values) == 3 and all(finite)
            _expect(f"preprocessing.{name}", ok, f"three numbers{' above 0' if name == 'std' else ''}", list(values))
        if self.framing == "squash":
            object.__setattr__(self, "surround", "kept")
        size_ok = isinstance(self.image_size, int) and MIN_SIDE <= self.image_size <= MAX_IMAGE_SIZE
        sizes = f"a whole number from {MIN_SIDE} to {MAX_IMAGE_SIZE}"
        _expect("preprocessing.image_size", size_ok, sizes, self.image_size)


@dataclass(frozen=True)
class Rule:
    """How probabilities become a decision.

    ``argmax``: the index with the largest probability.
    ``at_least``: yes if the summed probability of grade ``from_grade`` and above (for ME: of label 1) is at least
    ``threshold``.

    Raises:
        ModelFileError: an unknown ``rule``, a ``threshold`` that is not a number in [0, 1], or a ``from_grade`` that is
            not an integer in [0, ``MAX_DR_GRADE``].
    """

    rule: Literal["argmax", "at_least"] = "argmax"
    threshold: float | None = None
    """In [0, 1]."""
    from_grade: int | None = None
    """An original grade, not an index."""

    @property
    def level(self) -> float:
        """The threshold, or 0.5 if there is none."""
        return 0.5 if self.threshold is None else self.threshold

    def __post_init__(self) -> None:
        _expect("thresholds.*.rule", self.rule in ("argmax", "at_least"), "argmax or at_least", self.rule)
        if self.rule == "at_least" or self.threshold is not None:
            number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
            ok = number and 0.0 <= self.level <= 1.0
            _expect("thresholds.*.threshold", ok, "a number from 0 to 1", _quoted(self.threshold))
            object.__setattr__(self, "threshold", float(self.level))  # JSON may say 1 for 1.0
        grade = self.from_grade
        ok = grade is None or (type(grade) is int and 0 <= grade <= MAX_DR_GRADE)
        _expect("thresholds.*.from_grade", ok, f"a whole number from 0 to {MAX_DR_GRADE}", _quoted(grade))


def default_thresholds() -> dict[str, Rule]:
    """The default rules: the most probable DR grade and ME label; DR grade >= 2 and ME risk are referred from 0.5 on.

    A model whose thresholds were chosen refers at a screening operating point instead: see ``retina.train.screening``.
    """
    return {
        "dr": Rule(),
        "me": Rule(),
        "referable_dr": Rule("at_least", 0.5, from_grade=2),
        "referable_me": Rule("at_least", 0.5),
    }


@dataclass(frozen=True)
class Contract:
    """What a model file promises to whoever opens it.

    Raises:
        ModelFileError: another schema, or a field that is out of range; the message names it.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    dr_grades: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Original grade of each index of ``dr_probs``, in ascending order."""
    me_labels: tuple[str, ...] = ME_LABELS
    """Name of each index of ``me_probs``: always these."""
    thresholds: Mapping[str, Rule] = field(default_factory=default_thresholds)
    """The decision rule of each task: ``dr``, ``me``, ``referable_dr``, ``referable_me``."""
    precision: Precision = "fp32"
    explain: bool = False
    """Whether the file also has the Grad-CAM outputs: ``dr_cam`` and ``me_cam`` of the predicted class, and
    ``dr_cam_per_grade`` and ``me_cam_per_label`` of each class."""
    unfamiliar_from: float | None = None
    """The ``novelty`` from which a photograph is called unfamiliar: as unlike the training photographs as a picture
    without a retina. Novelty is at least 0, and 1 on average for training photographs (retina.export.novelty). None:
    the file has no such output."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Checkpoint sha256, run, data fingerprint, package version, metrics on valid and, for a training run, on test."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Comparison with PyTorch: number of images, largest difference, share of equal decisions."""
    schema: int = SCHEMA
    added_caution: str = ""
    """What the file itself cautions of beyond what follows from its other fields; part of ``caution``, on one line."""

    def __post_init__(self) -> None:
        _expect("schema", type(self.schema) is int and self.schema == SCHEMA, SCHEMA, _quoted(self.schema))
        caution = self.added_caution
        ok = isinstance(caution, str) and _is_portable_json(caution)
        _expect("caution", ok, "Unicode text", _quoted(caution))
        object.__setattr__(self, "added_caution", " ".join(caution.split()))
        grades = self.dr_grades
        ok = len(grades) >= 2 and all(type(g) is int and 0 <= g <= MAX_DR_GRADE for g in grades)
        ok = ok and list(grades) == sorted(set(grades))
        _expect("dr_grades", ok, f"two or more grades from 0 to {MAX_DR_GRADE} in rising order", list(grades))
        _expect("me_labels", self.me_labels == ME_LABELS, list(ME_LABELS), list(self.me_labels))
        _expect("explain", isinstance(self.explain, bool), "true or false", self.explain)
        level = self.unfamiliar_from
        if level is not None:
            ok = type(level) in (int, float) and 0 < level <= sys.float_info.max
            _expect("unfamiliar_from", ok, "a number above 0", _quoted(level))
            object.__setattr__(self, "unfamiliar_from", float(level))  # JSON may say 10 for 10.0
        for name in ("provenance", "parity"):
            found = getattr(self, name)
            _expect(name, isinstance(found, Mapping), "an object", found)
            _expect(
                name, _is_portable_json(found), f"finite numbers and Unicode text, nested up to {_DEPTH} times", found
            )
        _expect("precision", self.precision in get_args(Precision), "fp32 or int8", self.precision)
        tasks = sorted(default_thresholds())
        _expect(
            "thresholds", sorted(self.thresholds) == tasks, f"rules for {', '.join(tasks)}", sorted(self.thresholds)
        )
        for task, kind in (("dr", "argmax"), ("referable_dr", "at_least"), ("referable_me", "at_least")):
            _expect(f"thresholds.{task}", (rule := self.thresholds[task].rule) == kind, f"the rule {kind}", rule)

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """Name, dtype and shape of each output, in graph order."""
        out: list[dict[str, Any]] = [
            {"name": DR_PROBS, "dtype": "float32", "shape": ["N", len(self.dr_grades)]},
            {"name": ME_PROBS, "dtype": "float32", "shape": ["N", 2]},
        ]
        if self.explain:
            out += [{"name": name, "dtype": "float32", "shape": ["N", "h", "w"]} for name in (DR_CAM, ME_CAM)]
            classes = ((DR_CAM_PER_GRADE, len(self.dr_grades)), (ME_CAM_PER_LABEL, 2))
            out += [{"name": name, "dtype": "float32", "shape": ["N", k, "h", "w"]} for name, k in classes]
        if self.unfamiliar_from is not None:
            out.append({"name": NOVELTY, "dtype": "float32", "shape": ["N"]})
        return out

    @property
    def output_names(self) -> list[str]:
        return [output["name"] for output in self.outputs]

    @property
    def referable_from(self) -> int:
        """The lowest original grade that counts as referable DR."""
        from_grade = self.thresholds["referable_dr"].from_grade
        return 2 if from_grade is None else from_grade

    def classes(self, head: Head) -> tuple[int, ...]:
        """What each index of a head's probabilities stands for: an original DR grade, or 0 or 1 for the ME risk."""
        return self.dr_grades if head == "dr" else (0, 1)

    def class_names(self, head: Head) -> tuple[str, ...]:
        """The name of each index of a head's probabilities: the original DR grade as text, or the ME label."""
        return tuple(map(str, self.dr_grades)) if head == "dr" else self.me_labels

    @property
    def untrained_heads(self) -> tuple[Head, ...]:
        """Heads that never saw a label, as training recorded it: their answers mean nothing."""
        recorded = self.provenance.get("untrained_heads")
        return tuple(head for head in HEADS if isinstance(recorded, list) and head in recorded)

    @property
    def data_fingerprint(self) -> str:
        """Of the photographs and labels that the model was trained on; empty if it does not say."""
        recorded = self.provenance.get("data_fingerprint")
        return recorded if isinstance(recorded, str) else ""

    @property
    def caution(self) -> str:
        """What whoever uses the model must know about it, in sentences; empty if there is nothing."""
        return " ".join(filter(None, (self._own_caution, self.added_caution)))

    @property
    def _own_caution(self) -> str:
        told = []
        if named := " and ".join(head.upper() for head in self.untrained_heads):
            told.append(f"The model was never trained for {named}: what it says about {named} means nothing.")
        if max(self.dr_grades) < self.referable_from:
            told.append(f"The model knows no DR grade from {self.referable_from} on: it refers nobody for DR.")
        return " ".join(told)

    def to_json(self) -> str:
        body = asdict(self)
        del body["added_caution"]
        if self.unfamiliar_from is None:
            del body["unfamiliar_from"]
        body["thresholds"] = {task: _without_nones(asdict(rule)) for task, rule in self.thresholds.items()}
        body = {"schema": body.pop("schema"), "input": INPUT, "outputs": self.outputs, **body}
        if self.caution:  # written out for programs that embed the file
            body["caution"] = self.caution
        return json.dumps(body, indent=1, sort_keys=False, allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON values of ``to_json``."""
        body: dict[str, Any] = json.loads(self.to_json())
        return body

    @classmethod
    def from_json(cls, text: str, *, source: str = "the contract") -> Contract:
        """Read a contract, ignoring unknown keys, outputs and rules; ``source`` names the file in error messages.

        Raises:
            ModelFileError: not JSON, another schema, or a field that is missing or out of range.
        """
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as err:  # json also raises plain ones, for numbers of thousands of digits
            raise ModelFileError(f"{source}: expected a contract in JSON, found text that is not: {err}") from None
        if not isinstance(body, dict):
            raise ModelFileError(f"{source}: expected a contract as a JSON object, found {type(body).__name__}")
        schema = body.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise ModelFileError(
                f"{source}: contract schema: expected {SCHEMA}, found {schema}. A later version of retina-edge made "
                "the file: upgrade to it."
            )
        try:
            _expect("schema", type(schema) is int and schema == SCHEMA, SCHEMA, _quoted(schema))
            _expect("input", _known_keys(body.get("input") or {}, INPUT) == INPUT, INPUT, "another input")
            outputs = body.get("outputs")
            known = {f.name for f in fields(cls)} - {"added_caution", "unfamiliar_from"}
            _expect("fields", set(body) >= known, sorted(known), sorted(body))
            unfamiliar_from = body.get("unfamiliar_from")
            caution = body.get("caution") or ""
            body = {key: body[key] for key in known}
            rules = _known_keys(body.pop("thresholds"), default_thresholds())
            thresholds = {
                task: Rule(**{"rule": rule["rule"], **_known_keys(rule, asdict(Rule()))})
                for task, rule in rules.items()
            }
            # Files written before ME had a referral rule of its own refer it from 0.5 on.
            thresholds.setdefault("referable_me", default_thresholds()["referable_me"])
            # Graphs exported before the surround was blackened keep it.
            prep = {"surround": "kept", **_known_keys(body.pop("preprocessing"), asdict(Preprocessing()))}
            prep["mean"], prep["std"] = tuple(prep["mean"]), tuple(prep["std"])
            grades, labels = body.pop("dr_grades"), body.pop("me_labels")
            _expect("me_labels", isinstance(labels, list), list(ME_LABELS), labels)
            contract = cls(
                Preprocessing(**prep), tuple(grades), tuple(labels), thresholds, unfamiliar_from=unfamiliar_from, **body
            )
            named = [_known_keys(output, contract.outputs[0]) for output in outputs or []]
            promised = [output for output in named if output["name"] in contract.output_names]
            _expect("outputs", promised == contract.outputs, contract.outputs, outputs)
            _expect("caution", isinstance(caution, str), "text", caution)
            contract = replace(contract, added_caution=caution.replace(contract._own_caution, ""))
        except ModelFileError as err:
            raise ModelFileError(f"{source}: contract {err}. Export the model again with this version.") from None
        except (TypeError, KeyError, AttributeError, ValueError) as err:
            raise ModelFileError(f"{source}: contract cannot be read: {err}. Export the model again.") from None
        return contract


@dataclass(frozen=True)
class Decision:
    """What a contract's rules make of one photograph's probabilities."""

    grade: int
    """DR grade on the original scale: one of ``Contract.dr_grades``."""
    me_risk: int
    """0 or 1."""
    referable: bool
    """Whether DR is referable (by default: grade 2 or worse with a probability of at least 0.5)."""
    referable_prob: float
    """Summed probability of the referable grades, in [0, 1]."""
    referable_me: bool
    """Whether the macular edema risk is referable (by default: from a probability of 0.5)."""


DECISIONS = ("grade", "me_risk", "referable", "referable_me")
"""The fields of ``Decision`` that are decided, and not computed."""


def decide(contract: Contract, dr_probs: NDArray[np.floating], me_probs: NDArray[np.floating]) -> Decision:
    """Apply the contract's rules to one photograph's probabilities, dr_probs (K,) and me_probs (2,), in [0, 1]."""
    referable_from = contract.referable_from
    # In double precision, as the programs in examples/ compare: with a float32, NumPy would round the threshold.
    referable_prob = sum(float(p) for p, g in zip(dr_probs, contract.dr_grades, strict=True) if g >= referable_from)
    me_prob = float(me_probs[1])
    me_rule = contract.thresholds["me"]
    me_risk = int(np.argmax(me_probs)) if me_rule.rule == "argmax" else int(me_prob >= me_rule.level)
    return Decision(
        grade=contract.dr_grades[int(np.argmax(dr_probs))],
        me_risk=me_risk,
        referable=referable_prob >= contract.thresholds["referable_dr"].level,
        referable_prob=referable_prob,
        referable_me=me_prob >= contract.thresholds["referable_me"].level,
    )


def _expect(what: str, holds: bool, expected: object, found: object) -> None:
    if not holds:
        raise ModelFileError(f"{what}: expected {_short(expected)}, found {_short(found)}")


def _is_portable_json(value: object, depth: int = _DEPTH) -> bool:
    """Whether all readers of JSON take ``value``: Python's also takes NaN, halves of characters and endless nesting."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    parts = value if isinstance(value, list | tuple) else []
    return all(depth > 0 and _is_portable_json(part, depth - 1) for part in parts)


def _known_keys(found: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an object under known keys: a later version may have added others."""
    return {key: value for key, value in found.items() if key in known}


def _quoted(value: object) -> object:
    """Text in quotes, so that it is told from a number."""
    return repr(value) if isinstance(value, str) else value


def _short(value: object) -> str:
    text = str(value) if not isinstance(value, Sequence) or isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 200 else text[:200] + "..."


def _without_nones(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
