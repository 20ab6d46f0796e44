"""How long overlays of camera originals take, compared with decoding and forward passes alone.

    python benchmarks/gradcam.py --checkpoint artifacts/retina_multitask_best.pth --photographs FOLDER --count 100

Without --photographs it draws one of 12 megapixels. "plain" decodes every photograph at full size and passes it through
the network; "overlays" is what retina-gradcam does: two overlays, a panel and a row for each. They take turns, so that
other load on the machine affects both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import get_args

import click
import torch
from PIL import Image
from retina.gradcam.explainer import CheckpointExplainer
from retina.gradcam.gallery import BATCH, Gallery
from retina.gradcam.item import GalleryItem
from retina.runtime.image_file import ImageFormat
from retina.runtime.picture import load
from retina.runtime.terminal import exit_codes
from retina.train.synthetic import photograph


def plain(explainer: CheckpointExplainer, photographs: list[GalleryItem]) -> None:
    """Decode each photograph at full size, again at the network's reduced size, and run the network, in batches."""
    with ThreadPoolExecutor(2) as pool:
        whole = [pool.submit(lambda path: load(path).size, each.path) for each in photographs]
        seen = [pool.submit(explainer.decode, each.path) for each in photographs]
        with torch.inference_mode():
            for i in range(0, len(seen), BATCH):
                pixels = [torch.from_numpy(future.result()).unsqueeze(0) for future in seen[i : i + BATCH]]
                explainer.model(torch.cat([explainer.preprocess(each) for each in pixels]))
        for future in whole:
            future.result()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds that ``work`` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@click.command(context_settings={"show_default": True})
@click.option("--checkpoint", type=click.Path(path_type=Path), default=Path("artifacts/retina_multitask_best.pth"))
@click.option("--photographs", "own", type=click.Path(path_type=Path, exists=True), help="[default: a drawn one]")
@click.option("--count", type=click.IntRange(1), default=100)
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--format", "image_format", type=click.Choice(get_args(ImageFormat)), default="jpeg")
@exit_codes("gradcam.py")
def main(checkpoint: Path, own: Path | None, count: int, rounds: int, threads: int, image_format: ImageFormat) -> None:
    """Compare the time that overlays take with that of decoding and forward passes alone."""
    torch.set_num_threads(threads)
    explainer = CheckpointExplainer(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        if own is None:
            Image.fromarray(photograph(3, 1, 4288, seed=0, source="larga").picture).save(
                f"{folder}/drawn.jpg", quality=92
            )
        files = sorted((own or Path(folder)).glob("*.jpg"))
        photographs = [GalleryItem(files[i % len(files)], str(i), str(i)) for i in range(count)]
        gallery = Gallery(Path(folder) / "out", image_format=image_format)
        contenders: dict[str, Callable[[list[GalleryItem]], object]] = {
            "plain: decoding and forward passes": partial(plain, explainer),
            f"overlays of both heads, {image_format}": partial(gallery.make, explainer),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for work in contenders.values():
            work(photographs[:BATCH])  # warm up
        for _ in range(rounds):
            for name, work in contenders.items():
                found[name].append(seconds(partial(work, photographs)))
    size = explainer.contract.preprocessing.image_size
    print(f"{count} photographs, {size} px, {threads} threads, {rounds} rounds")
    print(f"{'':<38}{'seconds':>8}{'cpu seconds':>18}")
    totals = {name: [sum(column) for column in zip(*each, strict=True)] for name, each in found.items()}
    base, *_ = totals.values()
    for name, (wall, cpu) in totals.items():
        print(f"{name:<38}{wall:8.2f}  x {wall / base[0]:.2f}{cpu:10.2f}  x {cpu / base[1]:.2f}")


if __name__ == "__main__":
    main()
