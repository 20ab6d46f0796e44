"""The metrics, compared with scikit-learn and hand-computed numbers, plain and under resampling."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from retina.runtime import weighted_metrics
from retina.runtime.agreement import Confusion
from retina.runtime.contract import Contract, Rule, decide, default_thresholds
from retina.train.data import Photo
from retina.train.markdown import classes_table, figures_table
from retina.train.metrics import (
    classification_report,
    epoch_scores,
    evaluate,
    headline,
    quadratic_kappa,
    with_interval,
    write_metrics,
)
from retina.train.predictions import Decisions, Predictions
from retina.train.report import _counts_table, _figures_table
from sklearn import metrics as sk

CONTRACT = Contract()


def predictions(
    n: int = 120, seed: int = 0, per_patient: int = 2, sources: tuple[str, ...] = ("a", "b"), grades: int = 5
) -> Predictions:
    """Seeded predictions that lean towards the truth, with rounded probabilities, so that scores tie."""
    rng = np.random.default_rng(seed)
    dr_true = np.minimum(rng.choice(5, n, p=[0.5, 0.15, 0.2, 0.1, 0.05]), grades - 1)
    me_true = rng.integers(0, 2, n)
    dr = rng.dirichlet(np.ones(grades), n) + 0.5 * np.eye(grades)[dr_true]
    risk = np.clip(rng.random(n) * 0.7 + 0.3 * me_true, 0, 1).round(1)
    return Predictions(
        tuple(f"{i}.png" for i in range(n)),
        tuple(f"/photos/{i}.png" for i in range(n)),
        dr_true,
        me_true,
        (dr / dr.sum(axis=1, keepdims=True)).astype(np.float32),
        np.stack([1 - risk, risk], axis=1).astype(np.float32),
        tuple(sources[i % len(sources)] for i in range(n)),
        tuple(f"patient {i // per_patient}" for i in range(n)),
    )


def drawn_patients(p: Predictions, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One resample of patients in two forms: the rows that it repeats, and how often each photograph is among them."""
    rng = np.random.default_rng(seed)
    patients = sorted(set(p.patients))
    drawn = rng.choice(patients, len(patients))
    rows = np.array([i for patient in drawn for i, other in enumerate(p.patients) if other == patient])
    return rows, np.bincount(rows, minlength=len(p.patients)).astype(np.float64)


# ---- by hand


def test_quadratic_kappa_by_hand() -> None:
    # True 0 0 1 2, predicted 0 1 1 2: observed cost 1. By chance: rows (2, 1, 1), columns (1, 2, 1) over 4 photographs,
    # cost (2*2*1 + 2*1*4 + 1*1*1 + 1*1*1 + 1*1*4 + 1*2*1) / 4 = 20 / 4 = 5. Kappa = 1 - 1/5.
    assert quadratic_kappa(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), range(3)) == pytest.approx(0.8)
    assert quadratic_kappa(np.array([1, 1]), np.array([1, 1]), range(3)) == 0.0


def test_auc_by_hand() -> None:
    # Positives .8 .4 .4, negatives .4 .1: of 6 pairs, 4 are in order and 2 tie.
    true, score = np.array([1, 1, 1, 0, 0]), np.array([0.8, 0.4, 0.4, 0.4, 0.1])
    assert weighted_metrics.auc(true, score, np.ones((1, 5)))[0] == pytest.approx(5 / 6)
    # The negative at .1 drawn three times, one positive at .4 not at all: 8 pairs, 7 in order, 1 tie.
    assert weighted_metrics.auc(true, score, np.array([[1.0, 1, 0, 1, 3]]))[0] == pytest.approx(7.5 / 8)
    assert np.isnan(weighted_metrics.auc(np.ones(5, np.int64), score, np.ones((1, 5)))[0])
    assert np.isnan(weighted_metrics.auc(np.zeros(0, np.int64), np.zeros(0), np.ones((2, 0)))).tolist() == [True, True]


