"""Do the maps show the lesions, do they show what the answer needs, and do they depend on what was learned?

Measured on photographs whose lesions were outlined by experts, as one table with 95% intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.contract import Head
from ..runtime.field import LitField
from . import deletion, randomisation
from .cam import head_logit
from .explainer import CheckpointExplainer, Explanation
from .interval import Interval, Statistic, bootstrap
from .lesions import MaskedPhotograph
from .pointing import Pointing, centre_prior, point

Floats = NDArray[np.float32]
MAP, CHANCE, CENTRE = "map", "chance", "centre"
"""What is measured: the model's map; as chance, a random point, a uniform map or a random map; and a Gaussian in the
centre."""


@dataclass(frozen=True)
class Measurement:
    """One cell of the table."""

    measure: str
    """``pointing`` (hit rate), ``lift`` (energy share / area share), ``deletion``, ``insertion`` (area under the curve
    of the explained class's probability), ``redrawn`` (rank correlation with the trained model's map, over the pairs of
    which neither is blank; NaN if there is none), ``blank`` (share of the redrawn models' maps that are blank)."""
    lesion: str
    """The masks' abbreviation; empty if the measure is not for one kind of lesion."""
    head: Head
    of: str
    """MAP, CHANCE, CENTRE, or a difference or ratio of two; for ``redrawn`` and ``blank``, the stage of randomisation:
    see ``randomisation.STAGES``."""
    photographs: int
    """Number of photographs measured."""
    interval: Interval
    """The value measured, and its 95% interval."""


@dataclass(frozen=True)
class Faithfulness:
    """Everything that was measured."""

    measurements: Sequence[Measurement]
    curves: Mapping[tuple[str, Head, str], NDArray[np.float64]]
    """By measure (deletion, insertion), head and map: (photographs, steps) probabilities at deletion.FRACTIONS."""

    def get(self, measure: str, lesion: str, head: Head, of: str) -> Measurement | None:
        """The measurement with these keys, or None."""
        return next(
            (f for f in self.measurements if (f.measure, f.lesion, f.head, f.of) == (measure, lesion, head, of)), None
        )

    @property
    def depends_on_weights(self) -> bool:
        """The sanity check: with all weights redrawn, every head's maps differ from the trained model's.

        The upper end of the rank correlation's interval must be below ``randomisation.ALIKE_BELOW``. The check fails if
        all redrawn maps or all of the trained model are blank, because they show nothing.
        """
        last = [f for f in self.measurements if f.measure == "redrawn" and f.of == list(randomisation.STAGES)[-1]]
        return all(measurement.interval.high < randomisation.ALIKE_BELOW for measurement in last)


def measure(
    explainer: CheckpointExplainer,
    photographs: Sequence[MaskedPhotograph],
    on_step: Callable[[], object] = lambda: None,
) -> Faithfulness:
    """Measure the maps of the explainer's heads, target, layers and method.

    Args:
        explainer: the model.
        photographs: with masks; at least two, or measurements have no interval.
        on_step: called after each photograph, and after each stage of randomisation: see ``steps``.

    Raises:
        PictureError: a photograph cannot be decoded.
    """
    pointings: dict[tuple[str, Head], list[tuple[Pointing, Pointing]]] = {}
    curves: dict[tuple[str, Head, str], list[NDArray[np.float64]]] = {}
    inputs, explanations = [], []
    for number, photograph in enumerate(photographs):
        pixels = explainer.decode(photograph.path)
        explanation = explainer.explain([pixels])[0]
        field = LitField.find(pixels, explainer.contract.preprocessing)
        for head, head_map in explanation.maps.items():
            centre = centre_prior(head_map.values.shape)
            for kind, mask in photograph.masks.items():
                pair = point(head_map.values, field, mask), point(centre, field, mask)
                pointings.setdefault((kind, head), []).append(pair)
        image = torch.from_numpy(pixels).unsqueeze(0)
        x = explainer.preprocess(image)
        for key, curve in _curves(explainer, x, _lit(explainer, image), explanation, number).items():
            curves.setdefault(key, []).append(curve)
        inputs.append(x)
        explanations.append(explanation)
        on_step()
    stacked = {key: np.stack(each) for key, each in curves.items()}
    measurements = [one for (kind, head), pairs in sorted(pointings.items()) for one in _on_lesions(kind, head, pairs)]
    measurements += [one for head in explainer.heads for one in _on_curves(head, stacked)]
    measurements += _on_redrawn(explainer, torch.cat(inputs), explanations, on_step)
    return Faithfulness(measurements, stacked)


def steps(photographs: Sequence[MaskedPhotograph]) -> int:
    """How often ``measure`` calls ``on_step``."""
    return len(photographs) + len(randomisation.STAGES) * randomisation.DRAWS


def _lit(explainer: CheckpointExplainer, image: Tensor) -> Tensor:
    """(S, S) bool: the lit part of what the network sees."""
    framed = explainer.preprocess[0](image)[0].permute(1, 2, 0).round().byte().numpy()
    lit = LitField.find(framed, replace(explainer.contract.preprocessing, framing="squash")).lit
    return torch.from_numpy(lit > 0.5) if (lit > 0.5).any() else torch.ones(lit.shape, dtype=torch.bool)


def _curves(
    explainer: CheckpointExplainer, x: Tensor, lit: Tensor, explanation: Explanation, number: int
) -> dict[tuple[str, Head, str], NDArray[np.float64]]:
    maps: dict[str, Floats] = {head: head_map.values for head, head_map in explanation.maps.items()}
    shape = next(iter(maps.values())).shape
    # The random map has as few cells as the real one, so that it is as smooth and only its places are random.
    maps |= {CHANCE: np.random.default_rng(number).random(shape, np.float32), CENTRE: centre_prior(shape)}
    followed = deletion.curves(explainer.model, x, lit, maps)
    found = {}
    for head, head_map in explanation.maps.items():
        contract = explainer.contract
        column = contract.classes(head).index(head_map.target) + (len(contract.dr_grades) if head == "me" else 0)
        for of, name in ((MAP, head), (CHANCE, CHANCE), (CENTRE, CENTRE)):
            deleted, inserted = followed[name]
            found["deletion", head, of] = deleted[:, column]
            found["insertion", head, of] = inserted[:, column]
    return found


def _on_lesions(kind: str, head: Head, pairs: Sequence[tuple[Pointing, Pointing]]) -> list[Measurement]:
    columns = [(m.hit, m.chance_hit, c.hit, m.energy, m.area, c.energy) for m, c in pairs]
    samples = np.array(columns)  # (photographs, 6)

    def measurement(name: str, of: str, value: Statistic) -> Measurement:
        return Measurement(name, kind, head, of, len(samples), bootstrap(samples, value))

    return [
        measurement("pointing", MAP, lambda s: s[..., 0]),
        measurement("pointing", CHANCE, lambda s: s[..., 1]),
        measurement("pointing", CENTRE, lambda s: s[..., 2]),
        measurement("pointing", f"{MAP} - {CHANCE}", lambda s: s[..., 0] - s[..., 1]),
        measurement("pointing", f"{MAP} - {CENTRE}", lambda s: s[..., 0] - s[..., 2]),
        measurement("lift", MAP, lambda s: s[..., 3] / s[..., 4]),
        measurement("lift", CENTRE, lambda s: s[..., 5] / s[..., 4]),
        measurement("lift", f"{MAP} / {CENTRE}", lambda s: s[..., 3] / s[..., 5]),
    ]


def _on_curves(head: Head, curves: Mapping[tuple[str, Head, str], NDArray[np.float64]]) -> list[Measurement]:
    measurements = []
    for name in ("deletion", "insertion"):
        areas = [[deletion.area_under(curve) for curve in curves[name, head, of]] for of in (MAP, CHANCE, CENTRE)]
        samples = np.array(areas).T  # (photographs, 3)
        values: dict[str, Statistic] = {
            MAP: lambda s: s[..., 0],
            CHANCE: lambda s: s[..., 1],
            CENTRE: lambda s: s[..., 2],
            f"{MAP} - {CHANCE}": lambda s: s[..., 0] - s[..., 1],
            f"{MAP} - {CENTRE}": lambda s: s[..., 0] - s[..., 2],
        }
        measurements += [
            Measurement(name, "", head, of, len(samples), bootstrap(samples, of_s)) for of, of_s in values.items()
        ]
    return measurements


def _on_redrawn(
    explainer: CheckpointExplainer, x: Tensor, explanations: Sequence[Explanation], on_step: Callable[[], object]
) -> list[Measurement]:
    indices = {
        head: [explainer.contract.classes(head).index(explanation.maps[head].target) for explanation in explanations]
        for head in explainer.heads
    }
    originals = {
        head: np.stack([explanation.maps[head].values for explanation in explanations]) for head in explainer.heads
    }
    # For each head and stage, (photographs, 3): the sum of the correlations, how many pairs of maps they are from, and
    # how many of the redrawn models' maps are blank.
    sums = {(head, stage): np.zeros((len(x), 3)) for head in explainer.heads for stage in randomisation.STAGES}
    for seed in range(randomisation.DRAWS):
        for stage, model in randomisation.redrawn_models(explainer.model, explainer.fresh_network, seed):
            cam = replace(explainer.cam, model=model)
            for start in range(0, len(x), 8):
                part = slice(start, start + 8)
                maps = cam(x[part], [head_logit(head, indices[head][part]) for head in explainer.heads])
                for head, of_head in zip(explainer.heads, maps, strict=True):
                    original = originals[head][part]
                    is_seen = of_head.any(axis=(1, 2))
                    both = is_seen & original.any(axis=(1, 2))
                    correlation = randomisation.similarity(original, of_head)
                    sums[head, stage][part] += np.stack([correlation * both, both, ~is_seen], axis=1)
            on_step()

    def measurement(head: Head, stage: str, name: str, of: Statistic) -> Measurement:
        return Measurement(name, "", head, stage, len(x), bootstrap(sums[head, stage], of))

    return [
        measurement(head, stage, name, of)
        for head in explainer.heads
        for stage in randomisation.STAGES
        for name, of in (("redrawn", _mean_of_seen), ("blank", _share_of_blank))
    ]


def _mean_of_seen(columns: NDArray[np.floating]) -> NDArray[np.floating]:
    return columns[..., 0] / columns[..., 1]


def _share_of_blank(columns: NDArray[np.floating]) -> NDArray[np.floating]:
    return columns[..., 2] / randomisation.DRAWS
