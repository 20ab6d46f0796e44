"""How fast retina-score is, compared with plain loops and with the upper bound that the cores allow.

    python benchmarks/score.py FOLDER... --model-fp32 F.onnx --model-int8 I.onnx --checkpoint C.pth

For each folder, all contenders take turns on the same photographs, round after round, so that other load on the machine
affects all of them:

    a  the original notebook's loop: Pillow decodes at full size, resizes; PyTorch eager, batches of 16, no workers
    b  a plain onnxruntime loop: Pillow decodes at full size, resizes; onnxruntime with its defaults, one by one
    c  retina-score, fp32          d  retina-score, int8
    e  the bound: cores divided by the core-seconds that decoding and the model take alone, on one thread

Efficiency is the rate of c or d divided by the bound. ``cpu ms`` is the CPU time per image, which other programs hardly
affect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import torch
from PIL import Image
from retina.runtime import RetinaModel
from retina.runtime.folder import find_pictures
from retina.runtime.terminal import exit_codes
from retina.runtime.workers import usable_cores
from retina.train.checkpoint import load_checkpoint

BATCH = 16


@dataclass
class Contender:
    """A way to score files, and the time that it has taken so far."""

    name: str
    run: Callable[[Sequence[Path]], object]
    images: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def turn(self, files: Sequence[Path]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.run(files)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        self.images += len(files)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.wall

    @property
    def cpu_each(self) -> float:
        """Processor seconds per image."""
        return self.cpu / self.images


def notebook(checkpoint: Path, cores: int) -> Callable[[Sequence[Path]], object]:
    """The loop of the original notebook: only the network, in eager mode, on squares resized by Pillow."""
    opened = load_checkpoint(checkpoint)
    model, preprocessing = opened.build_model(), opened.contract.preprocessing
    size = preprocessing.image_size
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]

    def run(files: Sequence[Path]) -> None:
        torch.set_num_threads(cores)
        for start in range(0, len(files), BATCH):
            batch = []
            for path in files[start : start + BATCH]:
                with Image.open(path) as image:
                    pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
                batch.append((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std)
            with torch.no_grad():
                model(torch.stack(batch))

    return run


def plain(model: Path, size: int) -> Callable[[Sequence[Path]], object]:
    """The simplest loop with onnxruntime."""
    session = ort.InferenceSession(str(model))

    def run(files: Sequence[Path]) -> None:
        for path in files:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            session.run(["dr_probs", "me_probs"], {"image": pixels[None]})

    return run


def score(model: RetinaModel, cores: int) -> Callable[[Sequence[Path]], object]:
    """What retina-score does, without its table."""
    return lambda files: list(model.score(files, workers=cores))


def alone(model: RetinaModel) -> Callable[[Sequence[Path]], object]:
    """Only decode and run the model, on this thread."""

    def run(files: Sequence[Path]) -> None:
        for path in files:
            model.predict_pixels(model.decode(path), maps=False)

    return run


def compare(folder: Path, fp32: RetinaModel, int8: RetinaModel, checkpoint: Path, images: int, rounds: int) -> None:
    cores = usable_cores()
    files = [folder / name for name in find_pictures(folder).names[:images]]
    files = (files * (images // len(files) + 1))[:images]
    size = fp32.contract.preprocessing.image_size
    a = Contender("a notebook's loop", notebook(checkpoint, cores))
    b = Contender("b plain onnxruntime", plain(fp32.path, size))
    ours = [
        Contender(f"{letter} retina-score {model.contract.precision}", score(model, cores))
        for letter, model in (("c", fp32), ("d", int8))
    ]
    bounds = [Contender(f"e alone {model.contract.precision}", alone(model)) for model in (fp32, int8)]
    contenders = [a, b, *ours, *bounds]
    for contender in contenders:  # warm up caches and memory arenas, not counted
        contender.run(files[:2])
    for _ in range(rounds):
        for contender in contenders:
            contender.turn(files)
    print(f"\n{folder}: {len(files)} photographs, {rounds} rounds, {size} px, {cores} cores")
    print(f"{'':<24}{'per second':>12}{'cpu ms':>9}{'to a':>8}{'to b':>8}{'efficiency':>12}{'by cpu':>9}")
    for contender in contenders:
        line = f"{contender.name:<24}{contender.rate:>12.2f}{1000 * contender.cpu_each:>9.1f}"
        if contender in ours:
            bound = bounds[ours.index(contender)]
            efficiency = contender.rate / (cores / bound.cpu_each)
            line += f"{contender.rate / a.rate:>8.2f}{contender.rate / b.rate:>8.2f}{efficiency:>12.2f}"
            line += f"{bound.cpu_each / contender.cpu_each:>9.2f}"
        print(line)


@click.command(context_settings={"show_default": True})
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model-fp32", type=click.Path(path_type=Path), required=True)
@click.option("--model-int8", type=click.Path(path_type=Path), required=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--images", type=click.IntRange(1), default=24, help="Photographs a turn.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Turns of each contender.")
@exit_codes("score.py")
def main(
    folders: tuple[Path, ...], model_fp32: Path, model_int8: Path, checkpoint: Path, images: int, rounds: int
) -> None:
    """Compare retina-score with plain loops and with the bound that the cores set."""
    fp32, int8 = RetinaModel(model_fp32), RetinaModel(model_int8)
    for folder in folders:
        compare(folder, fp32, int8, checkpoint, images, rounds)


if __name__ == "__main__":
    main()
