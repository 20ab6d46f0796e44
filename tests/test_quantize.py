"""int8: what is stored in eight bits, what stays exact, and the accuracy gate."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from retina.export import int8 as int8_module
from retina.export import to_onnx
from retina.export.gate import Gate, Quality, compare
from retina.export.int8 import Int8, _read, choose, screening_thresholds, to_int8
from retina.export.job import ExportJob, run_export
from retina.export.quantize import (
    Quantization,
    _store_as_int8,
    body_of,
    quantize,
    round_keeping_sums,
    tensors_to_measure,
)
from retina.export.ranges import measure_ranges
from retina.runtime.contract import Contract, Rule, default_thresholds
from retina.runtime.errors import AnnotationError, ParityError, UsageError
from retina.runtime.model import RetinaModel
from retina.runtime.picture import decode
from retina.train.checkpoint import load_checkpoint
from retina.train.data import Photo
from retina.train.predictions import Predictions
from small_export import SmallExport
from small_set import small_set


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (70, 60, 3), dtype=np.uint8) // np.uint8(1 + i % 3) for i in range(count)]


@pytest.fixture(scope="module")
def fp32(small_explained: Path) -> onnx.ModelProto:
    return onnx.load(small_explained)


@pytest.fixture(scope="module")
def int8(fp32: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(fp32, measure_ranges(fp32, tensors_to_measure(fp32), pictures(6)), Quantization("mean"))


def run(model: onnx.ModelProto, pixels: NDArray[np.uint8], names: list[str]) -> list[NDArray[np.float32]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(names, {"image": pixels})
    return outputs


def test_ranges_are_those_of_the_activations(fp32: onnx.ModelProto) -> None:
    tensor = tensors_to_measure(fp32)[0]  # the first convolution's input: the framed photograph
    ranges = measure_ranges(fp32, [tensor], pictures(3))
    probe = onnx.ModelProto()
    probe.CopyFrom(fp32)
    probe.graph.output.append(onnx.ValueInfoProto(name=tensor))
    values = [run(probe, picture[None], [tensor])[0] for picture in pictures(3)]
    assert ranges.by("widest")[tensor] == (min(v.min() for v in values), max(v.max() for v in values))
    assert ranges.by("mean")[tensor][1] == pytest.approx(np.mean([v.max() for v in values]))


def test_a_range_has_the_mean_of_each_end(fp32: onnx.ModelProto) -> None:
    """The lower end too: a range that is too wide below costs resolution above."""
    tensors = tensors_to_measure(fp32)
    each = [measure_ranges(fp32, tensors, [picture]).by("widest") for picture in pictures(3)]
    mean, widest = (measure_ranges(fp32, tensors, pictures(3)).by(method) for method in ("mean", "widest"))
    for tensor in tensors:
        ends = np.array([found[tensor] for found in each])
        assert mean[tensor] == pytest.approx(tuple(ends.mean(axis=0)), rel=1e-5)
        assert widest[tensor] == (ends[:, 0].min(), ends[:, 1].max())


def test_weights_are_int8_per_channel_and_framing_and_softmax_are_not(int8: onnx.ModelProto) -> None:
    onnx.checker.check_model(int8, full_check=True)
    tensors = {tensor.name: tensor for tensor in int8.graph.initializer}
    makers = {output: node for node in int8.graph.node for output in node.output}
    for node in int8.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = makers[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            assert tensors[weight.input[0]].data_type == TensorProto.INT8
            rows = tensors[weight.input[0]].dims[0]
            assert list(tensors[weight.input[1]].dims) == [rows], "one scale per output channel"
        if node.op_type == "QuantizeLinear":
            assert tensors[node.input[2]].data_type == TensorProto.UINT8
    sums = {node.output[0] for node in body_of(int8) if node.op_type == "Add"}
    readers = [node.op_type for node in int8.graph.node if sums.intersection(node.input)]
    assert readers == ["QuantizeLinear"] * 4, "each residual block's sum is stored in eight bits"
    framing, waiting = set(), [makers[makers[body_of(int8)[0].input[0]].input[0]].input[0]]  # what is first quantised
    while waiting:
        if node := makers.get(waiting.pop()):
            framing.add(node.op_type)
            waiting += node.input
    assert {"Resize", "GridSample"} <= framing and not framing & {"QuantizeLinear", "DequantizeLinear"}
    for node in int8.graph.node:
        if node.op_type == "Softmax":
            assert makers[node.input[0]].op_type == "Gemm"
    floats = [t for t in tensors.values() if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 10_000]
    assert not floats, [tensor.name for tensor in floats]


def test_int8_answers_close_to_fp32_and_smaller(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    assert int8.ByteSize() < 0.3 * fp32.ByteSize()
    for output in ("dr_probs", "me_probs"):
        ours, theirs = (
            np.concatenate([run(model, picture[None], [output])[0] for picture in pictures(6)])
            for model in (fp32, int8)
        )
        assert np.abs(ours - theirs).max() < 0.05
        changes = [(probs - probs.mean(axis=0)).ravel() for probs in (ours, theirs)]  # from picture to picture
        assert np.corrcoef(changes)[0, 1] > 0.8


def test_head_weights_round_to_the_nearest_of_255_steps(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    name = next(node.input[1] for node in body_of(fp32) if node.op_type == "Gemm")
    before = numpy_helper.to_array(next(t for t in fp32.graph.initializer if t.name == name))
    after = {t.name: numpy_helper.to_array(t) for t in int8.graph.initializer}
    restored = after[f"{name}_int8"] * after[f"{name}_scale"][:, None]
    step = np.abs(before).max(axis=1, keepdims=True) / 127
    assert (np.abs(restored - before) <= 0.5001 * step).all() and np.abs(restored - before).max() > 0


def test_blocks_in_floats_answer_as_fp32(fp32: onnx.ModelProto) -> None:
    """With one block in floats, its output equals fp32's; with none, it does not."""
    ranges = measure_ranges(fp32, tensors_to_measure(fp32), pictures(2))
    body = body_of(fp32)
    after_block = body[[node.op_type for node in body].index("Add") + 1].output[0]

    def answer(model: onnx.ModelProto) -> NDArray[np.float32]:
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.append(onnx.ValueInfoProto(name=after_block))
        return run(probe, pictures(1)[0][None], [after_block])[0]

    np.testing.assert_allclose(
        answer(quantize(fp32, ranges, Quantization("mean", 1))), answer(fp32), rtol=1e-4, atol=1e-4
    )
    assert np.abs(answer(quantize(fp32, ranges, Quantization("mean"))) - answer(fp32)).max() > 0.01