def test_calibration_error_by_hand() -> None:
    # Confidence .9 .9 in one of 15 bins (1 of 2 right), .6 .6 .6 .6 in another (4 of 4 right).
    # (2 |.5 - .9| + 4 |1 - .6|) / 6 = (.8 + 1.6) / 6
    confidence = np.array([0.9, 0.9, 0.6, 0.6, 0.6, 0.6])
    probs = np.stack([confidence, 1 - confidence], axis=1)
    true = np.array([0, 1, 0, 0, 0, 0])
    assert weighted_metrics.calibration_error(probs, true) == pytest.approx(0.4)
    # Gaps within a bin cancel, but not between bins: .9 right and .9 wrong balance.
    often = np.repeat([0, 1], [9, 1])
    assert weighted_metrics.calibration_error(probs[often], true[often]) == pytest.approx(0.0)
    n, mean_confidence, right = weighted_metrics.reliability(probs, true)
    assert n.sum() == 6
    np.testing.assert_allclose(mean_confidence[n > 0], [0.6, 0.9])
    np.testing.assert_allclose(right[n > 0], [1.0, 0.5])


def test_bins_are_fifteen() -> None:
    """.62 wrong and .68 right are in two of fifteen bins (from .6 and from .667 on), and would be in one of ten."""
    probs = np.array([[0.62, 0.38], [0.68, 0.32]])
    assert weighted_metrics.calibration_error(probs, np.array([1, 0])) == pytest.approx((0.62 + 0.32) / 2)


def test_bins_are_closed_at_their_upper_end() -> None:
    """.6 is 9/15, exactly in binary too, and so not in one bin with .62."""
    probs = np.array([[0.6, 0.4], [0.62, 0.38]])
    assert weighted_metrics.calibration_error(probs, np.array([0, 1])) == pytest.approx((0.4 + 0.62) / 2)
    n, confidence, right = weighted_metrics.reliability(np.array([[1.0, 0.0], [0.6, 0.4]]), np.array([0, 0]))
    assert n.tolist() == [0] * 8 + [1] + [0] * 5 + [1]
    assert (confidence[14], confidence[8], right[14]) == (1.0, 0.6, 1.0)


def test_calibration_chance_by_hand() -> None:
    # One answer at .75: right in 3 of 4 draws, with an error of .25, else wrong, with an error of .75.
    draws = weighted_metrics.calibration_chance(np.array([[0.75, 0.25]]), 4000, 0)
    np.testing.assert_allclose(np.unique(draws), [0.25, 0.75])
    assert (draws == 0.25).mean() == pytest.approx(0.75, abs=0.03)  # more than four standard errors
    # A hundred answers at .8, in one bin: the mean absolute deviation of Binomial(100, .8).
    expected = scipy.stats.binom(100, 0.8).expect(lambda right: abs(right / 100 - 0.8))
    draws = weighted_metrics.calibration_chance(np.tile([0.8, 0.2], (100, 1)), 4000, 0)
    assert draws.mean() == pytest.approx(expected, abs=0.002)
    # A hundred more in another bin add to it, because gaps of different bins do not cancel.
    both = np.concatenate([np.tile([0.8, 0.2], (100, 1)), np.tile([0.6, 0.4], (100, 1))])
    other = scipy.stats.binom(100, 0.6).expect(lambda right: abs(right / 100 - 0.6))
    assert weighted_metrics.calibration_chance(both, 4000, 0).mean() == pytest.approx((expected + other) / 2, abs=0.002)


# ---- against scikit-learn, plain and on a resample of patients


def _values(p: Predictions, contract: Contract = CONTRACT) -> dict[str, float]:
    body = evaluate(p, contract, n_bootstrap=1)["all"]
    return {
        f"{task}.{name}": figure["value"]
        for task in ("dr", "me", "referable_dr")
        for name, figure in body[task].items()
        if isinstance(figure, dict)
    }


