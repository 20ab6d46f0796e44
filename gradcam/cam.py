"""Grad-CAM, Grad-CAM++ and HiResCAM of any layer of any model, as arrays.

The maps of a single layer are raw: not divided by their own maximum, so that two photographs can be compared and a
blank map stays blank. With A a layer's output and G the gradient of the explained score with respect to A, both
(N, C, h, w):

    gradcam     relu(sum_c mean_hw(G) A)         Selvaraju et al., ICCV 2017
    gradcam++   relu(sum_c w_c A)                Chattopadhay et al., WACV 2018, equation 19
    hirescam    relu(sum_c G A)                  Draelos and Carin, 2020
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..runtime.contract import HEADS, Head
from ..runtime.errors import UsageError

Method = Literal["gradcam", "gradcam++", "hirescam"]
METHODS: tuple[Method, ...] = get_args(Method)
Target = Callable[[Any], Tensor]
"""What to explain: a function from the model's output for a batch to one score per picture, (N,)."""


def head_logit(head: Head, index: int | Sequence[int] | Tensor | None = None) -> Target:
    """A target: a head's logit of class ``index`` (one for all pictures, or one each), or its largest logit (None).

    Raises:
        UsageError: no such head.
    """
    if head not in HEADS:
        raise UsageError(f"head: expected one of {', '.join(HEADS)}, found {head!r}")

    def score(output: tuple[Tensor, Tensor]) -> Tensor:
        logits = output[HEADS.index(head)]  # (N, K)
        if index is None:
            return logits.amax(dim=1)
        chosen = torch.as_tensor(index, device=logits.device).expand(len(logits))
        return logits.gather(1, chosen.unsqueeze(1)).squeeze(1)

    return score


@dataclass
class GradCAM:
    """Maps that show where a model's score comes from.

    >>> cam = GradCAM(checkpoint.build_model(), ["layer4"])
    >>> dr, me = cam(x, [head_logit("dr"), head_logit("me")])  # x (N, 3, S, S) -> two arrays (N, S / 32, S / 32)

    The model is left as it was, also after an error: hooks are removed, modules return to train or eval mode, and no
    ``.grad`` is touched.

    Raises:
        UsageError: an unknown method, no layer, or a layer that does not exist.
    """

    model: nn.Module
    layers: Sequence[str] = ("layer4",)
    """Names as in ``find_layer``."""
    method: Method = "gradcam"
    output: Any = field(default=None, init=False)
    """The model's output in the latest call, detached from its graph."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method: expected one of {', '.join(METHODS)}, found {self.method!r}")
        if not self.layers:
            raise UsageError("layers: expected at least one, found none")
        self._modules()

    def __call__(self, x: Tensor, targets: Sequence[Target]) -> list[NDArray[np.float32]]:
        """Explain each target, with one forward pass for all of them.

        Args:
            x: the model's input, a batch (N, ...).
            targets: what to explain, for example ``[head_logit("dr")]``.

        Returns:
            for each target (N, h, w) float32, at least 0. For a RetinaNet's layer4 and ``head_logit``, the maps of
            ``gradcam`` and ``hirescam`` are in logits: before the ReLU, a map sums to the logit without its biases.
            Other maps have no such unit. With several layers, each map is scaled to [0, 1] (a blank one stays 0),
            resized to the h and w of the largest, averaged and scaled again. The grad-cam package averages them at the
            input's size instead.

        Raises:
            UsageError: a layer is not called exactly once, or its output is not (N, C, h, w) or has one place only.
        """
        # Detached parameters: no graph is built below the first layer, and no ``.grad`` is written.
        weights = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        with torch.inference_mode(False), torch.enable_grad(), _recorded(self.model, self._modules()) as activations:
            output = torch.func.functional_call(self.model, weights, (x,))
            kept = [_only(calls, name) for calls, name in zip(activations, self.layers, strict=True)]
            maps = []
            for target in targets:
                gradients = torch.autograd.grad(target(output).sum(), kept, retain_graph=True, materialize_grads=True)
                maps.append(_combine([_cam(a.detach(), g, self.method) for a, g in zip(kept, gradients, strict=True)]))
        self.output = tuple(t.detach() for t in output) if isinstance(output, tuple) else output.detach()
        return [m.cpu().numpy() for m in maps]

    def _modules(self) -> list[nn.Module]:
        return [find_layer(self.model, name) for name in self.layers]


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """A module by its dotted name, with or without ``backbone.``; ``layer4[-1].conv3`` is accepted as well.

    Raises:
        UsageError: no such module; the message lists those that exist where the name went wrong.
    """
    parts = re.sub(r"\[(-?\d+)\]", r".\1", name).split(".")
    module: nn.Module = model
    if parts[0] != "backbone" and isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        module = backbone
    for part in parts:
        children = dict(module.named_children())
        key = str(len(children) + int(part)) if re.fullmatch(r"-\d+", part) else part
        if key not in children:
            raise UsageError(f"layer {name}: expected one of {', '.join(children) or 'nothing more'}, found {part!r}")
        module = children[key]
    return module


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Record the outputs of each of ``layers`` as tensors with respect to which gradients can be taken."""
    calls: list[list[Tensor]] = [[] for _ in layers]

    def keep(into: list[Tensor], _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        point = output if output.requires_grad else output.detach().requires_grad_()
        into.append(point)
        return point.clone()  # the next module may change its input in place, as a ResNet's ReLUs do

    was_training = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_hook(partial(keep, into)) for layer, into in zip(layers, calls, strict=True)]
    try:
        model.eval()
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training


def _only(calls: list[Tensor], name: str) -> Tensor:
    if len(calls) != 1 or calls[0].ndim != 4:
        found = f"{len(calls)} outputs" if len(calls) != 1 else f"an output of shape {tuple(calls[0].shape)}"
        raise UsageError(f"layer {name}: expected one output (N, C, h, w) a forward pass, found {found}")
    if calls[0].shape[2:].numel() == 1:
        raise UsageError(
            f"layer {name}: expected an output of several places, found {tuple(calls[0].shape)}, whose map would be of "
            "one colour; give an earlier layer, such as layer4"
        )
    return calls[0]


def _cam(a: Tensor, g: Tensor, method: Method) -> Tensor:
    """Activations and gradients (N, C, h, w) -> (N, h, w), at least 0."""
    if method == "hirescam":
        return (g * a).sum(dim=1).relu()
    if method == "gradcam":
        weights = g.mean(dim=(2, 3), keepdim=True)
    else:
        squared = g * g
        total = a.sum(dim=(2, 3), keepdim=True)
        share = squared / (2 * squared + total * squared * g + 1e-6)  # 1e-6 as in the grad-cam package
        weights = (share * g.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * a).sum(dim=1).relu()


def _combine(maps: list[Tensor]) -> Tensor:
    if len(maps) == 1:
        return maps[0]
    largest = max((m.shape[1:] for m in maps), key=lambda shape: shape[0] * shape[1])
    resized = [F.interpolate(_stretched(m)[:, None], size=largest, mode="bilinear")[:, 0] for m in maps]
    return _stretched(torch.stack(resized).mean(dim=0))


def _stretched(m: Tensor) -> Tensor:
    """Scale maps (N, h, w), each to [0, 1], as the grad-cam package does; a blank map stays 0."""
    m = m - m.amin(dim=(1, 2), keepdim=True)
    return m / (1e-7 + m.amax(dim=(1, 2), keepdim=True))