def test_rounding_keeps_each_kernels_sum() -> None:
    kernels = np.random.default_rng(2).uniform(-120, 120, (6, 4, 7, 7)).astype(np.float32)
    rounded = round_keeping_sums(kernels)
    assert np.abs(rounded.astype(float).sum((2, 3)) - kernels.sum((2, 3), dtype=float)).max() <= 0.5 + 1e-3
    assert np.abs(np.rint(kernels).sum((2, 3)) - kernels.sum((2, 3))).max() > 1, "plain rounding does not"
    assert np.abs(rounded - kernels).max() < 1.0
    by_hand = round_keeping_sums(np.array([[[[1.4, 2.45], [3.3, -1.4]]]], np.float32))  # sum 5.75; rounded singly, 5
    np.testing.assert_array_equal(by_hand, [[[[1, 3], [3, -1]]]])


def answers(truth: list[tuple[int, int]], dr: NDArray[np.float32], me: NDArray[np.float32]) -> Predictions:
    """Predictions for photographs with these DR grades and ME labels."""
    photos = [Photo(Path("x.jpg"), "x", 2, grade, label) for grade, label in truth]
    return Predictions.of(photos, range(5), dr, me)


def test_gate_by_hand() -> None:
    """With four photographs; int8 turns one grade 2 into 1, and swaps the order of two ME probabilities."""
    truth = [(0, 0), (2, 0), (3, 1), (4, 1)]
    right = np.eye(5, dtype=np.float32)[[0, 2, 3, 4]]
    wrong = np.eye(5, dtype=np.float32)[[0, 1, 3, 4]]
    fp32 = answers(truth, right, np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]], np.float32))
    int8 = answers(truth, wrong, np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.1, 0.9]], np.float32))
    gate = compare(Contract(), fp32, int8)
    assert (gate.fp32.dr_accuracy, gate.int8.dr_accuracy, gate.int8.me_accuracy) == (1.0, 0.75, 0.75)
    assert gate.int8.me_auc == 0.75  # 3 of the 4 pairs in order
    assert gate.fp32.referable_auc == 1.0 and gate.int8.referable_auc == pytest.approx((2 + 0.5) / 3)
    assert (gate.dr_agreement, gate.me_agreement) == (0.75, 0.75)
    assert [fault.split(":")[0] for fault in gate.faults] == [
        "dr_accuracy", "me_accuracy", "referable_auc", "me_auc", "dr_agreement", "me_agreement"
    ]  # fmt: skip
    assert compare(Contract(), fp32, fp32).faults == []


