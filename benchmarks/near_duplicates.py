"""How well copies of photographs are told from other photographs, as retina-train looks for near-identical ones.

    python benchmarks/near_duplicates.py DATA

Prints a Markdown table: for each way to copy a photograph of valid, how many copies of how many are missed, because
both of the hashed views (train/perceptual_hash.py), the framed field and the whole, differ in more than NEAR_BITS
bits; how many would be by either view alone; and the bits in which the nearer view differs at most. The lines below it
count the pairs across splits, without those of one patient, whose nearer view differs in so few bits; and by a hash of
64 bits.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path

import click
import imagehash
import numpy as np
from PIL import Image
from retina.runtime.picture import decode, load
from retina.runtime.terminal import exit_codes
from retina.runtime.workers import usable_cores
from retina.train.data import read_dataset
from retina.train.leakage import NEAR_BITS
from retina.train.perceptual_hash import bits, distances, perceptual_hash, views

Copy = Callable[[Image.Image], Image.Image]
LEVELS = (0, NEAR_BITS, NEAR_BITS + 2, NEAR_BITS + 4, NEAR_BITS + 6)


def jpeg(quality: int, picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def shrunk(side: int, picture: Image.Image) -> Image.Image:
    return picture.resize((side, side))


def cropped(share: float, picture: Image.Image) -> Image.Image:
    """Without ``share`` of the width at left and right, and of the height at top and bottom."""
    width, height = picture.size
    return picture.crop(
        (round(share * width), round(share * height), round((1 - share) * width), round((1 - share) * height))
    )


def wider(picture: Image.Image) -> Image.Image:
    """On a black 3:2 frame, as from a camera's wide sensor."""
    width, height = picture.size
    sensor = Image.new("RGB", (round(1.5 * height), height))
    sensor.paste(picture, ((sensor.width - width) // 2, 0))
    return sensor


COPIES: Mapping[str, Copy] = {
    "JPEG quality 50": partial(jpeg, 50),
    "10% brighter": lambda picture: picture.point(lambda level: 1.1 * level),
    "256 px, JPEG quality 75": lambda picture: jpeg(75, shrunk(256, picture)),
    "150 px": partial(shrunk, 150),
    "150 px, JPEG quality 95": lambda picture: jpeg(95, shrunk(150, picture)),
    "150 px, JPEG quality 75": lambda picture: jpeg(75, shrunk(150, picture)),
    "on a black 3:2 frame": wider,
    "the same, 150 px high, JPEG quality 75": lambda picture: jpeg(75, wider(shrunk(150, picture))),
    "1% cut off on each side": partial(cropped, 0.01),
    "2% cut off on each side": partial(cropped, 0.02),
}
"""The ways to copy a photograph, by the name of the row."""


def hashes(path: Path) -> tuple[str, str]:
    """The photograph's perceptual hash, and that of 64 bits of its framed field."""
    pixels = decode(path)
    return perceptual_hash(pixels), str(imagehash.phash(views(pixels)[0]))


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--every", type=click.IntRange(1), default=4, help="Copy every Nth photograph of valid.")
@exit_codes("near_duplicates.py")
def main(root: Path, every: int) -> None:
    """Measure what counts as near-identical on copies of DATA's photographs, and on different ones."""
    data = read_dataset(root)
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = {name: list(pool.map(hashes, split.paths)) for name, split in data.splits.items()}
        long = {name: bits(each for each, _ in both) for name, both in found.items()}
        originals = long["valid"][::every]
        click.echo("| copy | missed | by the field alone | by the whole alone | largest distance |")
        click.echo("|---" * 5 + "|")
        for title, copy in COPIES.items():

            def copied(path: Path, copy: Copy = copy) -> str:
                return perceptual_hash(np.array(copy(load(path))))

            copies = bits(pool.map(copied, data.splits["valid"].paths[::every]))
            apart = np.diagonal(distances(originals, copies), axis1=1, axis2=2)  # (2, n)
            nearer = apart.min(axis=0)
            missed, by_field, by_whole = ((each > NEAR_BITS).sum() for each in (nearer, *apart))
            click.echo(f"| {title} | {missed} of {len(copies)} | {by_field} | {by_whole} | {nearer.max():.0f} |")
    near, by_64 = [], []
    for a, b in combinations(data.splits, 2):
        patients = [np.array([photo.patient_key for photo in data.splits[name].photos]) for name in (a, b)]
        others = (patients[0][:, None] != patients[1]) | (patients[0][:, None] == "")
        near.append(distances(long[a], long[b]).min(axis=0)[others])
        short = [
            np.unpackbits(np.array([list(bytes.fromhex(each)) for _, each in found[name]], np.uint8), axis=1)
            for name in (a, b)
        ]
        by_64.append(sum(short[0][:, None, k] != short[1][None, :, k] for k in range(64))[others])
    pairs, few = np.concatenate(near), np.concatenate(by_64)
    click.echo("")
    for level in LEVELS:
        click.echo(f"pairs that differ in at most {level} bits: {(pairs <= level).sum()} of {pairs.size}")
    click.echo(f"by a hash of 64 bits, in at most {NEAR_BITS // 4}: {(few <= NEAR_BITS // 4).sum()}")


if __name__ == "__main__":
    main()