def _references(p: Predictions) -> dict[str, float]:
    dr_pred, me_pred = p.dr_probs.argmax(1), p.me_probs.argmax(1)
    referable, score = p.dr_true >= 2, p.dr_probs[:, 2:].astype(np.float64).sum(1)
    return {
        "dr.accuracy": sk.accuracy_score(p.dr_true, dr_pred),
        "dr.balanced_accuracy": sk.balanced_accuracy_score(p.dr_true, dr_pred),
        "dr.kappa": sk.cohen_kappa_score(p.dr_true, dr_pred, weights="quadratic"),
        "me.accuracy": sk.accuracy_score(p.me_true, me_pred),
        "me.balanced_accuracy": sk.balanced_accuracy_score(p.me_true, me_pred),
        "me.auc": sk.roc_auc_score(p.me_true, p.me_probs[:, 1]),
        "me.sensitivity": sk.recall_score(p.me_true, me_pred),
        "me.specificity": sk.recall_score(p.me_true, me_pred, pos_label=0),
        "referable_dr.auc": sk.roc_auc_score(referable, score),
        "referable_dr.sensitivity": sk.recall_score(referable, score >= 0.5),
        "referable_dr.specificity": sk.recall_score(referable, score >= 0.5, pos_label=False),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_figure_is_scikit_learns(seed: int) -> None:
    p = predictions(seed=seed)
    values = _values(p)
    for name, reference in _references(p).items():
        assert values[name] == pytest.approx(reference, abs=1e-9), name


def test_balanced_accuracy_is_undefined_where_a_resample_lacks_a_class() -> None:
    """Or a model that never says risk would seem to reach 1 in the resamples without any."""
    never_risk = np.array([[[5.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [1.0, 0.0]]])
    found = weighted_metrics.balanced_accuracy(never_risk, np.array([0, 0, 1, weighted_metrics.UNLABELLED]))
    np.testing.assert_array_equal(found, [np.nan, 0.5])
    np.testing.assert_array_equal(weighted_metrics.balanced_accuracy(never_risk[:1], np.array([0, 0])), [1.0])
    np.testing.assert_array_equal(
        weighted_metrics.balanced_accuracy(np.zeros((1, 2, 2)), np.array([weighted_metrics.UNLABELLED])), [np.nan]
    )


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (lambda c, p, w: weighted_metrics.accuracy(c), lambda t, y, p: sk.accuracy_score(t, y)),
        (
            lambda c, p, w: weighted_metrics.balanced_accuracy(c, p.dr_true),
            lambda t, y, p: sk.balanced_accuracy_score(t, y),
        ),
        (
            lambda c, p, w: weighted_metrics.quadratic_kappa(c, range(5)),
            lambda t, y, p: sk.cohen_kappa_score(t, y, weights="quadratic"),
        ),
        (
            lambda c, p, w: weighted_metrics.auc(p.me_true, p.me_probs[:, 1], w),
            lambda t, y, p: sk.roc_auc_score(p.me_true, p.me_probs[:, 1]),
        ),
    ],
    ids=["accuracy", "balanced accuracy", "kappa", "auc"],
)
def test_weights_are_repeated_photographs(
    ours: Callable[..., NDArray[np.float64]], reference: Callable[..., float]
) -> None:
    p = predictions()
    pred = p.dr_probs.argmax(1)
    samples = [drawn_patients(p, seed) for seed in range(20)]
    weights = np.stack([counts for _, counts in samples])
    answers = ours(weighted_metrics.confusion(p.dr_true, pred, 5, weights), p, weights)
    for answer, (rows, _) in zip(answers, samples, strict=True):
        repeated = _rows(p, rows)
        assert answer == pytest.approx(reference(repeated.dr_true, pred[rows], repeated), abs=1e-9)


