"""Two ways to the same maps: the checkpoint with torch, or an explain export with onnxruntime alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import Contract, Decision, decide
from ..runtime.errors import UsageError
from ..runtime.overlay import Head, HeadMap

if TYPE_CHECKING:
    from torch import Tensor

    from .cam import Method

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a model says about one photograph, and where that comes from."""

    decision: Decision
    dr_probs: Floats
    """(K,) in [0, 1]."""
    me_probs: Floats
    """(2,) in [0, 1]."""
    maps: Mapping[Head, HeadMap]


class Explainer(Protocol):
    """A model that says where its answers come from."""

    contract: Contract

    def explain(self, photographs: Sequence[Pixels]) -> list[Answer]:
        """Answer each photograph, (H, W, 3) uint8 RGB of any sizes."""
        ...


class CheckpointExplainer:
    """Grad-CAM of a training checkpoint: any class, layer and method."""

    def __init__(
        self,
        path: Path,
        heads: Sequence[Head],
        target: int | None = None,
        layers: Sequence[str] = ("layer4",),
        method: Method = "gradcam",
    ) -> None:
        """``target`` is the DR grade to explain (with the ME head alone: 0 or 1); None: what the model decides.

        Raises:
            ModelFileError: not a checkpoint that can be read.
            UsageError: no such grade or layer.
        """
        from ..train.checkpoint import load_checkpoint
        from ..train.framing import make_preprocess
        from .cam import GradCAM, find_layer

        checkpoint = load_checkpoint(path)
        self.contract = checkpoint.contract
        self._heads = heads
        self._asked = _asked_for(self.contract, heads, target)
        self._preprocess = make_preprocess(self.contract.preprocessing)
        self._cam = GradCAM(checkpoint.build_model(), layers, method)
        for layer in layers:
            find_layer(self._cam.model, layer)

    def explain(self, photographs: Sequence[Pixels]) -> list[Answer]:
        """One forward pass for all of them; see Explainer."""
        import torch

        # Photographs of a batch may differ in size until each has been framed.
        x = torch.cat([self._preprocess(torch.from_numpy(pixels).unsqueeze(0)) for pixels in photographs])
        maps = self._cam(x, [partial(self._score, head) for head in self._heads])  # for each head (N, h, w)
        probs = [logits.softmax(dim=1).numpy() for logits in self._cam.output]
        return [
            _answer(self.contract, self._asked, dr, me, {h: m[i] for h, m in zip(self._heads, maps, strict=True)})
            for i, (dr, me) in enumerate(zip(*probs, strict=True))
        ]

    def _score(self, head: Head, logits: tuple[Tensor, Tensor]) -> Tensor:
        from .cam import head_logit

        probs = [of_head.detach().softmax(dim=1).numpy() for of_head in logits]
        decisions = [decide(self.contract, dr, me) for dr, me in zip(*probs, strict=True)]
        return head_logit(head, [_index(self.contract, self._asked, head, each) for each in decisions])(logits)


def _asked_for(contract: Contract, heads: Sequence[Head], target: int | None) -> dict[Head, int]:
    """The class index that ``--target`` fixes: of the DR head, or of the ME head where it stands alone."""
    if target is None:
        return {}
    head: Head = "dr" if "dr" in heads else "me"
    labels = contract.dr_grades if head == "dr" else (0, 1)
    if target not in labels:
        raise UsageError(f"--target: expected one of {', '.join(map(str, labels))} for the {head} head, found {target}")
    return {head: labels.index(target)}


def _index(contract: Contract, asked: Mapping[Head, int], head: Head, decision: Decision) -> int:
    if head in asked:
        return asked[head]
    return contract.dr_grades.index(decision.dr_grade) if head == "dr" else decision.me_risk


def _answer(
    contract: Contract, asked: Mapping[Head, int], dr_probs: Floats, me_probs: Floats, values: Mapping[Head, Floats]
) -> Answer:
    decision = decide(contract, dr_probs, me_probs)
    maps: dict[Head, HeadMap] = {}
    for head, of_head in values.items():
        index = _index(contract, asked, head, decision)
        target = contract.dr_grades[index] if head == "dr" else index
        maps[head] = HeadMap(head, of_head, target, float((dr_probs if head == "dr" else me_probs)[index]))
    return Answer(decision, dr_probs, me_probs, maps)
