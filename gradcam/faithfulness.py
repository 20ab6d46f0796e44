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
from ..runtime.field import Field
from . import deletion, randomisation
from .cam import head_logit
from .explainer import Answer, CheckpointExplainer
from .interval import Interval, Statistic, bootstrap
from .lesions import MaskedPhotograph
from .pointing import Pointing, centre_prior, point

Floats = NDArray[np.float32]
MAP, CHANCE, CENTRE = "map", "chance", "centre"
"""What is measured: the model's map; as chance, a random point, a uniform map or a random map; and a Gaussian in the
centre."""


@dataclass(frozen=True)
class Figure:
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
    """The figure."""


@dataclass(frozen=True)
class Faithfulness:
    """Everything that was measured."""

    figures: Sequence[Figure]
    curves: Mapping[tuple[str, Head, str], NDArray[np.float64]]
    """By measure (deletion, insertion), head and map: (photographs, steps) probabilities at deletion.FRACTIONS."""

    def get(self, measure: str, lesion: str, head: Head, of: str) -> Figure | None:
        """The figure with these keys, or None."""
        return next(
            (f for f in self.figures if (f.measure, f.lesion, f.head, f.of) == (measure, lesion, head, of)), None
        )

    @property
    def depends_on_weights(self) -> bool:
        """The sanity check: with all weights redrawn, every head's maps differ from the trained model's.

        The upper end of the rank correlation's interval must be below ``randomisation.ALIKE_BELOW``. The check fails if
        all redrawn maps or all of the trained model are blank, because they show nothing.
        """
        last = [f for f in self.figures if f.measure == "redrawn" and f.of == list(randomisation.STAGES)[-1]]
        return all(figure.interval.high < randomisation.ALIKE_BELOW for figure in last)


def measure(
    explainer: CheckpointExplainer,
    photographs: Sequence[MaskedPhotograph],
    on_step: Callable[[], object] = lambda: None,
) -> Faithfulness:
    """Measure the maps of the explainer's heads, target, layers and method.

    Args:
        explainer: the model.
        photographs: with masks; at least two, or figures have no interval.
        on_step: called after each photograph, and after each stage of randomisation: see ``steps``.

    Raises:
        PictureError: a photograph cannot be decoded.
    """
    pointings: dict[tuple[str, Head], list[tuple[Pointing, Pointing]]] = {}
    curves: dict[tuple[str, Head, str], list[NDArray[np.float64]]] = {}
    inputs, answers = [], []
    for number, photograph in enumerate(photographs):
        pixels = explainer.decode(photograph.path)
        answer = explainer.explain([pixels])[0]
        field = Field.find(pixels, explainer.contract.preprocessing)
        for head, head_map in answer.maps.items():
            centre = centre_prior(head_map.values.shape)
            for kind, mask in photograph.masks.items():
                pair = point(head_map.values, field, mask), point(centre, field, mask)
                pointings.setdefault((kind, head), []).append(pair)
        image = torch.from_numpy(pixels).unsqueeze(0)
        x = explainer.preprocess(image)
        for key, curve in _curves(explainer, x, _lit(explainer, image), answer, number).items():
            curves.setdefault(key, []).append(curve)
        inputs.append(x)
        answers.append(answer)
        on_step()
    stacked = {key: np.stack(each) for key, each in curves.items()}
    figures = [figure for (kind, head), pairs in sorted(pointings.items()) for figure in _on_lesions(kind, head, pairs)]
    figures += [figure for head in explainer.heads for figure in _on_curves(head, stacked)]
    figures += _on_redrawn(explainer, torch.cat(inputs), answers, on_step)
    return Faithfulness(figures, stacked)


def steps(photographs: Sequence[MaskedPhotograph]) -> int:
    """How often ``measure`` calls ``on_step``."""
    return len(photographs) + len(randomisation.STAGES) * randomisation.DRAWS


def _lit(explainer: CheckpointExplainer, image: Tensor) -> Tensor:
    """(S, S) bool: the lit part of what the network sees."""
    framed = explainer.preprocess[0](image)[0].permute(1, 2, 0).round().byte().numpy()
    lit = Field.find(framed, replace(explainer.contract.preprocessing, framing="squash")).lit
    return torch.from_numpy(lit > 0.5) if (lit > 0.5).any() else torch.ones(lit.shape, dtype=torch.bool)