def _rows(p: Predictions, rows: NDArray[np.int64]) -> Predictions:
    def pick(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[i] for i in rows)

    return Predictions(
        pick(p.image_names), pick(p.paths), p.dr_true[rows], p.me_true[rows], p.dr_probs[rows], p.me_probs[rows],
        pick(p.sources), pick(p.patients),
    )  # fmt: skip


def test_per_class_figures_are_scikit_learns() -> None:
    p = predictions()
    body = evaluate(p, CONTRACT, n_bootstrap=1)["all"]
    for task, true, pred in (("dr", p.dr_true, p.dr_probs.argmax(1)), ("me", p.me_true, p.me_probs.argmax(1))):
        assert body[task]["confusion_matrix"] == sk.confusion_matrix(true, pred).tolist()
        expected = np.stack(sk.precision_recall_fscore_support(true, pred))
        rows = body[task]["classes"]
        found = [[*(row[key]["value"] for key in ("precision", "recall", "f1")), row["support"]] for row in rows]
        np.testing.assert_allclose(np.array(found).T, expected)


def test_a_classes_interval_is_that_of_its_figure_on_each_resample() -> None:
    p = predictions(200)
    true, said = p.dr_true == 2, p.dr_probs.argmax(1) == 2
    drawn = [drawn_patients(p, seed)[0] for seed in range(1500)]
    both, truly, predicted = (np.array([column[rows].sum() for rows in drawn]) for column in (true & said, true, said))
    row = evaluate(p, CONTRACT, n_bootstrap=1500)["all"]["dr"]["classes"][2]
    for name, plain in (
        ("precision", both / predicted), ("recall", both / truly), ("f1", 2 * both / (truly + predicted)),
    ):  # fmt: skip
        assert [row[name]["low"], row[name]["high"]] == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)


# ---- intervals


def test_interval_is_that_of_the_plain_bootstrap_by_patient() -> None:
    p = predictions(400, per_patient=4)
    right = p.dr_probs.argmax(1) == p.dr_true
    by_patient = right.reshape(-1, 4).mean(axis=1)
    rng = np.random.default_rng(99)
    plain = [by_patient[rng.integers(0, 100, 100)].mean() for _ in range(4000)]
    figure = evaluate(p, CONTRACT, n_bootstrap=4000)["all"]["dr"]["accuracy"]
    low, high = np.quantile(plain, [0.025, 0.975])
    assert (figure["low"] + figure["high"]) / 2 == pytest.approx((low + high) / 2, abs=0.004)
    assert figure["high"] - figure["low"] == pytest.approx(high - low, rel=0.08)  # a 90% interval is 16% narrower


def test_photographs_of_one_patient_are_not_counted_as_independent() -> None:
    alone = predictions(100, per_patient=1)
    four_times = _rows(alone, np.repeat(np.arange(100), 4))
    narrow = _rows(alone, np.repeat(np.arange(100), 4))
    narrow = Predictions(**{**vars(narrow), "patients": tuple(map(str, range(400)))})

    def width(p: Predictions) -> float:
        figure = evaluate(p, CONTRACT)["all"]["dr"]["accuracy"]
        return float(figure["high"] - figure["low"])

    assert width(four_times) == pytest.approx(width(alone), rel=0.1)
    assert width(narrow) == pytest.approx(width(alone) / 2, rel=0.15)


def test_seed_decides_the_intervals() -> None:
    p = predictions()
    assert evaluate(p, CONTRACT, n_bootstrap=50, seed=3) == evaluate(p, CONTRACT, n_bootstrap=50, seed=3)
    assert evaluate(p, CONTRACT, n_bootstrap=50, seed=3) != evaluate(p, CONTRACT, n_bootstrap=50, seed=4)


def test_resamples_in_portions_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    p = predictions()
    whole = evaluate(p, CONTRACT, n_bootstrap=50)
    monkeypatch.setattr("retina.train.metrics._WEIGHTS_AT_ONCE", 7 * 120)
    assert evaluate(p, CONTRACT, n_bootstrap=50) == whole


