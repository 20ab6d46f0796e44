"""A checkpoint recovered from a model file.

The weights are the file's as floats; those of an int8 file are rounded to 255 steps. Export folded batch-norm into the
convolutions. Each convolution gets a batch-norm again, with the mean and variance of its outputs on the photographs and
with a scale and shift that undo the normalisation, so that training can continue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from ..runtime.errors import ModelFileError, ParityError
from ..runtime.model import RetinaModel
from ..runtime.picture import decode
from ..runtime.progress import tracked
from ..train.checkpoint import Checkpoint
from ..train.framing import make_preprocess
from ..train.model import RetinaNet
from .photographs import spread

MEASURED_ON = 64
"""Photographs for the batch-norm statistics, spread evenly over the folder: in a ResNet-50 at 512 px they give at least
16,384 values for each channel."""
COMPARED_ON = 16
"""How many of these the checkpoint and the file are compared on."""
MOST_APART = {"fp32": 1e-4, "int8": 0.02}
"""Largest mean difference of a probability between checkpoint and file, by the file's precision. An int8 file also
rounds the activations between its layers, which the checkpoint does not: with the file that ships, it was 0.002."""
_OF_THE_FILE = ("checkpoint_sha256", "epoch", "metrics", "package_version", "recalibrated", "calibrated_on", "novelty")
"""Provenance that describes the checkpoint from which the file was made, or the file, and not the recovered one. A file
that was calibrated anew by hand may have the last."""


def recover(model: RetinaModel, photographs: Sequence[Path]) -> tuple[Checkpoint, float]:
    """Recover a checkpoint from a model file.

    Args:
        model: the file; it gets the pixels, decoded at full size, that the checkpoint gets.
        photographs: for the batch-norm statistics; similar to those that training will continue with.

    Returns:
        the checkpoint, and the mean absolute difference of its probabilities from the file's, of the head where it is
        larger.

    Raises:
        ModelFileError: the file was not made by retina-export, or changed since it was opened.
        PictureError: a photograph cannot be read.
        ParityError: the checkpoint's answers differ too much from the file's (``MOST_APART``).
    """
    contract = model.contract
    backbone = _backbone(model)
    net = RetinaNet(len(contract.dr_grades), backbone).eval()
    _fill(net, onnx.load_from_string(model.content()), model.path)
    preprocess = make_preprocess(contract.preprocessing)

    def inputs(paths: Sequence[Path], what: str) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        for path in tracked(paths, what):
            pixels = decode(path)
            yield pixels, preprocess(torch.from_numpy(pixels)[None])

    with torch.no_grad():
        _give_back_batch_norm(net, (x for _, x in inputs(photographs, "Measuring")))
        few = spread(photographs, COMPARED_ON)
        apart = float(np.mean([_apart(net(x), model, pixels) for pixels, x in inputs(few, "Comparing")], axis=0).max())
    if not apart <= MOST_APART[contract.precision]:
        raise ParityError(
            f"{model.path}: expected a checkpoint that answers as the file does, found probabilities "
            f"{apart:.4f} apart on average ({MOST_APART[contract.precision]} allowed)"
        )
    provenance = {key: value for key, value in contract.provenance.items() if key not in _OF_THE_FILE}
    own = replace(
        contract,
        precision="fp32",
        explain=False,
        unfamiliar_from=None,
        parity={},
        provenance={**provenance, "recovered_from": model.sha256},
    )
    return Checkpoint(net.state_dict(), backbone, own), apart


def _apart(logits: tuple[Tensor, Tensor], model: RetinaModel, pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean absolute difference of the DR and of the ME probabilities from the file's, for one photograph."""
    dr_probs, me_probs = (head.softmax(1)[0].numpy() for head in logits)
    said = model.predict(pixels, maps=False)
    dr_said = np.array([said.dr_probs[grade] for grade in model.contract.dr_grades])
    return float(np.abs(dr_probs - dr_said).mean()), abs(float(me_probs[1]) - said.me_prob)


def _backbone(model: RetinaModel) -> str:
    backbone = model.contract.provenance.get("backbone")
    if not isinstance(backbone, str):
        raise ModelFileError(f"{model.path}: expected a file of retina-export, which names its backbone, found no name")
    return backbone


def _fill(net: RetinaNet, model: onnx.ModelProto, path: Path) -> None:
    """Set weights and biases; each batch-norm only adds the bias that its convolution has in the file."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and all(name in values for name in node.input):
            values[node.output[0]] = _floats(*(values[name] for name in node.input))
    found: dict[str, NDArray[np.float32] | None] = {}
    for node in model.graph.node:
        weight = node.input[1].removesuffix("_DequantizeLinear_Output") if node.op_type == "Conv" else ""
        if weight.startswith("model."):
            convolution = weight.removeprefix("model.").removesuffix(".weight")
            kernel, bias = (values.get(name) for name in (*node.input, "")[1:3])
            if kernel is not None and len(node.input) < 3:  # the exporter drops a bias of zeros
                bias = np.zeros(len(kernel), np.float32)
            found |= {f"{convolution}.weight": kernel, f"{_batch_norm_of(convolution)}.bias": bias}
    batch_norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    sizes = {name: tuple(tensor.shape) for name, tensor in net.named_parameters()}
    for name, module in batch_norms.items():
        nn.init.constant_(module.weight, (1.0 + module.eps) ** 0.5)  # cancels a new batch-norm's division
        del sizes[f"{name}.weight"]
    found |= {name: values.get(f"model.{name}") for name in sizes if "_head." in name}
    for name in sorted(sizes.keys() | found.keys()):
        value = found.get(name)
        if value is None or value.shape != sizes.get(name):
            raise ModelFileError(
                f"{path}: expected the network that retina-export writes, found {name} missing or of another shape"
            )
    net.load_state_dict({name: torch.tensor(value) for name, value in found.items()}, strict=False)


def _floats(
    stored: NDArray[np.generic], scale: NDArray[np.float32], zero: NDArray[np.generic] | None = None
) -> NDArray[np.float32]:
    """DequantizeLinear of a constant, with one scale, or one for each entry of the first axis."""
    across = (-1, *[1] * (stored.ndim - 1)) if scale.ndim else ()
    shift = np.float32(0) if zero is None else zero.astype(np.float32).reshape(across)
    floats: NDArray[np.float32] = (stored.astype(np.float32) - shift) * scale.reshape(across)
    return floats


def _batch_norm_of(convolution: str) -> str:
    """The name, in torchvision's ResNets, of the batch-norm that follows a convolution."""
    return convolution.replace("downsample.0", "downsample.1").replace("conv", "bn")


def _give_back_batch_norm(net: RetinaNet, shown: Iterable[Tensor]) -> None:
    """Give each batch-norm the mean and variance of its input for ``shown``, and the scale and shift that undo them.

    ``shown`` are network inputs (N, 3, S, S), float32 and normalised.
    """
    modules = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {module: torch.zeros(3, module.num_features, dtype=torch.float64) for module in modules}

    def watch(module: nn.Module, given: tuple[Tensor]) -> None:
        x = given[0].double()  # (N, C, h, w)
        count = torch.full((x.shape[1],), x.numel() / x.shape[1], dtype=torch.float64)
        sums[module] += torch.stack([count, x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3))])  # type: ignore[index]

    hooks = [module.register_forward_pre_hook(watch) for module in modules]
    for x in shown:
        net(x)
    for hook in hooks:
        hook.remove()
    for module, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        module.running_mean = mean.float()
        module.running_var = variance.float()
        module.weight.copy_((variance + module.eps).sqrt())
        module.bias.add_(mean)
