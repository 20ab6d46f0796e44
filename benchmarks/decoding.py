"""How decoding a photograph at a fraction of its size changes the answers, compared with decoding at full size.

    python benchmarks/decoding.py MODEL.onnx PHOTOGRAPHS

For each fraction: the largest difference of a probability, as maximum and mean over the photographs; the largest change
of the most probable grade's lead over the second; and on how many photographs a decision changed. Prints a Markdown
table for docs/scoring.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from retina.runtime import Prediction, RetinaModel
from retina.runtime.contract import DECISIONS
from retina.runtime.folder import find_pictures
from retina.runtime.picture import decode
from retina.runtime.terminal import exit_codes

FRACTIONS: Mapping[str, int] = {"a quarter": 4, "a half": 2}


def probabilities(answer: Prediction) -> list[float]:
    """The probability of every grade, and of ME risk."""
    return [*answer.dr_probs.values(), answer.me_prob]


def lead(answer: Prediction, first: int, second: int) -> float:
    """By how much the probability of grade ``first`` exceeds that of grade ``second``."""
    return answer.dr_probs[first] - answer.dr_probs[second]


def decisions(answer: Prediction) -> tuple[object, ...]:
    """All decisions about a photograph."""
    return tuple(getattr(answer, name) for name in DECISIONS)


@click.command()
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path, exists=True))
@click.argument("photographs", metavar="FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False))
@exit_codes("decoding.py")
def main(model_file: Path, photographs: Path) -> None:
    """Compare the answers to photographs that were decoded at a fraction of their size with those to the whole."""
    files = [photographs / name for name in find_pictures(photographs).names]
    model = RetinaModel(model_file, exact=True)
    square = model.contract.preprocessing.intermediate_size
    found: dict[str, list[tuple[float, float, float, bool]]] = {name: [] for name in FRACTIONS}
    for file in files:
        pixels = decode(file)
        whole = model.predict_pixels(pixels)
        second, first = sorted(whole.dr_probs, key=whole.dr_probs.__getitem__)[-2:]
        for name, divisor in FRACTIONS.items():
            side = min(pixels.shape[:2]) // divisor
            answer = model.predict_pixels(decode(file, at_least=side))
            pairs = zip(probabilities(whole), probabilities(answer), strict=True)
            change = max(abs(a - b) for a, b in pairs)
            of_lead = abs(lead(whole, first, second) - lead(answer, first, second))
            found[name].append((side / square, change, of_lead, decisions(whole) != decisions(answer)))
    print(f"{model.path.name}, sha256 {model.sha256[:12]}, {len(files)} photographs of {photographs.name}\n")
    print("| decoded at | multiple of the square | largest change | mean | of the lead | decisions that turned |")
    print("|---" * 6 + "|")
    for name, rows in found.items():
        multiples, changes, leads, turned = zip(*rows, strict=True)
        figures = f"{max(changes):.4f} | {np.mean(changes):.4f} | {max(leads):.4f}"
        print(f"| {name} | {min(multiples):.2f} | {figures} | {sum(turned)} of {len(files)} |")


if __name__ == "__main__":
    main()