# ---- undefined figures


def test_one_class_only_leaves_figures_undefined_and_says_why() -> None:
    p = predictions(20)
    zeros = np.zeros(20, np.int64)
    p = Predictions(**{**vars(p), "dr_true": zeros, "me_true": zeros, "dr_probs": np.eye(5, dtype=np.float32)[zeros]})
    body = evaluate(p, CONTRACT, n_bootstrap=20)["all"]
    for task, name, why in (
        ("me", "auc", "one class"),
        ("me", "sensitivity", "no photograph with"),
        ("referable_dr", "auc", "one class"),
        ("dr", "kappa", "all one grade"),
    ):
        assert {key: body[task][name][key] for key in ("value", "low", "high")} == dict.fromkeys(
            ("value", "low", "high")
        )
        assert why in body[task][name]["why"]
    assert body["dr"]["accuracy"]["value"] == 1.0
    assert "resamples all agree" in body["dr"]["accuracy"]["why"]
    grade_4 = body["dr"]["classes"][4]
    assert [(grade_4[name]["value"], grade_4[name]["why"]) for name in ("precision", "recall", "f1")] == [
        (None, "never predicted"), (None, "never true"), (None, "never true and never predicted")
    ]  # fmt: skip


def test_a_figure_undefined_on_some_resamples_says_on_how_many() -> None:
    p = predictions(40, per_patient=1)
    me_true = np.zeros(40, np.int64)
    me_true[0] = 1  # drawn in 1 - (39/40)^40 = 64% of resamples
    figure = evaluate(Predictions(**{**vars(p), "me_true": me_true}), CONTRACT, n_bootstrap=500)["all"]["me"]["auc"]
    assert figure["low"] < figure["value"] < figure["high"]
    defined = int(figure["why"].split("from the ")[1].split(" of 500")[0])
    assert defined / 500 == pytest.approx(0.637, abs=0.08)


@pytest.mark.parametrize(
    ("share", "why"), [(40, "no interval: defined on 40 of 100"), (60, "interval from the 60 of 100 resamples")]
)
def test_half_of_the_resamples_make_an_interval(share: int, why: str) -> None:
    resampled = np.where(np.arange(100) < share, np.linspace(0.2, 0.8, 100), np.nan)
    figure = with_interval(0.5, resampled, 30, "")
    assert figure["why"].startswith(why)
    assert (figure["low"] is None) == (share < 50)


def test_one_patient_has_no_interval() -> None:
    p = predictions(20, per_patient=20)
    figure = evaluate(p, CONTRACT, n_bootstrap=20)["all"]["dr"]["accuracy"]
    assert figure["low"] is None
    assert "one patient" in figure["why"]


# ---- rules, sources, files


def test_decisions_are_the_contracts() -> None:
    p = predictions(grades=4)
    rules = default_thresholds() | {"me": Rule("at_least", 0.3), "referable_dr": Rule("at_least", 0.7, from_grade=3)}
    contract = Contract(dr_grades=(0, 1, 2, 4), thresholds=rules)
    found = Decisions.of(p, contract)
    for i in range(len(p.paths)):
        one = decide(contract, p.dr_probs[i], p.me_probs[i])
        assert (contract.dr_grades[found.dr_pred[i]], found.me_pred[i]) == (one.grade, one.me_risk)
        assert (found.referable_pred[i], found.referable_prob[i]) == (one.referable, one.referable_prob)
    assert found.referable_true.tolist() == (p.dr_true >= 3).tolist()
    body = evaluate(p, contract, n_bootstrap=1)["all"]
    assert body["me"]["sensitivity"]["value"] == sk.recall_score(p.me_true, p.me_probs[:, 1] >= np.float32(0.3))
    assert body["referable_dr"]["from_grade"] == 3
    true, said = (np.array(contract.dr_grades)[index] for index in (p.dr_true, p.dr_probs.argmax(1)))
    kappa = sk.cohen_kappa_score(true, said, weights="quadratic", labels=range(5))  # predicting 2 for 4 is two steps
    assert body["dr"]["kappa"]["value"] == pytest.approx(kappa)


