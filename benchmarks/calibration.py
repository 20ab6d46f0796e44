"""How well a model file's probabilities could be calibrated, by cross-validation on valid.

    python benchmarks/calibration.py DATA

What the file was calibrated with is taken back first. Each row then fits a scaling (train/scaling.py) to four fifths of
the patients and is judged on the others, in five folds, which are dealt several times; a figure is the mean of these.
Prints Markdown. The test split is not used, because this is for choosing the standard deviation of the biases' prior.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from retina.runtime.contract import Head
from retina.runtime.model import RetinaModel
from retina.runtime.options import PathName
from retina.runtime.terminal import exit_codes
from retina.runtime.weighted_metrics import UNLABELLED, calibration_error
from retina.train.calibration import scaling_of
from retina.train.data import read_dataset
from retina.train.evaluation import score_split
from retina.train.metrics import accuracy, auc, quadratic_kappa
from retina.train.predictions import Predictions
from retina.train.scaling import Scaling, fit_scaling
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

BIAS_SDS = (0.0, 0.06, 0.12, 0.25, 0.5)
FOLDS = 5


def logits_of(model: RetinaModel, p: Predictions, head: Head) -> Tensor:
    """The head's logits before its calibration, (N, K), but for a constant that each photograph has of its own."""
    return scaling_of(model.contract, head).undone(torch.from_numpy(p.probs(head)).clamp_min(1e-12).log())


def cross_validated(logits: Tensor, true: Tensor, patients: NDArray[np.str_], bias_sd: float, deal: int) -> Tensor:
    """The probabilities, (N, K), of scalings that were fitted without the photograph's patient."""
    found = torch.zeros_like(logits)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=deal)
    for rest, part in folds.split(logits, true, patients):
        found[part] = fit_scaling(logits[rest], true[rest], bias_sd)(logits[part]).softmax(1)
    return found


def figures(probs: Tensor, true: Tensor, from_index: int, grades: tuple[int, ...]) -> list[float]:
    """Negative log-likelihood, calibration error, accuracy, quadratic kappa and the AUC of ``from_index`` and above."""
    p, labels = probs.numpy(), true.numpy()
    answers, nll = p.argmax(1), -probs[torch.arange(len(true)), true].log().mean().item()
    kappa = quadratic_kappa(labels, answers, grades)
    area = auc((labels >= from_index).astype(np.int64), p[:, from_index:].sum(1))
    return [nll, calibration_error(p, labels), accuracy(labels, answers), kappa, area]


@click.command(context_settings={"show_default": True})
@click.argument("root", metavar="DATA", type=click.Path(path_type=Path, exists=True))
@click.option("--model", "file", type=PathName(), metavar="FILE", help="[default: as for retina-score]")
@click.option("--deals", type=click.IntRange(1), default=6, help="Times that the patients are dealt into folds.")
@exit_codes("calibration.py")
def main(root: Path, file: Path | None, deals: int) -> None:
    """Compare scalings of a model file's answers on DATA's valid split."""
    model = RetinaModel(file)
    contract = model.contract
    photos = read_dataset(root, splits=("valid",), known_grades=contract.dr_grades).splits["valid"].photos
    p = score_split(model, photos)
    click.echo("| head | scaling | negative log-likelihood | calibration error | accuracy | kappa | referral AUC |")
    click.echo("|---" * 7 + "|")
    for head in p.without_labels(contract.untrained_heads).labelled_heads:
        known = p.true(head) != UNLABELLED
        logits, true = logits_of(model, p, head)[known], torch.from_numpy(p.true(head)[known])
        patients = np.array(p.patients)[known]
        grades = contract.classes(head)
        from_index = sum(grade < (contract.referable_from if head == "dr" else 1) for grade in grades)
        rows = {"none": [Scaling(1.0, torch.zeros(len(grades)))(logits).softmax(1)]}
        for sd in BIAS_SDS:
            title = f"temperature, biases of sd {sd}" if sd else "temperature"
            rows[title] = [cross_validated(logits, true, patients, sd, deal) for deal in range(deals)]
        for title, found in rows.items():
            mean = np.mean([figures(probs, true, from_index, grades) for probs in found], axis=0)
            click.echo(f"| {head.upper()} | {title} | " + " | ".join(f"{value:.4f}" for value in mean) + " |")


if __name__ == "__main__":
    main()
