"""How long overlays of camera originals take, against forward passes and decoding alone.

    python benchmarks/gradcam.py --checkpoint artifacts/retina_multitask_best.pth --photographs FOLDER --count 100

Without --photographs it draws one of 12 megapixels. "plain" decodes every photograph at its own size and passes it
through the network; "overlays" is what retina-gradcam does: two overlay PNGs, a panel and a row for each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from retina.gradcam.explainer import CheckpointExplainer
from retina.gradcam.gallery import BATCH, Gallery, Photograph
from retina.runtime.picture import decode
from retina.train.synthetic import photograph


def plain(explainer: CheckpointExplainer, photographs: list[Photograph]) -> float:
    """Seconds to decode each photograph whole, decode it as the network wants it, and pass it through, in batches."""
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        whole = [pool.submit(lambda path: decode(path).shape, each.path) for each in photographs]
        seen = [pool.submit(explainer.decode, each.path) for each in photographs]
        with torch.inference_mode():
            for i in range(0, len(seen), BATCH):
                pixels = [torch.from_numpy(future.result()).unsqueeze(0) for future in seen[i : i + BATCH]]
                explainer.model(torch.cat([explainer.preprocess(each) for each in pixels]))
        for future in whole:
            future.result()
    return time.perf_counter() - start


def overlays(explainer: CheckpointExplainer, photographs: list[Photograph], folder: Path) -> float:
    start = time.perf_counter()
    Gallery(folder).make(explainer, photographs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/retina_multitask_best.pth"))
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    explainer = CheckpointExplainer(options.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        if options.photographs is None:
            Image.fromarray(photograph(3, 1, 4288, seed=0, source="larga").picture).save(
                f"{folder}/drawn.jpg", quality=92
            )
        files = sorted((options.photographs or Path(folder)).glob("*.jpg"))
        photographs = [Photograph(files[i % len(files)], str(i), str(i)) for i in range(options.count)]
        plain(explainer, photographs[:BATCH])  # warm up
        base, drawn = plain(explainer, photographs), overlays(explainer, photographs, Path(folder) / "out")
    print(f"{options.count} photographs, {explainer.contract.preprocessing.image_size} px, {options.threads} threads")
    print(f"plain: decoding and forward passes   {base:7.2f} s")
    print(f"overlays: both heads, at own size    {drawn:7.2f} s   x {drawn / base:.2f}")


if __name__ == "__main__":
    main()