def test_referral_of_me_is_judged_by_its_own_rule() -> None:
    """Both referrals have thresholds that differ from the plain answers', and so other photographs."""
    p = predictions()
    rules = default_thresholds() | {"referable_me": Rule("at_least", 0.3), "referable_dr": Rule("at_least", 0.2, 3)}
    body = evaluate(p, Contract(thresholds=rules), n_bootstrap=1)["all"]
    for task, true, said in (
        ("referable_me", p.me_true == 1, p.me_probs[:, 1] >= np.float32(0.3)),
        ("referable_dr", p.dr_true >= 3, p.dr_probs[:, 3:].astype(np.float64).sum(1) >= 0.2),
    ):
        assert body[task]["positives"] == true.sum() != said.sum()
        assert body[task]["threshold"] == rules[task].threshold
        assert body[task]["sensitivity"]["value"] == pytest.approx(sk.recall_score(true, said))
        assert body[task]["specificity"]["value"] == pytest.approx(sk.recall_score(true, said, pos_label=False))


def test_photographs_go_by_their_patient_where_one_is_named() -> None:
    """A photograph without one is a patient of its own, even if somebody else has its name."""
    named = ("p", "", "P ", "1.png")
    photos = [Photo(Path(f"{i}.png"), f"{i}.png", 2, 0, i % 2, patient=patient) for i, patient in enumerate(named)]
    p = Predictions.of(photos, range(5), np.eye(5, dtype=np.float32)[:4], np.eye(2, dtype=np.float32)[[0, 1, 0, 1]])
    assert (p.image_names, p.me_true.tolist()) == (("0.png", "1.png", "2.png", "3.png"), [0, 1, 0, 1])
    assert p.patients[0] == p.patients[2] and len(set(p.patients)) == 3


def test_each_source_is_judged_by_itself() -> None:
    p = predictions(sources=("a", "b", ""))
    sources = evaluate(p, CONTRACT, n_bootstrap=20)["sources"]
    assert list(sources) == ["unknown", "a", "b"]
    assert sources["b"] == evaluate(p.of_source("b"), CONTRACT, n_bootstrap=20)["all"]
    assert sources["b"]["n"] == 40
    assert evaluate(p.of_source("b"), CONTRACT, n_bootstrap=20)["sources"] == {}


def test_sources_may_be_called_anything() -> None:
    p = predictions(sources=("", "unknown", "all"))
    figures = evaluate(p, CONTRACT, n_bootstrap=20)
    assert {name: body["n"] for name, body in figures["sources"].items()} == {"unknown": 80, "all": 40}
    assert next(figures_table(figures)) == "| | all (120) | unknown (80) | all (40) |"
    assert evaluate(predictions(sources=("", "unknown")), CONTRACT, n_bootstrap=1)["sources"] == {}
    html = _figures_table(figures)
    assert "<th>all</th><th>unknown</th><th>all</th>" in html.replace(' scope="col"', "")
    counts = [line for line in _counts_table({"test": p}, CONTRACT).split("<tr>") if "test" in line]
    assert [re.findall(r">(\d+)<", line)[0] for line in counts] == ["120", "80", "40"]


def test_a_grade_that_does_not_occur_is_still_a_step() -> None:
    """As in retina-score, which counts by grades: 2 for 4 costs two steps squared, although there is no 3."""
    true, pred = np.array([0, 1, 2, 3, 3, 2]), np.array([0, 1, 3, 3, 2, 2])  # indices into 0, 1, 2, 4
    grades = np.array([0, 1, 2, 4])
    expected = sk.cohen_kappa_score(grades[true], grades[pred], weights="quadratic", labels=range(5))
    assert quadratic_kappa(true, pred, grades.tolist()) == pytest.approx(expected)
    scored = Confusion()
    for pair in zip(grades[true].tolist(), grades[pred].tolist(), strict=True):
        scored.add(*pair)
    assert scored.quadratic_kappa() == pytest.approx(expected)