@pytest.mark.parametrize(("photographs", "is_said"), [(49, True), (50, False)])
def test_a_split_in_which_one_answer_decides_is_said_to_be_too_small(photographs: int, is_said: bool) -> None:
    fp32 = answers([(0, 0)], np.eye(5, dtype=np.float32)[[0]], np.eye(2, dtype=np.float32)[[0]])
    whole = replace(compare(Contract(), fp32, fp32), photographs=photographs)
    assert "too few" not in str(whole.lines())
    one_less = replace(whole, dr_agreement=1 - 1 / photographs)
    assert bool(one_less.faults) is is_said
    said = "too few photographs to judge by: one answer that changes is more than the 2% that may; take 50 or more"
    assert (said in one_less.lines()[-1]) is is_said
    assert "too few" not in str(replace(whole, photographs=51, me_agreement=0.9).lines())


def test_gate_without_positives_judges_what_it_can() -> None:
    healthy = answers([(0, 0), (1, 0)], np.eye(5, dtype=np.float32)[[0, 1]], np.array([[1, 0], [1, 0]], np.float32))
    gate = compare(Contract(), healthy, healthy)
    assert gate.int8.me_auc is None and gate.int8.referable_auc is None and gate.faults == []
    assert gate.lines()[1].strip() == "dr_accuracy 1.0000 to 1.0000, me_accuracy 1.0000 to 1.0000"


def test_gate_ranks_by_probability_and_not_by_decision() -> None:
    """None is predicted referable, yet all referable ones have a higher probability of it than all others."""
    dr = np.array([[0.9, 0.0, 0.1, 0.0, 0.0], [0.8, 0.0, 0.1, 0.1, 0.0], [0.7, 0.0, 0.3, 0.0, 0.0]], np.float32)
    valid = answers([(0, 0), (1, 0), (2, 1)], dr, np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32))
    swapped = replace(valid, dr_probs=dr[[0, 2, 1]])
    gate = compare(Contract(), valid, swapped)
    assert (gate.fp32.referable_auc, gate.int8.referable_auc) == (1.0, 0.5)
    assert gate.faults and gate.to_dict()["accepted"] is False


def test_what_is_kept_is_quick_among_the_close_ones() -> None:
    truth, right = [(0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 2]]
    fp32 = answers(truth, right, np.eye(2, dtype=np.float32))
    passes = compare(Contract(), fp32, fp32)
    fails = compare(Contract(), fp32, answers(truth, right[::-1], fp32.me_probs))

    def kept(*candidates: tuple[float, bool]) -> int:
        """Index of the chosen candidate (mean difference, whether the gate is passed), with the fastest first."""
        files = [
            Int8(
                onnx.ModelProto(),
                Quantization("mean", place),
                2,
                difference,
                passes if good else fails,
                default_thresholds(),
            )
            for place, (difference, good) in enumerate(candidates)
        ]
        return choose(files).quantization.float_blocks

    assert [way.float_blocks for way in int8_module.QUANTIZATIONS] == [0, 0, 1, 1, 3, 3]  # the fewer, the faster
    assert kept((0.004, True), (0.001, True)) == 0
    assert kept((0.008, True), (0.004, True), (0.003, True)) == 1
    assert kept((0.004, False), (0.008, True), (0.007, True)) == 2
    assert kept((0.004, False), (0.003, False), (0.005, False)) == 1


def test_a_file_that_is_kept_but_not_close_says_so() -> None:
    fp32 = answers([(0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 2]], np.eye(2, dtype=np.float32))
    passes = compare(Contract(), fp32, fp32)

    def last_line(difference: float) -> str:
        kept = Int8(onnx.ModelProto(), Quantization("mean", 1), 320, difference, passes, default_thresholds())
        return kept.lines()[-1].strip()

    assert last_line(0.0035) == "mean difference of a DR probability 0.0035"
    assert last_line(0.0123) == (
        "mean difference of a DR probability 0.0123, above the 0.005 aimed at: no closer way was as accurate"
    )