def _curves(
    explainer: CheckpointExplainer, x: Tensor, lit: Tensor, answer: Answer, number: int
) -> dict[tuple[str, Head, str], NDArray[np.float64]]:
    maps: dict[str, Floats] = {head: head_map.values for head, head_map in answer.maps.items()}
    shape = next(iter(maps.values())).shape
    # The random map has as few cells as the real one, so that it is as smooth and only its places are random.
    maps |= {CHANCE: np.random.default_rng(number).random(shape, np.float32), CENTRE: centre_prior(shape)}
    followed = deletion.curves(explainer.model, x, lit, maps)
    found = {}
    for head, head_map in answer.maps.items():
        contract = explainer.contract
        column = contract.classes(head).index(head_map.target) + (len(contract.dr_grades) if head == "me" else 0)
        for of, name in ((MAP, head), (CHANCE, CHANCE), (CENTRE, CENTRE)):
            deleted, inserted = followed[name]
            found["deletion", head, of] = deleted[:, column]
            found["insertion", head, of] = inserted[:, column]
    return found


def _on_lesions(kind: str, head: Head, pairs: Sequence[tuple[Pointing, Pointing]]) -> list[Figure]:
    columns = [(m.hit, m.chance_hit, c.hit, m.energy, m.area, c.energy) for m, c in pairs]
    samples = np.array(columns)  # (photographs, 6)

    def figure(name: str, of: str, value: Statistic) -> Figure:
        return Figure(name, kind, head, of, len(samples), bootstrap(samples, value))

    return [
        figure("pointing", MAP, lambda s: s[..., 0]),
        figure("pointing", CHANCE, lambda s: s[..., 1]),
        figure("pointing", CENTRE, lambda s: s[..., 2]),
        figure("pointing", f"{MAP} - {CHANCE}", lambda s: s[..., 0] - s[..., 1]),
        figure("pointing", f"{MAP} - {CENTRE}", lambda s: s[..., 0] - s[..., 2]),
        figure("lift", MAP, lambda s: s[..., 3] / s[..., 4]),
        figure("lift", CENTRE, lambda s: s[..., 5] / s[..., 4]),
        figure("lift", f"{MAP} / {CENTRE}", lambda s: s[..., 3] / s[..., 5]),
    ]


def _on_curves(head: Head, curves: Mapping[tuple[str, Head, str], NDArray[np.float64]]) -> list[Figure]:
    figures = []
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
        figures += [Figure(name, "", head, of, len(samples), bootstrap(samples, of_s)) for of, of_s in values.items()]
    return figures


def _on_redrawn(
    explainer: CheckpointExplainer, x: Tensor, answers: Sequence[Answer], on_step: Callable[[], object]
) -> list[Figure]:
    indices = {
        head: [explainer.contract.classes(head).index(answer.maps[head].target) for answer in answers]
        for head in explainer.heads
    }
    originals = {head: np.stack([answer.maps[head].values for answer in answers]) for head in explainer.heads}
    # For each head and stage, (photographs, 3): the sum of the correlations, how many pairs of maps they are from, and
    # how many of the redrawn models' maps are blank.
    sums = {(head, stage): np.zeros((len(x), 3)) for head in explainer.heads for stage in randomisation.STAGES}
    for seed in range(randomisation.DRAWS):
        for stage, model in randomisation.redrawn_models(explainer.model, explainer.untrained, seed):
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

    def figure(head: Head, stage: str, name: str, of: Statistic) -> Figure:
        return Figure(name, "", head, stage, len(x), bootstrap(sums[head, stage], of))

    return [
        figure(head, stage, name, of)
        for head in explainer.heads
        for stage in randomisation.STAGES
        for name, of in (("redrawn", _mean_of_seen), ("blank", _share_of_blank))
    ]


def _mean_of_seen(columns: NDArray[np.floating]) -> NDArray[np.floating]:
    return columns[..., 0] / columns[..., 1]


def _share_of_blank(columns: NDArray[np.floating]) -> NDArray[np.floating]:
    return columns[..., 2] / randomisation.DRAWS