def test_epoch_scores_agree_with_evaluate() -> None:
    p = predictions()
    scores, figures = epoch_scores(p, CONTRACT.dr_grades), headline(evaluate(p, CONTRACT, n_bootstrap=1)["all"])
    for name in ("dr_accuracy", "dr_kappa", "me_accuracy", "me_auc"):
        assert scores[name] == pytest.approx(figures[name])
    assert scores["score"] == pytest.approx(sum(scores[n] for n in scores if n != "score") / 4)
    for head in ("dr", "me"):
        pair = [figure for name, figure in scores.items() if name.startswith(head)]
        assert epoch_scores(p, CONTRACT.dr_grades, [head])["score"] == pytest.approx(sum(pair) / 2)
    no_risk = Predictions(**{**vars(p), "me_true": np.zeros(120, np.int64)})
    assert epoch_scores(no_risk, CONTRACT.dr_grades)["me_auc"] == 0.5


def test_metrics_file_holds_what_was_evaluated(tmp_path: Path) -> None:
    splits: dict[str, Any] = {"valid": evaluate(predictions(), CONTRACT, n_bootstrap=20)}
    path = tmp_path / "run" / "metrics.json"
    written = write_metrics(path, 7, splits)
    assert json.loads(path.read_text()) == written == {"checkpoint": "best", "epoch": 7, "splits": splits}


def test_classification_report_is_scikit_learns() -> None:
    p = predictions()
    text = classification_report(p, CONTRACT)
    for true, pred, names in (
        (p.dr_true, p.dr_probs.argmax(1), list("01234")),
        (p.me_true, p.me_probs.argmax(1), ["no risk", "risk"]),
    ):
        assert sk.classification_report(true, pred, target_names=names, digits=3) in text


@pytest.mark.parametrize("predicted", [False, True], ids=["never true", "never true but predicted"])
def test_classification_reports_macro_recall_is_the_balanced_accuracy(predicted: bool) -> None:
    """Grade 4 does not occur: were its recall 0, it would lower the mean of those that do."""
    p = predictions(grades=4)
    dr_probs = np.pad(p.dr_probs, ((0, 0), (0, 1)))
    dr_probs[0, 4] = 2.0 * predicted
    p = Predictions(**{**vars(p), "dr_probs": dr_probs})
    balanced = evaluate(p, CONTRACT, n_bootstrap=1)["all"]["dr"]["balanced_accuracy"]["value"]
    (macro, _) = re.findall(r"macro avg +[\d.]+ +([\d.]+)", classification_report(p, CONTRACT))
    assert macro == f"{balanced:.3f}"


def test_every_column_of_the_figures_is_its_own_sources() -> None:
    figures = evaluate(predictions(sources=("a", "b", "b")), CONTRACT, n_bootstrap=20)
    lines = list(figures_table(figures))
    bodies = [figures["all"], figures["sources"]["a"], figures["sources"]["b"]]
    accuracy = [body["dr"]["accuracy"] for body in bodies]
    assert len({figure["value"] for figure in accuracy}) == 3
    cells = [f"{f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for f in accuracy]
    assert f"| DR accuracy | {' | '.join(cells)} |" in lines
    for task, title in (("dr", "DR grade 1"), ("me", "ME risk")):
        row = figures["all"][task]["classes"][1]
        numbers = [row[name] for name in ("precision", "recall", "f1")]
        cells = [f"{f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for f in numbers]
        assert f"| {title} | {row['support']} | {' | '.join(cells)} |" in list(classes_table(figures))