@pytest.mark.parametrize(("trained_on", "warns"), [("a", False), ("", False), ("b", True)])
def test_a_file_calibrated_on_other_photographs_than_trained_on_says_so(trained_on: str, warns: bool) -> None:
    fp32 = answers([(0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 2]], np.eye(2, dtype=np.float32))
    passes = compare(Contract(), fp32, fp32)
    kept = Int8(onnx.ModelProto(), Quantization("mean", 1), 2, 0.0, passes, default_thresholds(), "a", trained_on)
    assert ("not the photographs and labels" in kept.lines()[-1]) is warns
    assert kept.to_dict()["data_fingerprint"] == "a"


CALIBRATED = Contract(
    thresholds={
        **default_thresholds(),
        "referable_dr": Rule("at_least", 0.4, 3),
        "referable_me": Rule("at_least", 0.3),
    },
    provenance={"dr_temperature": 1.1, "me_temperature": 0.9},
)


def test_a_calibrated_checkpoints_referrals_are_fitted_to_the_int8_answers() -> None:
    """Grade 3 and above is referable here. With one or two photographs of each kind, screening may miss none."""
    dr = np.array(
        [[0.9, 0.0, 0.0, 0.1, 0.0], [0.1, 0.1, 0.6, 0.1, 0.1], [0.5, 0.1, 0.1, 0.2, 0.1], [0.0, 0.0, 0.0, 0.1, 0.9]],
        np.float32,
    )
    me = np.array([[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.96, 0.04]], np.float32)
    found = screening_thresholds(CALIBRATED, answers([(0, 0), (2, 1), (3, 0), (4, 0)], dr, me))
    # Grades 3 and 4 have probability 0.1, 0.2, 0.3 and 1.0: both referable photographs are found from 0.3 on.
    assert found["referable_dr"].level == pytest.approx(0.25)
    assert found["referable_dr"].from_grade == 3
    assert found["referable_me"].level == pytest.approx(0.15)
    assert (found["dr"], found["me"]) == (Rule(), Rule())
    # Of the two referable photographs one is enough for a sensitivity of 0.5.
    asked = replace(CALIBRATED, provenance={**CALIBRATED.provenance, "dr_sensitivity": 0.5})
    level = screening_thresholds(asked, answers([(0, 0), (2, 1), (3, 0), (4, 0)], dr, me))["referable_dr"].level
    assert level == pytest.approx((1.0 + 0.3) / 2)


def test_rules_that_nobody_fitted_stay() -> None:
    asked = replace(CALIBRATED, provenance={})
    valid = answers([(0, 0), (4, 1)], np.eye(5, dtype=np.float32)[[0, 4]], np.eye(2, dtype=np.float32))
    assert screening_thresholds(asked, valid) == asked.thresholds


def test_the_paths_of_an_export_may_be_text() -> None:
    paths = {"checkpoint": "c.pth", "out": "m.onnx", "check": "p", "calibration": "d", "sign": "k", "conformance": "t"}
    job = ExportJob(**paths, precision="int8")  # type: ignore[arg-type]
    assert {name: getattr(job, name) for name in paths} == {name: Path(path) for name, path in paths.items()}
    assert ExportJob(Path("c.pth"), Path("m.onnx")).sign is None


