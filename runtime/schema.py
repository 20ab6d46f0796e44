"""The service's requests and answers, as its OpenAPI schema describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .limits import Limits
from .upload import DICOM, FIELD, FORM, OCTETS

BINARY = {"type": "string", "format": "binary"}


class ScoreQuery(BaseModel):
    """What a request for scores may ask for; anything else, such as a mistyped name, is refused."""

    model_config = ConfigDict(extra="forbid")
    maps: bool = False


class Map(BaseModel):
    """A Grad-CAM map of the most probable class over the framed square."""

    target: int
    """The class that it explains: a DR grade, or 0 or 1 for the ME risk."""
    values: list[list[float]]
    """(h, w), at least 0, in logits, rounded to six decimals."""


class Maps(BaseModel):
    dr: Map
    me: Map


class ScoredPhotograph(BaseModel):
    """A row of the table: a prediction, or the reason why there is none."""

    image: str
    """The file's name as it was sent; ``photograph`` if the body was the file itself."""
    status: Literal["ok", "error"]
    error: str
    dr_grade: int | None = None
    dr_probs: dict[str, float] | None = None
    me_risk: Literal[0, 1] | None = None
    me_prob: float | None = None
    referable: bool | None = None
    referable_prob: float | None = None
    referable_me: bool | None = None
    novelty: float | None = None
    """How unlike the model's training photographs this one is; left out if the model file cannot tell."""
    unfamiliar: bool | None = None
    maps: Maps | None = None


class Scores(BaseModel):
    """The answers for the photographs of one request, in the order sent."""

    model: str
    """sha256 of the model file."""
    photographs: list[ScoredPhotograph]


class ModelFacts(BaseModel):
    """Which model answers here."""

    sha256: str
    package: str
    """Version of retina-edge."""
    contract: dict[str, Any]
    """The contract in the model file: labels, decision rules, preprocessing, provenance."""


class Health(BaseModel):
    status: Literal["ok"]
    requests: int
    """Requests in progress now."""
    capacity: int
    """Number of requests in progress at which further ones are answered 429."""


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


_PICTURES = [f"image/{kind}" for kind in ("jpeg", "png", "tiff", "bmp", "webp", "jp2")]
"""Media types of the formats that the decoder reads; any other image/... is accepted too, and told by its bytes."""


def body_of(limits: Limits) -> Mapping[str, Any]:
    """OpenAPI's description of the body, written by hand: FastAPI would read a declared body whole, without a bound."""
    files = {"type": "array", "items": BINARY, "minItems": 1, "maxItems": limits.photographs}
    form = {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}
    raw = {name: {"schema": {**BINARY, "minLength": 1}} for name in (OCTETS, DICOM, *_PICTURES)}
    return {"required": True, "content": {FORM: {"schema": form}, **raw}}


def refusals_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}
