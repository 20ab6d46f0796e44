"""Differences of two models' figures and decisions, compared with scikit-learn and a plain paired bootstrap."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eyes import write_set
from invoking import invoke
from retina.runtime.contract import Contract, Rule, default_thresholds
from retina.runtime.picture import decode
from retina.train import evaluation
from retina.train.comparison import DECISIONS, compare
from retina.train.evaluation import main
from retina.train.markdown import changes_table, differences_table
from retina.train.metrics import evaluate
from retina.train.predictions import Predictions
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from tiny_model import CONTRACT, expected_probs, write_tiny_model

BOTH = (Contract(), Contract())


def predictions(seed: int = 0) -> Predictions:
    """120 photographs of 60 patients; the truth, and what makes each hard, is the same for every ``seed``."""
    n, truth, rng = 120, np.random.default_rng(99), np.random.default_rng(seed)
    dr_true, me_true = truth.choice(5, n, p=[0.4, 0.15, 0.2, 0.15, 0.1]), truth.integers(0, 2, n)
    dr = np.eye(5)[dr_true] + truth.normal(0, 0.5, (n, 5)) + rng.normal(0, 0.2, (n, 5))
    me = np.eye(2)[me_true] + truth.normal(0, 0.5, (n, 2)) + rng.normal(0, 0.2, (n, 2))
    dr, me = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (dr, me))
    names = tuple(f"{i}.jpg" for i in range(n))
    who = tuple(f"p{i // 2}" for i in range(n))
    return Predictions(names, names, dr_true, me_true, dr.astype(np.float32), me.astype(np.float32), ("",) * n, who)


def test_a_difference_is_that_of_the_two_figures() -> None:
    before, after = predictions(1), predictions(2)
    found = compare(before, after, BOTH, n_bootstrap=10)["figures"]
    alone = [evaluate(p, Contract(), n_bootstrap=10)["all"] for p in (before, after)]
    compared = {(task, name) for task, figures in found.items() for name in figures}
    assert len(compared) == 15
    for task, name in compared:
        was, now = (body[task][name]["value"] for body in alone)
        row = found[task][name]
        assert (row["before"], row["after"]) == (was, now)
        assert row["difference"]["value"] == pytest.approx(now - was)
    kappa = [cohen_kappa_score(p.dr_true, p.dr_probs.argmax(1), weights="quadratic") for p in (before, after)]
    assert found["dr"]["kappa"]["difference"]["value"] == pytest.approx(kappa[1] - kappa[0])
    assert found["dr"]["calibration_error"]["difference"]["why"].startswith("no interval: ")


def test_an_interval_is_that_of_the_plain_paired_bootstrap_by_patient() -> None:
    before, after = predictions(1), predictions(2)
    rng, n = np.random.default_rng(5), len(before.patients) // 2
    plain = []
    for _ in range(1500):
        rows = np.repeat(2 * rng.integers(0, n, n), 2) + np.tile([0, 1], n)
        sick = before.dr_true[rows] >= 2
        aucs = [roc_auc_score(sick, p.dr_probs[rows][:, 2:].sum(1)) for p in (before, after)]
        right = [(p.dr_probs[rows].argmax(1) == p.dr_true[rows]).mean() for p in (before, after)]
        plain.append((aucs[1] - aucs[0], right[1] - right[0]))
    found = compare(before, after, BOTH, n_bootstrap=1500)["figures"]
    for values, (task, name) in zip(np.transpose(plain), (("referable_dr", "auc"), ("dr", "accuracy")), strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        difference = found[task][name]["difference"]
        assert [difference["low"], difference["high"]] == pytest.approx([low, high], abs=0.12 * (high - low))


def test_what_is_hard_for_both_cancels_out() -> None:
    before, after = predictions(1), predictions(2)
    apart = compare(before, after, BOTH)["figures"]["dr"]["accuracy"]["difference"]
    widths = [figure["high"] - figure["low"] for figure in (
        evaluate(p, Contract())["all"]["dr"]["accuracy"] for p in (before, after))]  # fmt: skip
    assert apart["high"] - apart["low"] < 0.8 * np.hypot(*widths)


def test_a_model_does_not_differ_from_itself() -> None:
    p = predictions()
    found = compare(p, p, BOTH, n_bootstrap=50)
    for figures in found["figures"].values():
        for row in figures.values():
            assert row["difference"]["value"] == 0
            assert row["difference"]["low"] is None
    assert {task: counts["changed"] for task, counts in found["decisions"].items()} == dict.fromkeys(
        ("dr", "referable_dr", "me", "referable_me"), 0
    )
    right = f"{(p.dr_probs.argmax(1) == p.dr_true).mean():.3f}"
    assert f"| DR accuracy | {right} | {right} | +0.000 |" in list(differences_table(found, "a", "b"))


def test_changed_decisions_by_hand() -> None:
    """The second model has no grade 1, and refers DR from a probability of 0.9 on."""
    one = np.eye(5, dtype=np.float32)
    names = ("a", "b", "c", "d", "e")
    before = Predictions(
        names, names, np.array([0, 1, 2, 4, -1]), np.array([0, 1, -1, 1, 0]),
        one[[0, 1, 0, 3, 4]], np.array([[0.6, 0.4], [0.8, 0.2], [0, 1], [0, 1], [1, 0]], np.float32), ("",) * 5, names,
    )  # fmt: skip
    four = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0.8, 0.2, 0], [0, 0.8, 0, 0.2], [0, 0, 1, 0]], np.float32)
    after = replace(
        before,
        dr_true=np.array([0, 0, 1, 3, -1]),  # of the grades 0, 2, 3, 4: the second photograph counts as grade 0
        dr_probs=four,
        me_probs=np.array([[0.4, 0.6], [0.1, 0.9], [1, 0], [0, 1], [1, 0]], np.float32),
    )
    strict = {**default_thresholds(), "referable_dr": Rule("at_least", 0.9, 2), "referable_me": Rule("at_least", 0.95)}
    found = compare(before, after, (Contract(), Contract(dr_grades=(0, 2, 3, 4), thresholds=strict)), n_bootstrap=5)
    assert found["decisions"] == {
        # Grades 0 1 0 3 for 0 1 2 4, then 0 0 2 2 for 0 0 2 4: the third is right now, and the fourth wrong as before.
        "dr": {"n": 4, "changed": 3, "newly_right": 1, "newly_wrong": 0},
        # Of the last two that should be referred, the third still has 0.2 + 0.8, and so has the fourth.
        "referable_dr": {"n": 4, "changed": 1, "newly_right": 1, "newly_wrong": 0},
        "me": {"n": 4, "changed": 2, "newly_right": 1, "newly_wrong": 1},
        # From 0.95 on: neither of the first two.
        "referable_me": {"n": 4, "changed": 0, "newly_right": 0, "newly_wrong": 0},
    }
    assert [task for task, _ in DECISIONS] == list(found["decisions"])
    assert "| DR grade | 4 | 3 | 1 | 0 |" in list(changes_table(found))


def test_what_is_undefined_says_so() -> None:
    p = predictions()
    healthy = replace(p, dr_true=np.zeros_like(p.dr_true), me_true=np.full_like(p.me_true, -1))
    found = compare(healthy, healthy, BOTH, n_bootstrap=5)
    assert found["figures"]["referable_dr"]["auc"] == {
        "before": None, "after": None, "difference": {"value": None, "low": None, "high": None, "why": "undefined"}
    }  # fmt: skip
    assert found["figures"]["me"]["calibration_error"]["difference"]["why"] == "undefined"
    assert "| ME AUC |  |  | undefined |" in list(differences_table(found, "a", "b"))
    assert found["decisions"]["me"]["n"] == 0


def test_the_command_compares_with_another_file(tmp_path: Path) -> None:
    grades = [0, 1, 2, 3, 4, 2, 0, 4]
    data = write_set(tmp_path / "data", train=grades, others=grades)
    probs = [expected_probs(decode(data / f"test/images/eye_{n}.jpg"))[0][2:].sum() for n in range(len(grades))]
    sick = np.array(grades) >= 2
    level = sorted(probs)[4] + 1e-4  # five of eight are no longer referred
    rules = {**default_thresholds(), "referable_dr": Rule("at_least", level, 2)}
    old = write_tiny_model(tmp_path / "old.onnx", contract=replace(CONTRACT, thresholds={**rules}))
    new = write_tiny_model(tmp_path / "new.onnx")
    out = tmp_path / "figures.json"
    done = invoke(main, data, "--model", new, "--against", old, "--out", out)
    assert done.exit_code == 0, done.output
    was, now = ((np.array(probs) >= least)[sick].mean() for least in (level, 0.5))
    assert was != now
    figures = json.loads(out.read_text())
    row = figures["differences"]["test"]["figures"]["referable_dr"]["sensitivity"]
    assert (row["before"], row["after"]) == (pytest.approx(was), pytest.approx(now))
    assert figures["against_sha256"][:12] in done.output
    assert f"| Referable DR sensitivity | {was:.3f} | {now:.3f} | {now - was:+.3f} (" in done.output
    assert "| DR grade | 8 | 0 | 0 | 0 |" in done.output
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in (old, new)]
    assert f"| | old.onnx ({digests[0]}) | new.onnx ({digests[1]}) | difference |" in done.output
    assert "differences" not in json.loads(_alone(data, new, out))
    refused = invoke(main, data, "--model", new, "--against", old, "--out", old)
    assert refused.exit_code == 2
    assert "old.onnx: expected a file to write, found one that is to be read" in refused.output


def test_files_that_cannot_be_compared_are_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_set(tmp_path / "data", train=[0, 1, 2, 3, 4], others=[0, 4])
    rules = {**default_thresholds(), "referable_dr": Rule("at_least", 0.5, 3)}
    model = write_tiny_model(tmp_path / "tiny.onnx")
    later = write_tiny_model(tmp_path / "later.onnx", contract=replace(CONTRACT, thresholds=rules))
    fewer = write_tiny_model(tmp_path / "fewer.onnx", contract=replace(CONTRACT, dr_grades=(0, 1, 2)))
    monkeypatch.setattr(evaluation, "score_split", lambda *_: pytest.fail("scored first"))
    for other, why in (
        (later, "later.onnx: expected a file that refers from DR grade 2, as"),
        (fewer, "fewer.onnx: expected DR grades [0, 1, 2], found [4] among the annotations too"),
        (data / "test/annotations.csv", "annotations.csv: "),
    ):
        refused = invoke(main, data, "--model", model, "--against", other)
        assert refused.exit_code == 2
        assert why in refused.output


def test_the_cautions_of_both_files_are_said(tmp_path: Path) -> None:
    data = write_set(tmp_path / "data")
    untrained = replace(CONTRACT, provenance={"untrained_heads": ["dr"]})
    old = write_tiny_model(tmp_path / "old|er.onnx", contract=untrained)
    done = invoke(main, data, "--model", write_tiny_model(tmp_path / "new.onnx"), "--against", old)
    assert done.output.count("Caution") == 1
    assert done.output.startswith(f"Caution of old|er.onnx: {untrained.caution}\n")
    assert "| | old\\|er.onnx (" in done.output


def test_labels_of_one_patient_make_no_interval() -> None:
    before, after = (
        replace(p, me_true=np.where(np.arange(120) < 2, [0, 1] * 60, -1)) for p in (predictions(1), predictions(2))
    )
    found = compare(before, after, BOTH, n_bootstrap=20)["figures"]
    assert found["me"]["accuracy"]["difference"]["why"] == "no interval: one patient only"
    assert found["dr"]["accuracy"]["difference"]["low"] is not None


def _alone(data: Path, model: Path, out: Path) -> str:
    assert "difference" not in invoke(main, data, "--model", model, "--out", out).output
    return out.read_text()