def test_an_exported_int8_file_carries_its_own_referrals(
    small_export: SmallExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the whole export of a calibrated checkpoint, the file's own answers find nine of ten at its thresholds."""
    # Of the same network, whose conversion takes most of an export's time.
    monkeypatch.setattr(to_onnx, "to_onnx", lambda *_: onnx.load(small_export.model))
    monkeypatch.setattr(int8_module, "QUANTIZATIONS", (Quantization("mean"),))
    data = small_set(tmp_path / "data", [0, 1, 2, 3, 4] * 2, [0, 2, 0, 3, 1, 4] * 2)
    for split in data.splits.values():  # ME grade 2 is risk here, as in the checkpoint
        graded = re.sub(r"^([^,]+,\d),1\b", r"\1,2", split.annotations.read_text(), flags=re.MULTILINE)
        split.annotations.write_text(graded)
    checkpoint = load_checkpoint(small_export.checkpoint)
    calibrated = replace(checkpoint.contract, thresholds=CALIBRATED.thresholds, provenance=CALIBRATED.provenance)
    replace(checkpoint, contract=calibrated, config={"me_positive_from": 2}).save(tmp_path / "c.pth")
    job = ExportJob(
        tmp_path / "c.pth", tmp_path / "m.onnx", precision="int8", calibration=data.root,
        check=data.root / "valid/images", force=True,
    )  # fmt: skip
    run_export(job)
    model = RetinaModel(tmp_path / "m.onnx")
    assert model.contract.thresholds["referable_dr"].from_grade == 3
    assert model.contract.thresholds != CALIBRATED.thresholds
    valid = data.splits["valid"].photos
    sick = [photo for photo in valid if photo.dr_grade is not None and photo.dr_grade >= 3]
    assert sick and all(model.predict(photo.path).referable for photo in sick)
    photographs = [
        f"{name} {hashlib.sha256(photo.path.read_bytes()).hexdigest()} {photo.dr_grade} {photo.me_label}"
        for name, split in data.splits.items() for photo in split.photos
    ]  # fmt: skip
    fingerprint = hashlib.sha256("\n".join(sorted(photographs)).encode()).hexdigest()
    assert model.contract.parity["int8"]["data_fingerprint"] == fingerprint
    edema = [photo for photo in valid if photo.me_label]
    assert edema and all(model.predict(photo.path).referable_me for photo in edema)


def test_valid_without_edema_is_refused_before_a_calibrated_checkpoint_is_quantised(
    tmp_path: Path, fp32: onnx.ModelProto
) -> None:
    data = small_set(tmp_path, [0, 3], [0, 3])
    path = data.splits["valid"].annotations
    path.write_text(path.read_text().replace(",1,", ",0,"))
    with pytest.raises(AnnotationError, match="photographs with ME risk to calibrate on, found none"):
        to_int8(fp32, CALIBRATED, data.root, None, force=True)


def test_a_threshold_that_int8_cannot_fit_is_said_to_stay(
    tmp_path: Path, fp32: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_module, "QUANTIZATIONS", (Quantization("mean"),))
    data = small_set(tmp_path, [0, 3], [0, 3])
    path = data.splits["valid"].annotations
    path.write_text(re.sub(",0(?=,)", ",1", path.read_text()))
    kept = to_int8(fp32, CALIBRATED, data.root, None, force=True)
    assert kept.thresholds["referable_me"] == CALIBRATED.thresholds["referable_me"]
    said = f"  Warning: {path}: every photograph has ME risk; the ME referral threshold stays 0.300, as "
    assert [line.startswith(said) for line in kept.lines()].count(True) == 1
    assert "Warning" not in "".join(to_int8(fp32, Contract(), data.root, None, force=True).lines())


def test_int8_is_calibrated_on_train_and_judged_on_valid(
    tmp_path: Path, fp32: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and its difference from fp32, found again from the photographs that they should come from."""
    monkeypatch.setattr(int8_module, "QUANTIZATIONS", (Quantization("mean"),))
    monkeypatch.setattr(int8_module, "CALIBRATION_PHOTOGRAPHS", 3)
    seen: list[Predictions] = []

    def noted(rules: Contract, fp32: Predictions, int8: Predictions) -> Gate:
        seen.extend((fp32, int8))
        return compare(rules, fp32, int8)

    monkeypatch.setattr(int8_module, "compare", noted)
    data = small_set(tmp_path, [0, 1, 2, 3, 4], [0, 3, 1, 2])
    kept = to_int8(fp32, Contract(provenance={"data_fingerprint": "others"}), data.root, None, force=True)
    assert kept.trained_on == "others" and "not the photographs and labels" in kept.lines()[-1]
    ours = to_int8(fp32, Contract(provenance={"data_fingerprint": kept.data_fingerprint}), data.root, None, force=True)
    assert "not the photographs and labels" not in ours.lines()[-1]
    seen = seen[:2]
    train, valid = ([decode(photo.path) for photo in data.splits[name].photos] for name in ("train", "valid"))
    by_hand = quantize(
        fp32, measure_ranges(fp32, tensors_to_measure(fp32), [train[i] for i in (0, 2, 4)]), kept.quantization
    )
    assert kept.model.SerializeToString() == by_hand.SerializeToString()
    assert (kept.calibrated_on, kept.gate.photographs) == (3, len(valid))
    before, after = (
        np.concatenate([run(model, pixels[None], ["dr_probs"])[0] for pixels in valid]) for model in (fp32, by_hand)
    )
    assert kept.mean_difference == pytest.approx(np.abs(before - after).mean(), rel=1e-5)
    right = [photo.dr_grade for photo in data.splits["valid"].photos]
    for quality, predicted, probs in zip((kept.gate.fp32, kept.gate.int8), seen, (before, after), strict=True):
        np.testing.assert_allclose(predicted.dr_probs, probs, rtol=1e-5)  # their accuracies may be the same
        assert quality.dr_accuracy == np.mean(probs.argmax(axis=1) == right)


def test_closeness_is_that_of_a_head_that_was_trained(
    tmp_path: Path, fp32: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_module, "QUANTIZATIONS", (Quantization("mean"),))
    data = small_set(tmp_path, [0, 1, 2, 3, 4], [0, 3, 1, 2])
    valid = [decode(photo.path) for photo in data.splits["valid"].photos]
    for head, untrained in (("dr", []), ("dr", ["me"]), ("me", ["dr"])):
        contract = Contract(provenance={"untrained_heads": untrained})
        kept = to_int8(fp32, contract, data.root, None, force=True)
        before, after = (
            np.concatenate([run(model, pixels[None], [f"{head}_probs"])[0] for pixels in valid])
            for model in (fp32, kept.model)
        )
        assert kept.mean_difference == pytest.approx(np.abs(before - after).mean(), rel=1e-5)
        said = f"mean difference of {'a DR' if head == 'dr' else 'an ME'} probability {kept.mean_difference:.4f}"
        assert any(said in line for line in kept.lines())


def test_int8_that_is_not_as_accurate_is_refused_unless_forced(
    tmp_path: Path, fp32: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_set(tmp_path, [0, 1, 2], [0, 1, 2])
    monkeypatch.setattr(int8_module, "QUANTIZATIONS", (Quantization("mean"), Quantization("mean", 3)))
    monkeypatch.setattr(int8_module, "compare", lambda *files: replace(compare(*files), dr_agreement=0.5))
    with pytest.raises(ParityError) as caught:
        to_int8(fp32, Contract(), data.root, None, force=False)
    message = str(caught.value)
    assert message.startswith(f"{data.root}: expected an int8 file as accurate as fp32, found none among 2 ways")
    assert "dr_agreement: expected at least 0.98, found 0.5000" in message
    assert "--force keeps it" in message
    forced = to_int8(fp32, Contract(), data.root, None, force=True)
    assert forced.to_dict()["accepted"] is False
    said = replace(forced, mean_difference=0.0123).lines()
    assert said[-2:] == [
        "  mean difference of a DR probability 0.0123",
        "  not as accurate as fp32: dr_agreement: expected at least 0.98, found 0.5000",
    ]


def test_grades_that_the_model_lacks_cannot_be_judged(tmp_path: Path, fp32: onnx.ModelProto) -> None:
    data = small_set(tmp_path, [0, 1, 3], [0, 1, 3])
    with pytest.raises(UsageError, match=r"--calibration .*: expected the model's grades \(0, 1, 2\), found \[3\] too"):
        to_int8(fp32, Contract(dr_grades=(0, 1, 2)), data.root, None, force=True)


def test_each_bound_of_the_gate() -> None:
    """Just within and just beyond each bound; the two agreements are for their own head."""
    good = Quality(0.9, 0.9, 0.9, 0.9)

    def faults(int8: Quality, dr: float = 1.0, me: float = 1.0) -> list[str]:
        return [fault.split(":")[0] for fault in Gate(100, good, int8, dr, me).faults]

    for name in ("dr_accuracy", "me_accuracy", "referable_auc", "me_auc"):
        assert faults(replace(good, **{name: 0.8951})) == []
        assert faults(replace(good, **{name: 0.8949})) == [name]
    for before, after in ((0.9, 0.895), (0.995, 0.99), (0.8, 0.795)):  # of 0.005, whatever the floats' difference
        assert Gate(100, Quality(*[before] * 4), Quality(*[after] * 4), 1.0, 1.0).faults == []
    assert faults(good, dr=0.98, me=0.98) == []
    assert faults(good, dr=0.979) == ["dr_agreement"] and faults(good, me=0.979) == ["me_agreement"]
    truth, dr = [(0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 2]]
    me = np.eye(2, dtype=np.float32)
    gate = compare(Contract(), answers(truth, dr, me), answers(truth, dr, me[[1, 1]]))
    assert (gate.dr_agreement, gate.me_agreement) == (1.0, 0.5)


def test_the_gate_compares_answers_and_not_referrals() -> None:
    contract = Contract(thresholds={**default_thresholds(), "referable_me": Rule("at_least", 0.2)})
    truth, dr = [(0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 2]]
    fp32, int8 = (answers(truth, dr, np.array([[1 - p, p], [0.1, 0.9]], np.float32)) for p in (0.1, 0.4))
    assert compare(contract, fp32, int8).me_agreement == 1.0


def test_as_many_blocks_as_asked_are_in_floats(fp32: onnx.ModelProto) -> None:
    """Of the small network's 12 convolutions, 3 are before the end of its first block, and 3 in each other block."""
    ranges = measure_ranges(fp32, tensors_to_measure(fp32), pictures(1))

    def quantised(float_blocks: int) -> int:
        model = quantize(fp32, ranges, Quantization("widest", float_blocks))
        floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        return sum(node.op_type == "Conv" and node.input[1] not in floats for node in model.graph.node)

    assert [quantised(float_blocks) for float_blocks in range(4)] == [12, 9, 6, 3]


def test_a_row_of_zeros_is_stored_as_zeros() -> None:
    """By hand: steps of 2 / 127 in the other row, so 1 is 63.5 steps, rounded to the even number."""
    weight = numpy_helper.from_array(np.array([[0, 0], [1, -2]], np.float32), "w")
    graph = helper.make_graph([], "g", [], [], [weight])
    _store_as_int8(graph, "w")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    np.testing.assert_array_equal(stored["w_int8"], [[0, 0], [64, -127]])
    assert stored["w_scale"][0] > 0 and stored["w_scale"][1] == pytest.approx(2 / 127)
    (node,) = graph.node
    assert (node.op_type, list(node.output)) == ("DequantizeLinear", ["w"])


def test_the_referral_of_each_head_is_told() -> None:
    fp32 = answers([(0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 2]], np.eye(2, dtype=np.float32))
    passes = compare(Contract(), fp32, fp32)
    kept = Int8(onnx.ModelProto(), Quantization("mean", 1), 320, 0.0, passes, CALIBRATED.thresholds)
    assert kept.lines()[0] == (
        "quantised with mean ranges, 1 residual block in floats, calibrated on 320 photographs of train"
    )
    assert kept.lines()[-2] == "  referral from DR 0.400, ME 0.300"
    assert (kept.to_dict()["calibrated_on"], kept.to_dict()["photographs"]) == (320, 2)
    assert str(Quantization("widest", 0)) == "widest ranges, 0 residual blocks in floats"


def test_only_what_is_judged_must_have_the_models_grades_and_what_is_calibrated_both_answers(tmp_path: Path) -> None:
    """Grade 3 is in train alone; photographs with ME risk are in valid for the calibrated alone."""
    data = small_set(tmp_path, [0, 1, 2, 3], [0, 1, 2])
    contract = Contract(dr_grades=(0, 1, 2))
    assert [photo.dr_grade for photo in _read(data.root, contract, None).splits["train"].photos] == [0, 1, 2, 3]
    annotations = data.splits["valid"].annotations
    annotations.write_text(annotations.read_text().replace(",1,", ",0,"))
    assert {photo.me_label for photo in _read(data.root, contract, None).splits["valid"].photos} == {0}
    with pytest.raises(AnnotationError, match="photographs with ME risk to calibrate on, found none"):
        _read(data.root, replace(CALIBRATED, dr_grades=(0, 1, 2)), None)


def test_what_int8_does_better_is_no_fault() -> None:
    assert Gate(100, Quality(*[0.9] * 4), Quality(*[0.99] * 4), 1.0, 1.0).faults == []


def test_gate_ranks_edema_by_its_probability() -> None:
    """All are below the threshold in both, yet int8 puts the one with ME risk between the two without."""
    truth, dr = [(0, 0), (0, 0), (2, 1)], np.eye(5, dtype=np.float32)[[0, 0, 2]]
    fp32, int8 = (
        answers(truth, dr, np.array([[1 - p, p] for p in risks], np.float32))
        for risks in ((0.1, 0.2, 0.3), (0.1, 0.3, 0.2))
    )
    gate = compare(Contract(), fp32, int8)
    assert (gate.fp32.me_auc, gate.int8.me_auc, gate.me_agreement) == (1.0, 0.5, 1.0)
