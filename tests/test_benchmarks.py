"""The benchmarks whose figures docs/ and the card quote measure what they say, on drawn photographs."""

from __future__ import annotations

import math
import re
import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from eyes import write_set
from numpy.typing import NDArray
from PIL import Image
from retina.export.novelty_output import add_novelty
from retina.runtime.model import RetinaModel
from retina.train import soup
from retina.train.checkpoint import Checkpoint
from retina.train.data import read_dataset, scan_dataset
from retina.train.synthetic import write_dataset
from scipy.ndimage import find_objects, label
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import accuracy_score, cohen_kappa_score, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from small_backbone import RESNET10
from tiny_model import CONTRACT, expected_probs, tiny_model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks") / "data"
    write_dataset(root, {"train": 60, "valid": 24, "test": 10}, size=96, seed=3)
    return root


def table(name: str, *arguments: str) -> list[dict[str, str]]:
    """The Markdown table that a benchmark prints, as a dictionary per row."""
    result = CliRunner().invoke(runpy.run_path(str(BENCHMARKS / name))["main"], arguments)
    assert result.exit_code == 0, result.output
    lines = [line.strip("| ").split(" | ") for line in result.output.splitlines() if line.startswith("| ")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("name", sorted(file.name for file in BENCHMARKS.glob("*.py")))
def test_each_benchmark_says_how_it_is_used(name: str) -> None:
    result = CliRunner().invoke(runpy.run_path(str(BENCHMARKS / name))["main"], ["--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_bad_input_ends_a_benchmark_as_it_ends_a_command(drawn: Path) -> None:
    main = runpy.run_path(str(BENCHMARKS / "cross_source.py"))["main"]
    result = CliRunner().invoke(main, [str(drawn), "--source", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr == "cross_source.py: --source nowhere: expected one of larga, ronda\n"


def test_cross_source_tests_on_the_other_source_and_leaves_the_test_split_alone(drawn: Path, tmp_path: Path) -> None:
    module: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "cross_source.py"))
    data = read_dataset(drawn)
    module["write_view"](data, "larga", tmp_path)
    view, faults = scan_dataset(tmp_path)
    assert faults == []
    for name, splits, is_own in (
        ("train", ["train"], True),
        ("valid", ["valid"], True),
        ("test", ["train", "valid"], False),
    ):
        expected = [
            (p.path.name, p.dr_grade, p.me_label, p.patient)
            for split in splits for p in data.splits[split].photos if (p.source == "larga") == is_own
        ]  # fmt: skip
        assert expected
        found = [(p.path.name.partition("_")[2], p.dr_grade, p.me_label, p.patient) for p in view.splits[name].photos]
        assert sorted(found) == sorted(expected)


def test_cross_source_takes_photographs_of_one_name_from_both_splits(tmp_path: Path) -> None:
    write_set(tmp_path / "data")  # eye_0.jpg, ... in each split, all of the source "cam"
    module: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "cross_source.py"))
    data = read_dataset(tmp_path / "data")
    module["write_view"](data, "another", tmp_path / "view")
    assert len(list((tmp_path / "view/test/images").iterdir())) == 9


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_cross_source_averages_the_branches(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    average, evaluate_checkpoint = soup.average, soup.evaluate_checkpoint
    ends: list[str] = []
    figures: list[dict[str, Any]] = []

    def noted_ends(parts: Sequence[tuple[str, Checkpoint]]) -> Checkpoint:
        ends.extend("/".join(Path(name).parts[-2:]) for name, _ in parts)
        return average(parts)

    def noted_figures(*arguments: Any) -> dict[str, Any]:
        figures.append(evaluate_checkpoint(*arguments))
        return figures[-1]

    monkeypatch.setattr(soup, "average", noted_ends)
    monkeypatch.setattr(soup, "evaluate_checkpoint", noted_figures)
    rows = table(
        "cross_source.py", str(drawn), "--backbone", RESNET10, "--weights", "none", "--image-size", "32",
        "--epochs", "1", "--step", "6", "--step", "9", "--source", "larga", "--workers", "0",
    )  # fmt: skip
    data = read_dataset(drawn)
    own = sum(p.source == "larga" for p in data.splits["train"].photos)
    other = sum(p.source == "ronda" for name in ("train", "valid") for p in data.splits[name].photos)
    assert [row["recipe"] for row in rows] == ["then released-512", "the mean of the three"]
    for row in rows:
        assert row["trained on"] == f"larga ({own})"
        assert row["tested on"] == f"ronda ({other})"
    assert ends == ["6-larga/final.pth", "7-larga/final.pth", "8-larga/final.pth"]
    for where, of_split in zip(("own", "other"), figures, strict=True):
        for title, task, name in (("DR quadratic kappa", "dr", "kappa"), ("ME AUC", "me", "auc")):
            assert rows[1][f"{where} {title}"] == f"{of_split['all'][task][name]['value']:.3f}"


def test_the_training_benchmark_times_each_way(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(drawn), "--image-size", "32", "--batches", "1", "--rounds", "1", "--workers", "0"]
    runpy.run_path(str(BENCHMARKS / "train.py"))["main"](options, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "1 rounds of 16 photographs" in printed
    assert re.findall(r"^(\D+?) +[\d.]+ photographs/s", printed, flags=re.MULTILINE) == [
        "plainest loop", "this loop", "with its loader", "the original's way"
    ]  # fmt: skip


def test_degradation_scores_the_degraded_copies(drawn: Path, tmp_path: Path) -> None:
    """With a model whose answers are easy to compute; photographs are degraded by numpy here and by Pillow there."""
    onnx.save(tiny_model(), tmp_path / "tiny.onnx")
    rows = table(
        "degradation.py", str(drawn), "--model", str(tmp_path / "tiny.onnx"),
        "--way", "as it is", "--way", "gamma 0.6, washed out", "--way", "the middle 50%",
    )  # fmt: skip
    data = read_dataset(drawn)
    photos = data.splits["valid"].photos
    pictures = [np.asarray(Image.open(photo.path).convert("RGB")) for photo in photos]
    by_hand = {
        "as it is": pictures,
        "gamma 0.6, washed out": [np.round(255 * (picture / 255) ** 0.6).astype(np.uint8) for picture in pictures],
        "the middle 50%": [_middle_half(picture) for picture in pictures],
    }
    grades = [photo.dr_grade for photo in photos if photo.dr_grade is not None]
    assert len(grades) == len(photos)
    assert [row["photograph"] for row in rows] == list(by_hand)
    for row in rows:
        dr, me = (np.array(probs) for probs in zip(*map(expected_probs, by_hand[row["photograph"]]), strict=True))
        assert float(row["DR quadratic kappa"]) == pytest.approx(
            cohen_kappa_score(grades, dr.argmax(axis=1), weights="quadratic"), abs=1e-3
        )
        auc = roc_auc_score([grade >= 2 for grade in grades], dr[:, 2:].sum(axis=1))
        assert float(row["Referable DR AUC"]) == pytest.approx(auc, abs=1e-3)
        assert float(row["ME AUC"]) == pytest.approx(roc_auc_score([p.me_label for p in photos], me[:, 1]), abs=1e-3)
    assert len({tuple(row.values())[2:] for row in rows}) == len(rows)


def test_novelty_is_that_of_the_file_that_is_fitted(drawn: Path, small_explained: Path, tmp_path: Path) -> None:
    data = read_dataset(drawn, splits=("train", "valid"))
    (tmp_path / "pictures").mkdir()
    for name in ("black", "white"):
        Image.new("RGB", (96, 96), name).save(tmp_path / f"pictures/{name}.png")
    rows = table(
        "novelty.py", str(drawn), "--model", str(small_explained), "--pictures", str(tmp_path / "pictures"),
        "--way", "grain 25",
    )  # fmt: skip
    sources = sorted({photo.source for photo in data.splits["train"].photos})
    assert [row["fitted to"] for row in rows] == ["all"] * 3 + [name for name in sources for _ in range(3)]
    for source in (None, *sources):
        mine, others = (
            {
                name: [p for p in split.photos if (source in (None, p.source)) is own]
                for name, split in data.splits.items()
            }
            for own in (True, False)
        )
        add_novelty(RetinaModel(small_explained), [p.path for p in mine["train"]], tmp_path / "told.onnx")
        told = RetinaModel(tmp_path / "told.onnx", exact=True)
        for what, paths in {
            "valid, the same sources": [p.path for p in mine["valid"]],
            "train and valid, other sources": [p.path for p in others["train"] + others["valid"]],
            "pictures without a retina": list((tmp_path / "pictures").iterdir()),
        }.items():
            found = np.array([told.predict(path).novelty for path in paths])
            row = [row for row in rows if row["fitted to"] == (source or "all") and row["judged on"] == what]
            assert len(row) == int(len(paths) > 0)
            for title, value in (("smallest", np.min), ("median", np.median), ("largest", np.max)) if row else ():
                assert float(row[0][title]) == pytest.approx(value(found), abs=0.06, rel=1e-3)
            if row:
                assert row[0]["unfamiliar"] == f"{np.mean(found >= 10):.1%}"
    (grainy,) = (row for row in rows if row["judged on"] == "valid, grain 25")
    assert grainy["pictures"] == rows[0]["pictures"] and float(grainy["median"]) > float(rows[0]["median"])


@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")
def test_calibration_takes_the_files_own_back_and_judges_patients_by_the_others(drawn: Path, tmp_path: Path) -> None:
    bias = np.array([0.5, -1.0, 0.0, 0.25, 0.25])
    facts = {"dr_temperature": 0.4, "dr_bias": bias.tolist()}
    onnx.save(tiny_model(contract=replace(CONTRACT, provenance=facts)), tmp_path / "tiny.onnx")
    rows = table("calibration.py", str(drawn), "--model", str(tmp_path / "tiny.onnx"), "--deals", "2")
    assert [(row["head"], row["scaling"]) for row in rows[:3]] == [
        ("DR", "none"), ("DR", "temperature"), ("DR", "temperature, biases of sd 0.06")
    ]  # fmt: skip
    photos = read_dataset(drawn).splits["valid"].photos
    pictures = [np.asarray(Image.open(photo.path).convert("RGB")) for photo in photos]
    dr, _ = (np.array(probs) for probs in zip(*map(expected_probs, pictures), strict=True))
    grades, patients = [photo.dr_grade or 0 for photo in photos], [photo.patient_key for photo in photos]
    raw = softmax(0.4 * (np.log(dr) - bias), axis=1)
    assert float(rows[0]["negative log-likelihood"]) == pytest.approx(log_loss(grades, raw), abs=1e-4)
    assert float(rows[0]["accuracy"]) == pytest.approx(accuracy_score(grades, raw.argmax(1)), abs=1e-4)
    auc = roc_auc_score([grade >= 2 for grade in grades], raw[:, 2:].sum(1))
    assert float(rows[0]["referral AUC"]) == pytest.approx(auc, abs=1e-4)

    log, losses = np.log(raw), []
    for deal in (0, 1):
        out = np.zeros_like(raw)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=deal).split(raw, grades, patients)
        for rest, part in folds:
            known = [grades[i] for i in rest]

            def loss(fitted: NDArray[np.float64], scores: Any = log[rest], known: Any = known) -> float:
                likelihood = log_softmax(scores / math.exp(fitted[0]) + fitted[1:], axis=1)[range(len(known)), known]
                return float(-likelihood.sum() - norm(0, 0.5).logpdf(fitted[1:]).sum())

            best = minimize(loss, np.zeros(6), method="BFGS").x
            out[part] = softmax(log[part] / min(math.exp(best[0]), 20.0) + best[1:], axis=1)
        losses.append(log_loss(grades, out))
    (row,) = (row for row in rows if row["head"] == "DR" and row["scaling"] == "temperature, biases of sd 0.5")
    assert float(row["negative log-likelihood"]) == pytest.approx(np.mean(losses), abs=3e-4)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_near_duplicates_counts_the_copies_that_are_missed(drawn: Path) -> None:
    rows = {row.pop("copy"): row for row in table("near_duplicates.py", str(drawn), "--every", "8")}
    brighter, framed = rows["10% brighter"], rows["on a black 3:2 frame"]
    assert brighter["missed"] == framed["missed"] == "0 of 3"
    assert framed["by the field alone"] == "0" < framed["by the whole alone"]
    assert all(int(row["largest distance"]) % 2 == 0 for row in rows.values())


def test_dust_is_so_many_grains_that_take_light_of_every_colour_alike() -> None:
    dust = runpy.run_path(str(BENCHMARKS / "degradation.py"))["WAYS"]["dust, 10 dark grains"]
    plain = Image.new("RGB", (512, 512), (200, 100, 50))
    dusty = np.asarray(dust(plain, np.random.default_rng(0))) / np.array([200.0, 100.0, 50.0])
    assert np.abs(dusty - dusty[..., :1]).max() < 0.02  # rounding
    assert dusty.min() + 0.01 >= 1.0 - 0.35
    assert dusty.min() < 1.0 - 0.35 / 2
    grains, count = label(dusty[..., 0] < 0.97)
    assert 8 <= count <= 10  # some grains may touch
    widths = [rows.stop - rows.start for rows, _ in find_objects(grains)]
    assert min(widths) >= 5
    assert max(widths) <= 2 * 2 * 7 + 2
    assert (dusty[:20] == 1.0).all()


def test_resizing_without_antialiasing_is_opencvs_on_the_same_places() -> None:
    """Each new pixel's centre lies where it would with antialiasing; only what is read around it differs."""
    change = runpy.run_path(str(BENCHMARKS / "embedding.py"))["without_antialias"](32)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    expected = F.interpolate(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (32, 48), mode="bilinear")
    np.testing.assert_allclose(change(pixels), expected[0].permute(1, 2, 0), atol=1)


def _middle_half(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    height, width = picture.shape[:2]
    return picture[round(height / 4) : round(height * 3 / 4), round(width / 4) : round(width * 3 / 4)]
