"""Two ways to make the same maps: from a checkpoint with torch, or from an explain export with onnxruntime alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import HEADS, Contract, Framing, Head
from ..runtime.errors import UsageError
from ..runtime.model import RetinaModel
from ..runtime.overlay import HeadMap, head_maps
from ..runtime.picture import decode
from ..runtime.prediction import Prediction
from ..runtime.second_look import least_side
from ..runtime.workers import usable_cores

if TYPE_CHECKING:
    from .cam import Method

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Explanation:
    """What a model says about one photograph, and where that comes from."""

    prediction: Prediction
    maps: Mapping[Head, HeadMap]
    """Of the heads that were explained."""


class Explainer(Protocol):
    """A model that can explain its answers."""

    contract: Contract

    def decode(self, path: Path, *, whole: bool = False) -> Pixels:
        """Decode a photograph for the model: (H, W, 3) uint8 RGB.

        Large ones are decoded at reduced size, as retina-score does, unless ``whole``. Raises the errors of
        ``picture.decode``.
        """
        ...

    def explain(self, photographs: Sequence[Pixels]) -> list[Explanation]:
        """Answer and explain each photograph, (H, W, 3) uint8 RGB; sizes may differ."""
        ...


class CheckpointExplainer:
    """Grad-CAM of a training checkpoint: any class, layer and method."""

    def __init__(
        self,
        path: Path,
        heads: Sequence[Head] = HEADS,
        target: int | None = None,
        layers: Sequence[str] = ("layer4",),
        method: Method = "gradcam",
        framing: Framing | None = None,
        image_size: int | None = None,
    ) -> None:
        """Open a checkpoint.

        Args:
            path: the checkpoint.
            heads: which heads to explain.
            target: the DR grade to explain (0 or 1 for the ME head alone); None: the most probable.
            layers: see ``GradCAM``.
            method: see ``GradCAM``.
            framing: how a bare state_dict was trained; None: as the notebook's.
            image_size: likewise, in pixels.

        Raises:
            ModelFileError: the file cannot be read or is not a checkpoint.
            UsageError: no such grade or layer, or the checkpoint was trained with another framing or image size.
        """
        import torch

        from ..train.checkpoint import assumption, load_checkpoint
        from ..train.framing import make_preprocess
        from ..train.model import RetinaNet
        from .cam import GradCAM, find_layer, head_logit

        checkpoint = load_checkpoint(path, framing=framing, image_size=image_size)
        self.contract = checkpoint.contract
        self.assumed = assumption(path, checkpoint, framing, image_size)
        """What was assumed of a bare state_dict, as lines to print."""
        # On a CPU, channels-last convolutions take three quarters of the time (ResNet-50, 512 px).
        self.model = checkpoint.build_model().to(memory_format=torch.channels_last)
        self.fresh_network = partial(RetinaNet, len(self.contract.dr_grades), checkpoint.backbone)
        """Makes the same network with random weights, as before training."""
        self.preprocess = make_preprocess(self.contract.preprocessing)
        self.heads = heads
        self._targets = _targets(self.contract, heads, target)
        asked = {head: self.contract.classes(head).index(label) for head, label in self._targets.items()}
        self._logits = [head_logit(head, asked.get(head)) for head in heads]
        self.cam = GradCAM(self.model, layers, method)
        last = self.model.backbone.layer4
        explained = [find_layer(self.model, layer) for layer in layers]
        self._sums_to_logit = method != "gradcam++" and explained in ([last], [last[-1]])

    def decode(self, path: Path, *, whole: bool = False) -> Pixels:
        """See Explainer."""
        return decode(path, at_least=None if whole else least_side(self.contract.preprocessing))

    def explain(self, photographs: Sequence[Pixels]) -> list[Explanation]:
        """See Explainer; one forward pass for all photographs."""
        import torch

        # The photographs may differ in size until each is framed.
        x = torch.cat([self.preprocess(torch.from_numpy(pixels).unsqueeze(0)) for pixels in photographs])
        maps = self.cam(x, self._logits)  # for each head (N, h, w)
        dr_probs, me_probs = (logits.softmax(dim=1).numpy() for logits in self.cam.output)  # (N, K), (N, 2)
        explanations = []
        for dr, me, *of_heads in zip(dr_probs, me_probs, *maps, strict=True):
            said = Prediction.of(self.contract, dr, me, dict(zip(self.heads, of_heads, strict=True)))
            explanations.append(Explanation(said, head_maps(said, self._targets, sums_to_logit=self._sums_to_logit)))
        return explanations


class OnnxExplainer:
    """Grad-CAM of an export with ``--explain``: any class, at the last layer, without torch."""

    def __init__(self, path: Path, heads: Sequence[Head] = HEADS, target: int | None = None) -> None:
        """Open the file; ``heads`` and ``target`` as for a checkpoint.

        Raises:
            ModelFileError: the file cannot be read, or does not keep its contract.
            UsageError: the file has no Grad-CAM outputs, or there is no such grade.
        """
        self._model = RetinaModel(path, threads=usable_cores())
        self.contract = self._model.contract
        self.heads = heads
        if not self.contract.explain:
            raise UsageError(
                f"{path}: expected a model that gives maps, found one that gives probabilities alone. "
                "Make one with:  retina-export --explain"
            )
        self._targets = _targets(self.contract, heads, target)

    def decode(self, path: Path, *, whole: bool = False) -> Pixels:
        """See Explainer."""
        return decode(path) if whole else self._model.decode(path)

    def explain(self, photographs: Sequence[Pixels]) -> list[Explanation]:
        """See Explainer; one photograph after the other, because sizes may differ."""
        explanations = []
        for pixels in photographs:
            said = self._model.predict_pixels(pixels, of=self._targets)
            maps = head_maps(said, self._targets)
            explanations.append(Explanation(said, {head: maps[head] for head in self.heads}))
        return explanations


def _targets(contract: Contract, heads: Sequence[Head], target: int | None) -> dict[Head, int]:
    """The class that ``--target`` names, by its head: the DR head, or the ME head if only that is explained."""
    if target is None:
        return {}
    head: Head = "dr" if "dr" in heads else "me"
    classes = contract.classes(head)
    if target not in classes:
        raise UsageError(
            f"--target: expected one of {', '.join(map(str, classes))} for the {head} head, found {target}"
        )
    return {head: target}
