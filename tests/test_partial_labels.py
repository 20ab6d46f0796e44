"""Photographs that were graded for one of the two diseases: each head learns from and is judged on its own labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from eyes import eye, write_annotations, write_set
from hypothesis import given
from hypothesis import strategies as st
from invoking import invoke
from retina.export.gate import compare
from retina.gradcam import cli as gradcam_cli
from retina.runtime import cli as score_cli
from retina.runtime import weighted_metrics
from retina.runtime.annotations import scan_annotations
from retina.runtime.contract import HEADS, Contract, Head
from retina.runtime.weighted_metrics import UNLABELLED
from retina.train import cli as train_cli
from retina.train import evaluation, plots
from retina.train.calibration import calibration_faults
from retina.train.checkpoint import load_checkpoint
from retina.train.config import SENSITIVITY, TrainConfig
from retina.train.data import DataSet, read_dataset, scan_dataset
from retina.train.frames import look_through
from retina.train.framing import Normalize
from retina.train.items import Batch, EpochPlan, class_weights
from retina.train.labels import grade_faults, label_faults, label_notes, trained_heads, untrained_heads
from retina.train.leakage import find_copies
from retina.train.loader import make_loader
from retina.train.metrics import classification_report, epoch_scores, evaluate
from retina.train.predictions import Decisions, Predictions
from retina.train.report import _source_note, worst_mistakes
from retina.train.scaling import fit_scaling
from retina.train.screening import screening_rules, screening_threshold
from retina.train.signals import StopRequest
from retina.train.trainer import Trainer
from small_backbone import RESNET10
from small_run import trainer
from small_set import SMALL, items
from tiny_model import CONTRACT, write_tiny_model
from without_pictures import replace_pictures

NA = "NA"
HEADER = "Image name,Retinopathy grade,Risk of macular edema\n"
RECIPE = TrainConfig("", batch_size=4, image_size=32, backbone=RESNET10, workers=0, precision="fp32", weights="none")


def relabel(folder: Path, dr: Sequence[object], me: Sequence[object]) -> None:
    """Give the photographs of a split other labels."""
    write_annotations(
        folder, [[f"eye_{n}.jpg", *labels, "", "", ""] for n, labels in enumerate(zip(dr, me, strict=True))]
    )


def partial_set(root: Path) -> DataSet:
    """Twelve training photographs, of which four lack the DR grade and four the ME label, and six in valid and test."""
    write_set(root, train=[0] * 12, others=[0] * 6)
    relabel(root / "train", [0, 1, 2, NA, 0, NA, 2, 1, NA, 0, 2, NA], [NA, 0, 1, 1, 0, 0, NA, NA, 1, 0, NA, 1])
    for seed, name in enumerate(("valid", "test")):
        labels = [0, 1, 2, NA, 2, 0][seed:] + [1] * seed
        relabel(root / name, labels, [0, NA, 1, 1, NA, 0])
    data, faults = scan_dataset(root)
    assert faults == []
    return data


def split_in_two(seed: int = 0, n: int = 200) -> Predictions:
    """Seeded predictions, some of them without a DR grade, others without an ME label."""
    rng = np.random.default_rng(seed)
    dr_true, me_true = rng.integers(0, 5, n), rng.integers(0, 2, n)
    dr = rng.dirichlet(np.ones(5), n) + 0.4 * np.eye(5)[dr_true]
    risk = np.clip(rng.random(n) * 0.7 + 0.3 * me_true, 0, 1).round(2)
    lacks = rng.integers(0, 3, n)
    return Predictions(
        tuple(map(str, range(n))), tuple(map(str, range(n))),
        np.where(lacks == 1, UNLABELLED, dr_true), np.where(lacks == 2, UNLABELLED, me_true),
        (dr / dr.sum(axis=1, keepdims=True)).astype(np.float32), np.stack([1 - risk, risk], 1).astype(np.float32),
        ("",) * n, tuple(str(i // 2) for i in range(n)),
    )  # fmt: skip


def only(p: Predictions, keep: Any) -> Predictions:
    """The photographs at which ``keep`` (N,) is true."""
    rows = np.flatnonzero(keep)
    parts: dict[str, Any] = {
        name: value[rows] if isinstance(value, np.ndarray) else tuple(value[i] for i in rows)
        for name, value in vars(p).items()
    }
    return Predictions(**parts)


# ---- reading


def test_na_is_no_grade_and_an_empty_cell_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "a,NA,1\nb,2,na\nc,NA,NA\nd,,1\n")
    annotations, faults = scan_annotations(tmp_path / "a.csv")
    assert [(row.image, row.dr_grade, row.me_grade) for row in annotations] == [("a", None, 1), ("b", 2, None)]
    assert faults == [
        "line 4: expected a grade, found NA twice; leave 'c' out, row and file",
        "line 5: Retinopathy grade: expected a whole number from 0, found ''; write NA where it was not graded",
    ]


def test_what_pandas_writes_for_missing_labels_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"Image name": ["a", "b"], "Retinopathy grade": [3, 0], "Risk of macular edema": [None, 1]})
    frame.to_csv(tmp_path / "a.csv", index=False, na_rep=NA)
    rows = scan_annotations(tmp_path / "a.csv")[0]
    assert [(row.dr_grade, row.me_grade) for row in rows] == [(3, None), (0, 1)]


def test_the_data_set_keeps_who_lacks_which_label(tmp_path: Path) -> None:
    data = partial_set(tmp_path)
    photos = data.splits["train"].photos
    assert data.dr_grades == (0, 1, 2)
    by_name = {photo.image_name: (data.dr_index(photo), photo.me_index) for photo in photos}
    assert (by_name["eye_0.jpg"], by_name["eye_2.jpg"], by_name["eye_3.jpg"]) == ((0, -1), (2, 1), (-1, 1))
    train, valid, _ = label_notes(data, RECIPE)
    assert "train/annotations.csv: 4 without a DR grade and 4 without an ME label (NA), of 12 photographs;" in train
    assert "valid/annotations.csv: 1 without a DR grade and 2 without an ME label (NA), of 6 photographs;" in valid


def test_labels_without_which_a_run_makes_no_sense(tmp_path: Path) -> None:
    write_set(tmp_path, train=[0] * 6, others=[0] * 3)
    data, faults = scan_dataset(tmp_path)
    assert faults == [], "they can be evaluated"
    (fault,) = grade_faults(data)
    assert fault.endswith(": expected two or more DR grades, found [0]")
    relabel(tmp_path / "train", [NA] * 6, [0, 1] * 3)
    data, faults = scan_dataset(tmp_path)
    assert (data.dr_grades, faults) == ((), [])
    (fault,) = label_faults(data, replace(RECIPE, me_weight=0.0))
    assert "expected a label for a head that is trained" in fault

    relabel(tmp_path / "train", [0, 1, 2] * 2, [0, 1, NA] * 2)
    relabel(tmp_path / "valid", [NA, NA, NA], [0, 1, 0])
    relabel(tmp_path / "test", [0, 1, 2], [NA] * 3)
    data, faults = scan_dataset(tmp_path)
    assert faults == []
    (fault,) = label_faults(data, RECIPE)
    assert fault.startswith(f"{tmp_path}/valid/annotations.csv: expected photographs with a DR grade, as in train")
    assert label_faults(data, replace(RECIPE, dr_weight=0.0)) == []
    assert calibration_faults(data, Contract()) == [], "a head without labels is not calibrated"
    relabel(tmp_path / "valid", [0, 1, NA], [0, NA, 0])
    data = read_dataset(tmp_path)
    faults = calibration_faults(data, Contract())
    for what, fault in zip(("ME risk", "DR grade of 2 or more"), faults, strict=True):
        assert f"expected photographs with {what} to calibrate on, found none" in fault
    (fault,) = calibration_faults(data, Contract(provenance={"untrained_heads": ["me"]}))
    assert "expected photographs with DR grade of 2 or more" in fault, "a head that was never trained is not calibrated"
    assert untrained_heads(data, replace(RECIPE, me_weight=0.0), HEADS) == ["me"]
    assert untrained_heads(data, replace(RECIPE, me_weight=0.0), ["dr"]) == [], "trained by what it starts from"

    relabel(tmp_path / "train", [0, 1, 2] * 2, [NA] * 6)
    relabel(tmp_path / "valid", [0, 1, 2], [NA, NA, NA])
    data = read_dataset(tmp_path)
    assert label_faults(data, RECIPE) == []
    assert trained_heads(data, RECIPE) == ("dr",)
    (fault,) = label_faults(data, replace(RECIPE, dr_weight=0.0))
    assert "expected a label for a head that is trained (--dr-weight 0, --me-weight 1), found none" in fault


def test_two_copies_conflict_only_where_both_are_labelled(tmp_path: Path) -> None:
    write_set(tmp_path, train=[0, 1, 2, 0], others=[0])
    for n in range(4):
        eye(7).save(tmp_path / f"train/images/eye_{n}.jpg")
    relabel(tmp_path / "train", [NA, 2, NA, 2], [0, NA, 0, NA])
    data, _ = scan_dataset(tmp_path)
    looks = {name: look_through(split.paths, SMALL, "uint8", "off", tmp_path)[1] for name, split in data.splits.items()}
    assert [copy.conflict for copy in find_copies(data, looks)] == [""] * 3
    relabel(tmp_path / "train", [NA, 2, NA, 1], [0, NA, 1, NA])
    data, _ = scan_dataset(tmp_path)
    assert [copy.conflict for copy in find_copies(data, looks)] == ["", "ME risk 0 and 1", "DR grade 2 and 1"]


# ---- measuring


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30))
def test_every_measure_leaves_out_what_is_not_labelled(rows: list[tuple[int, int, int]]) -> None:
    true, pred, times = (np.array(column) for column in zip(*rows, strict=True))
    known, weights = true != UNLABELLED, times[None].astype(float)
    probs = np.eye(3)[pred] * 0.5 + 1 / 6
    np.testing.assert_allclose(
        weighted_metrics.confusion(true, pred, 3, weights),
        weighted_metrics.confusion(true[known], pred[known], 3, weights[:, known]),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        weighted_metrics.calibration_error(probs, true),
        weighted_metrics.calibration_error(probs[known], true[known]),
        atol=1e-12,
    )
    for left, right in zip(
        weighted_metrics.reliability(probs, true), weighted_metrics.reliability(probs[known], true[known]), strict=True
    ):
        np.testing.assert_allclose(left, right)
    binary = np.where(known, true > 0, UNLABELLED)
    np.testing.assert_allclose(
        weighted_metrics.auc(binary, pred / 2, weights),
        weighted_metrics.auc(binary[known], pred[known] / 2, weights[:, known]),
    )


def test_each_heads_figures_are_those_of_its_labelled_photographs() -> None:
    p, contract = split_in_two(), Contract()
    body = evaluate(p, contract, n_bootstrap=50)["all"]
    assert body["n"] == 200
    for head in HEADS:
        tasks, known = (head, f"referable_{head}"), p.true(head) != UNLABELLED
        alone = evaluate(only(p, known), contract, n_bootstrap=50)["all"]
        assert body[head]["n"] == alone["n"] == known.sum() < 200
        for task in tasks:
            for name, expected in alone[task].items():
                if name == "classes":
                    continue  # below
                found = body[task][name]
                if name == "calibration_chance" or not (isinstance(expected, dict) and "low" in expected):
                    assert found == expected, (task, name)
                elif name == "calibration_error":
                    assert (found["value"], found["low"]) == (pytest.approx(expected["value"], rel=1e-12), None)
                else:  # other patients are drawn, because those without a label are drawn too
                    assert found["value"] == pytest.approx(expected["value"], rel=1e-12), (task, name)
                    assert found["low"] < found["value"] < found["high"]
        for found, expected in zip(body[head]["classes"], alone[head]["classes"], strict=True):
            assert found["support"] == expected["support"]
            for name in ("precision", "recall", "f1"):
                assert found[name]["value"] == expected[name]["value"]
        reports = [classification_report(predictions, contract).split("Risk of") for predictions in (p, only(p, known))]
        assert reports[0][head == "me"] == reports[1][head == "me"]
        assert worst_mistakes(p, contract)[head] == worst_mistakes(only(p, known), contract)[head]
        scores, expected = (epoch_scores(predictions, range(5)) for predictions in (p, only(p, known)))
        for name in (f"{head}_accuracy", {"dr": "dr_kappa", "me": "me_auc"}[head]):
            assert scores[name] == pytest.approx(expected[name], rel=1e-12)
    decisions = Decisions.of(p, contract)
    np.testing.assert_array_equal(decisions.referable_true == UNLABELLED, p.dr_true == UNLABELLED)
    np.testing.assert_array_equal((decisions.referable_true == 1), p.dr_true >= 2)


def test_a_head_without_labels_has_no_figures_and_does_not_choose_the_epoch() -> None:
    p = split_in_two()
    p = replace(p, me_true=np.full(200, UNLABELLED))
    me = evaluate(p, Contract(), n_bootstrap=20)["all"]["me"]
    for name in ("accuracy", "auc", "sensitivity", "calibration_error", "calibration_chance"):
        assert me[name] == {"value": None, "low": None, "high": None, "why": "no photograph has a label"}
    assert "No photograph has a label." in classification_report(p, Contract())
    scores = epoch_scores(p, range(5))
    assert np.isnan([scores["me_accuracy"], scores["me_auc"]]).all()
    assert scores["score"] == (scores["dr_accuracy"] + scores["dr_kappa"]) / 2


def test_calibration_and_the_int8_gate_use_each_heads_labels() -> None:
    p = split_in_two()
    dr, me = only(p, p.dr_true != UNLABELLED), only(p, p.me_true != UNLABELLED)
    rules = screening_rules(Contract(), p)
    assert rules["referable_dr"] == screening_rules(Contract(), dr)["referable_dr"]
    assert rules["referable_me"] == screening_rules(Contract(), me)["referable_me"]
    logits = torch.from_numpy(np.log(p.dr_probs))
    known = p.dr_true != UNLABELLED
    scaling = fit_scaling(logits[known], torch.from_numpy(p.dr_true[known]), 0.3)
    with_unlabelled = fit_scaling(logits, torch.from_numpy(p.dr_true), 0.3)
    assert with_unlabelled.temperature == pytest.approx(scaling.temperature, rel=1e-9)
    torch.testing.assert_close(with_unlabelled.bias, scaling.bias)

    found = compare(Contract(), p, p)
    assert (found.photographs, found.faults) == (200, [])
    assert found.int8.dr_accuracy == compare(Contract(), dr, dr).int8.dr_accuracy
    assert found.int8.me_auc == pytest.approx(compare(Contract(), me, me).int8.me_auc)
    unlabelled = replace(p, me_true=np.full(200, UNLABELLED))
    found = compare(Contract(), unlabelled, unlabelled)
    assert (found.int8.me_accuracy, found.int8.me_auc, found.faults) == (None, None, [])
    assert screening_rules(Contract(), unlabelled)["referable_me"] == Contract().thresholds["referable_me"]
    for head in HEADS:
        never = Contract(provenance={"untrained_heads": [head]})
        kept, fitted = ("dr", "me") if head == "dr" else ("me", "dr")
        assert screening_rules(never, p)[f"referable_{kept}"] == Contract().thresholds[f"referable_{kept}"]
        assert screening_rules(never, p)[f"referable_{fitted}"] == rules[f"referable_{fitted}"]


def test_the_int8_gate_does_not_ask_what_a_head_says_that_was_never_trained() -> None:
    p = split_in_two()
    turned = replace(p, me_probs=p.me_probs[:, ::-1], dr_probs=p.dr_probs[:, ::-1])
    for head in HEADS:
        contract = Contract(provenance={"untrained_heads": [head]})
        gate = compare(contract, p, replace(p, **{f"{head}_probs": getattr(turned, f"{head}_probs")}))
        assert gate.faults == []
        assert getattr(gate, f"{head}_agreement") is getattr(gate.int8, f"{head}_accuracy") is None
        assert {"dr": "DR grade", "me": "ME risk"}[head] not in gate.lines()[-1]
        assert compare(Contract(), p, turned).faults


def test_a_threshold_by_hand() -> None:
    """Halfway between the one positive and the next negative; the unlabelled photograph between them does not count."""
    assert screening_threshold(np.array([1, -1, 0]), np.array([0.9, 0.7, 0.2])) == pytest.approx(0.55)
    assert screening_threshold(np.array([1]), np.array([0.4])) == pytest.approx(0.2), "halfway to 0, with nothing below"


@pytest.mark.parametrize("head", HEADS)
def test_a_threshold_is_not_fitted_to_positives_alone(head: Head) -> None:
    """Where all photographs are ill, all probabilities are near 1, and a threshold would lie between two roundings."""
    p = split_in_two()
    ill = p.dr_true >= 2 if head == "dr" else p.me_true == 1
    rules = screening_rules(Contract(), only(p, ill | (p.true(head) == UNLABELLED)))
    assert rules[f"referable_{head}"] == Contract().thresholds[f"referable_{head}"]
    other = "me" if head == "dr" else "dr"
    assert rules[f"referable_{other}"] != Contract().thresholds[f"referable_{other}"]


def test_no_threshold_lies_between_roundings() -> None:
    one = np.float32(1)
    nearly = np.nextafter(one, np.float32(0))
    true = np.array([1, 0, 1, 0])
    assert screening_threshold(true, np.array([one, nearly, one, 0.2], np.float32)) == pytest.approx((nearly + 0.2) / 2)
    assert screening_threshold(true, np.array([0.5, 0.5 - 2e-6, 0.5, 0.0])) == pytest.approx(0.5 - 1e-6, abs=1e-9)
    assert screening_threshold(true, np.array([1e-9, 1e-7, 1e-9, 0.0])) == 0.0


def test_plots_leave_them_out(tmp_path: Path) -> None:
    p = split_in_two()
    both = (p.dr_true != UNLABELLED) & (p.me_true != UNLABELLED)
    p = replace(p, dr_true=np.where(both, p.dr_true, UNLABELLED), me_true=np.where(both, p.me_true, UNLABELLED))
    for name, predictions in (("all", p), ("labelled", only(p, both))):
        plots.roc_curves({"test": predictions}, Contract(), tmp_path / f"roc_{name}.png")
        plots.reliability_diagrams(predictions, tmp_path / f"reliability_{name}.png")
    for plot in ("roc", "reliability"):
        drawn = [(tmp_path / f"{plot}_{name}.png").read_bytes() for name in ("all", "labelled")]
        assert drawn[0] == drawn[1], plot


# ---- training


def test_draws_and_weights_go_by_the_grades_that_there_are() -> None:
    index = [0] * 60 + [1] * 20 + [UNLABELLED] * 20
    np.testing.assert_allclose(class_weights(index, 2), [80 / (2 * 60), 80 / (2 * 20)])
    drawn: list[int] = []
    for epoch in range(1, 101):
        plan = EpochPlan(index, 10, "weighted", seed=0)
        plan.epoch = epoch
        drawn += [index[n] for n in plan.draws()]
    share = {label: drawn.count(label) / len(drawn) for label in (0, 1, UNLABELLED)}
    assert share == pytest.approx({0: 0.4, 1: 0.4, UNLABELLED: 0.2}, abs=0.02)


def without_dropout(t: Trainer) -> Trainer:
    """In training, too, its network computes what it does in evaluation."""
    t.net.train = lambda mode=True: torch.nn.Module.train(t.net, False)  # type: ignore[method-assign]
    return t


def test_a_step_is_torchs_mean_over_each_heads_labelled_photographs(tmp_path: Path) -> None:
    """The gradients of three accumulated micro-batches of 4, with no step taken."""
    train, valid = items(partial_set(tmp_path))
    t = without_dropout(trainer(train, replace(RECIPE, accumulate=3, dr_weight=1.5, me_weight=0.5)))
    plan = EpochPlan(train.dr_index, 4, "shuffle", 0)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: object, **__: object) -> None:
        gradients.update({name: p.grad.clone() for name, p in t.net.named_parameters() if p.grad is not None})

    t.optimizer.step = keep
    t.train_epoch(make_loader(train, 0, t.fabric, batch_sampler=plan), StopRequest(), lambda n, totals: None, 3)

    def expected_loss(batch: list[Any]) -> tuple[torch.Tensor, dict[str, float]]:
        x = Normalize(SMALL.mean, SMALL.std)(torch.stack([item.image for item in batch]).float())
        dr_true, me_true = (torch.tensor([getattr(item, name) for item in batch]) for name in ("dr_index", "me_label"))
        dr, me = t.net(x)
        has_dr, has_me = dr_true >= 0, me_true >= 0
        dr_loss = F.cross_entropy(dr[has_dr], dr_true[has_dr], t.dr_weights)
        me_loss = F.cross_entropy(me[has_me], me_true[has_me])
        return 1.5 * dr_loss + 0.5 * me_loss, {
            "dr_loss": dr_loss.item(),
            "me_loss": me_loss.item(),
            "dr_accuracy": (dr.argmax(1) == dr_true)[has_dr].float().mean().item(),
            "me_accuracy": (me.argmax(1) == me_true)[has_me].float().mean().item(),
        }

    t.net.zero_grad()
    loss, figures = expected_loss([train[draw] for micro_batch in plan for draw in micro_batch])
    torch.autograd.backward(loss)
    assert t.train_figures() == pytest.approx({"loss": loss.item(), **figures}, rel=1e-5)
    for name, p in t.net.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        loss, figures = expected_loss([valid[n] for n in range(len(valid))])
    found = t.validate(valid, make_loader(valid, 0, t.fabric))
    assert {name: found[name] for name in ("loss", *figures)} == pytest.approx(
        {"loss": loss.item(), **figures}, rel=1e-5
    )


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    """Those of all its parameters, of which each must have one."""
    parameters = list(module.parameters())
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(found) == len(parameters) > 0
    return found


def test_a_step_in_which_a_head_has_no_label_gives_it_no_gradient(tmp_path: Path) -> None:
    train, _ = items(partial_set(tmp_path))
    t = without_dropout(trainer(train, RECIPE))
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), torch.tensor([-1, -1]), ["a", "b"], ["", ""])
    t.optimizer.step = lambda: None
    t.optimizer.zero_grad = lambda: None
    t.train_epoch([batch], StopRequest(), lambda n, totals: None, 1)  # type: ignore[arg-type]
    assert all(gradient.abs().max() == 0 for gradient in gradients(t.net.me_head))
    assert all(torch.isfinite(gradient).all() for gradient in gradients(t.net))
    assert max(gradient.abs().max() for gradient in gradients(t.net.dr_head)) > 0
    t.heads = ("dr",)
    figures = t.train_figures()
    assert np.isnan([figures["me_loss"], figures["me_accuracy"]]).all()
    assert figures["loss"] == figures["dr_loss"]


def test_a_head_that_does_not_learn_helps_neither_to_choose_the_epoch_nor_to_set_the_rates(tmp_path: Path) -> None:
    train, valid = items(partial_set(tmp_path))
    both, one = (replace(trainer(train, RECIPE), heads=heads) for heads in (HEADS, ("dr",)))
    one.net.load_state_dict(both.net.state_dict())
    all_of_it, found = (t.validate(valid, make_loader(valid, 0, t.fabric)) for t in (both, one))
    assert found["me_loss"] == all_of_it["me_loss"] > 0
    assert found["loss"] == found["dr_loss"] == pytest.approx(all_of_it["loss"] - all_of_it["me_loss"])
    assert found["score"] == (found["dr_accuracy"] + found["dr_kappa"]) / 2


# ---- the commands


@pytest.mark.parametrize("without", ["some of both", "every ME label", "every DR grade"])
def test_retina_train_from_the_first_photograph_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    root, artifacts = tmp_path / "data", tmp_path / "artifacts"
    partial_set(root)
    if without == "some of both":
        replace_pictures(monkeypatch.setattr)  # those of the other cases show less
    else:
        for name, n in (("train", 12), ("valid", 6), ("test", 6)):
            dr, me = [0, 1, 2] * (n // 3), [0, 1] * (n // 2)
            relabel(root / name, *(([NA] * n, me) if without == "every DR grade" else (dr, [NA] * n)))
    options = ["--image-size", 32, "--backbone", RESNET10, "--weights", "none", "--workers", 0, "--epochs", 2]
    result = invoke(
        train_cli.main, root, *options, "--sampler", "weighted", "--batch-size", 4, "--calibrate", "valid",
        "--artifacts", artifacts, "--name", "r",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with (artifacts / "test_predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = [(row["True DR grade (orig)"], row["True ME risk"]) for row in rows]
    run = artifacts / "runs" / "r"
    body = json.loads((run / "metrics.json").read_text())["splits"]["test"]["all"]
    page = (run / "report.html").read_text()
    facts = json.loads((run / "run.json").read_text())["counts"]["train"]
    assert "nan" not in result.output
    contract = load_checkpoint(artifacts / "retina_multitask_best.pth").contract
    calibrated = {"every ME label": ["dr"], "every DR grade": ["me"]}.get(without, ["dr", "me"])
    assert [name for name in contract.provenance if name.endswith("_temperature")] == [
        f"{head}_temperature" for head in calibrated
    ]
    if without == "some of both":
        assert '<th scope="col">no DR grade</th>' in page
        assert truth == [("1", "0"), ("2", ""), ("", "1"), ("2", "1"), ("0", ""), ("1", "0")]
        assert (body["n"], body["dr"]["n"], body["me"]["n"]) == (6, 5, 4)
        assert (facts["without_dr_grade"], facts["without_me_label"], facts["me_risk"]) == (4, 4, 4)
        assert "<tr><td>with a DR grade</td><td>5</td></tr>" in page
    else:
        (head,) = calibrated
        never = "me" if head == "dr" else "dr"
        assert contract.dr_grades == ((0, 1, 2) if head == "dr" else (0, 1, 2, 3, 4))
        assert {labels[never == "me"] for labels in truth} == {""}
        assert (body["n"], body[head]["n"], body[never]["n"], body[never]["accuracy"]["value"]) == (6, 6, 0, None)
        named = never.upper()
        caution = f"The model was never trained for {named}: what it says about {named} means nothing."
        assert f"Warning: {caution}" in result.output
        assert f'<p class="warning">{caution}</p>' in page
        for published in (artifacts / "retina_multitask_best.pth", artifacts / "retina_multitask_final.pth"):
            assert load_checkpoint(published).contract.untrained_heads == (never,)
        assert f"; not {named}, which was never trained." in result.output
        assert contract.thresholds[f"referable_{never}"] == Contract().thresholds[f"referable_{never}"]
        assert page.count("<p>No photograph has a label.</p>") == 4  # for the confusion of each split, and for mistakes
        assert ("no DR grade" in page) == (never == "dr")
        history = pd.read_csv(run / "history.csv")
        assert history[f"valid_{never}_accuracy"].isna().all()
        assert history["valid_loss"].tolist() == history[f"valid_{head}_loss"].tolist()


def test_the_command_refuses_labels_that_make_no_sense(tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    relabel(tmp_path / "data/valid", [0, 1, 2], [NA] * 3)
    options = ["--image-size", 32, "--backbone", RESNET10, "--weights", "none", "--artifacts", tmp_path / "artifacts"]
    result = invoke(train_cli.main, tmp_path / "data", *options)
    assert result.exit_code == 2
    assert "1 fault; nothing was trained" in result.stderr
    assert "valid/annotations.csv: expected photographs with an ME label, as in train" in result.stderr
    for name in ("train", "valid", "test"):
        write_annotations(tmp_path / "data" / name, [["eye_0.jpg", 0]], ["Image name", "Retinopathy grade"])
    result = invoke(train_cli.main, tmp_path / "data", *options)
    assert "rename the one that holds it, or add it with NA in every row if there is none" in result.stderr
    assert "a head that is trained" not in result.stderr, "what no row says cannot be told"


def test_a_head_that_is_not_trained_needs_no_positives_to_calibrate_on(tmp_path: Path) -> None:
    write_set(tmp_path / "data")
    for name, n in (("train", 6), ("valid", 3), ("test", 3)):
        relabel(tmp_path / "data" / name, [0, 1, 2] * (n // 3), [0] * n)
    options = ["--image-size", 32, "--backbone", RESNET10, "--weights", "none", "--workers", 0, "--epochs", 1]
    options += ["--batch-size", 3, "--calibrate", "valid", "--artifacts", tmp_path / "artifacts"]
    refused = invoke(train_cli.main, tmp_path / "data", *options)
    assert refused.exit_code == 2 and "expected photographs with ME risk to calibrate on" in refused.stderr
    with pytest.MonkeyPatch.context() as patch:
        replace_pictures(patch.setattr)
        result = invoke(train_cli.main, tmp_path / "data", *options, "--me-weight", 0)
    assert result.exit_code == 0, result.output
    assert "; not ME, which was never trained." in result.output


def test_shares_of_risk_by_source_are_of_the_labelled(tmp_path: Path) -> None:
    p = replace(split_in_two(), sources=("a",) * 100 + ("b",) * 100)
    text = _source_note(evaluate(p, Contract(), n_bootstrap=2))
    for source, rows in (("a", slice(0, 100)), ("b", slice(100, 200))):
        labels = p.me_true[rows][p.me_true[rows] != UNLABELLED]
        assert f"{labels.mean():.0%} of {source}" in text


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, list[str]]:
    """A data folder whose test split has four photographs with a DR grade and three with an ME label."""
    write_set(tmp_path / "data", train=range(5), others=[0] * 5)
    relabel(tmp_path / "data/test", [0, NA, 3, 2, 4], [1, 0, NA, 1, NA])
    return tmp_path / "data", ["--model", str(write_tiny_model(tmp_path / "tiny.onnx"))]


def test_retina_score_compares_each_head_with_its_own_labels(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    data, model = scored
    out = tmp_path / "scores.csv"
    annotations = data / "test/annotations.csv"
    result = invoke(score_cli.main, data / "test/images", *model, "--out", out, "--annotations", annotations)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out, keep_default_na=False, dtype=str)
    assert table["True DR grade (orig)"].tolist() == ["0", "", "3", "2", "4"]
    assert table["True ME risk"].tolist() == ["1", "0", "", "1", ""]
    both = table[table["True DR grade (orig)"] != ""]
    right = (both["True DR grade (orig)"] == both["Pred DR grade (orig)"]).mean()
    assert "against 5 annotations (4 with a DR grade, 3 with an ME label):" in result.output
    assert f"DR accuracy {right:.4f}" in result.output
    referable = result.output.partition("referral of DR grade 2 or more: ")[2]
    assert "of 3), specificity" in referable.partition("\n")[0]

    relabel(data / "test", [0, 1, 3, 2, 4], [NA] * 5)
    result = invoke(score_cli.main, data / "test/images", *model, "--json", "--out", out, "--annotations", annotations)
    assert "true_me_risk" not in json.loads(result.stdout.splitlines()[0])
    assert json.loads(result.stdout.splitlines()[0])["true_dr_grade"] == 0
    assert "against 5 annotations (5 with a DR grade, 0 with an ME label):" in result.output
    assert "ME accuracy" not in result.output
    assert "referral of ME" not in result.output


def test_what_a_model_was_never_trained_for_is_said_and_not_summed_up(tmp_path: Path) -> None:
    write_set(tmp_path / "data", train=range(5))
    never = replace(CONTRACT, provenance={"untrained_heads": ["me"]})
    model = write_tiny_model(tmp_path / "tiny.onnx", contract=never)
    result = invoke(score_cli.main, tmp_path / "data/train/images", "--model", model, "--out", tmp_path / "scores.csv")
    caution = "Caution: The model was never trained for ME: what it says about ME means nothing."
    assert caution in result.stderr
    assert caution in result.stdout
    assert "to refer (which ones: --referral): DR" in result.stdout
    assert "; ME" not in result.stdout
    assert "ME risk" not in result.stdout
    write_tiny_model(model, contract=replace(never, explain=True))
    explained = invoke(gradcam_cli.main, tmp_path / "data/train/images", "--model", model, "--out", tmp_path / "maps")
    assert explained.exit_code == 0, explained.output
    assert caution in explained.stderr
    assert replace(CONTRACT, provenance={"untrained_heads": "me"}).untrained_heads == ()
    assert CONTRACT.caution == ""


def test_a_caution_of_the_file_s_own_is_said_without_its_control_characters(tmp_path: Path) -> None:
    write_set(tmp_path / "data", train=range(5))
    told = replace(CONTRACT, added_caution="Not for children: \x1b[2J.")
    model = write_tiny_model(tmp_path / "tiny.onnx", contract=told)
    result = invoke(score_cli.main, tmp_path / "data/train/images", "--model", model, "--out", tmp_path / "scores.csv")
    for stream in (result.stderr, result.stdout):
        assert "Caution: Not for children: \\x1b[2J.\n" in stream


def test_evaluation_of_a_file_on_them(scored: tuple[Path, list[str]], tmp_path: Path) -> None:
    data, model = scored
    result = invoke(evaluation.main, data, *model, "--out", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    body = json.loads((tmp_path / "figures.json").read_text())["splits"]["test"]["all"]
    assert (body["dr"]["n"], body["me"]["n"], body["referable_dr"]["positives"]) == (4, 3, 3)
    assert CONTRACT.dr_grades == (0, 1, 2, 3, 4)
    assert "| DR grade 3 | 1 |" in result.output
    assert "| with a DR grade | 4 |" in result.output
    assert "| with an ME label | 3 |" in result.output


def test_the_screening_points_find_as_many_as_they_should() -> None:
    p = split_in_two()
    rules = screening_rules(Contract(), p)
    asked = (
        ("referable_dr", p.dr_true, 2, p.dr_probs[:, 2:].sum(axis=1)),
        ("referable_me", p.me_true, 1, p.me_probs[:, 1]),
    )
    for task, true, ill_from, probs in asked:
        threshold = rules[task].threshold
        assert threshold is not None
        referred = probs >= threshold
        assert referred[true >= ill_from].mean() >= SENSITIVITY
        assert referred[(true < ill_from) & (true != UNLABELLED)].mean() < 0.8
    assert rules["referable_me"].threshold == screening_threshold(p.me_true, p.me_probs[:, 1])
