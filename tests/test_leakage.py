"""Detection of the same photograph, or patient, in two splits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from eyes import eye, write_annotations, write_set
from PIL import Image
from retina.runtime.contract import Preprocessing
from retina.train import leakage
from retina.train.cli import main
from retina.train.data import SPLITS, read_dataset, scan_dataset
from retina.train.frames import Look, look_through
from retina.train.leakage import NEAR_BITS, find_copies, find_leaks, near_pairs, unnamed_patients
from retina.train.perceptual_hash import bits, distances, perceptual_hash
from retina.train.synthetic import photograph
from small_backbone import RESNET10


def leaks_of(root: Path) -> list[str]:
    data, faults = scan_dataset(root)
    assert faults == []
    looks: dict[str, list[Look]] = {}
    for name in SPLITS:
        paths = [photo.path for photo in data.splits[name].photos]
        _, looks[name] = look_through(paths, Preprocessing(image_size=128), "uint8", "off", root)
    return [str(leak) for leak in find_leaks(data, looks)]


def test_near_is_up_to_sixteen_bits_of_256_in_either_view() -> None:
    one = np.ones((1, 2, 256), np.float32)
    other = -np.ones((4, 2, 256), np.float32)
    other[0, 0, 16:] = other[1, 0, 17:] = other[2, 1, 16:] = other[3, 1, 17:] = 1
    assert list(near_pairs(one, other)) == [(0, 0), (0, 2)]


def test_splits_of_different_eyes_and_patients_have_no_leak(tmp_path: Path) -> None:
    assert leaks_of(write_set(tmp_path)) == []
    assert unnamed_patients(read_dataset(tmp_path)) == ""


def test_photographs_of_unnamed_patients_are_counted(tmp_path: Path) -> None:
    data = read_dataset(write_set(tmp_path))
    valid = data.splits["valid"]
    nobodys = replace(valid, photos=(*valid.photos[:1], *(replace(photo, patient="") for photo in valid.photos[1:])))
    note = unnamed_patients(replace(data, splits={**data.splits, "valid": nobodys}))
    assert note.startswith("no Patient is named for 2 of 12 photographs.")


def test_the_same_bytes_in_two_splits_with_their_label_conflicts(tmp_path: Path) -> None:
    write_set(tmp_path)
    images = {name: tmp_path / name / "images" for name in SPLITS}
    shutil.copy(images["train"] / "eye_4.jpg", images["valid"] / "eye_0.jpg")  # labelled DR 2 ME 1, and DR 0 ME 0
    shutil.copy(images["valid"] / "eye_1.jpg", images["test"] / "eye_1.jpg")  # with the same labels
    assert leaks_of(tmp_path) == [
        "same bytes: train/eye_4.jpg (line 6) and valid/eye_0.jpg (line 2); DR grade 2 and 0, ME risk 1 and 0",
        "same bytes: valid/eye_1.jpg (line 3) and test/eye_1.jpg (line 3)",
    ]


@pytest.mark.parametrize(("side", "quality"), [(256, 50), (180, 90)])
def test_a_recompressed_or_shrunk_copy_is_near_identical(tmp_path: Path, side: int, quality: int) -> None:
    write_set(tmp_path)
    original = Image.fromarray(photograph(1, 0, 256, seed=3).picture)
    original.save(tmp_path / "train/images/eye_2.jpg", quality=95)
    copy = original.resize((side, round(side * original.height / original.width)))
    copy.save(tmp_path / "test/images/eye_1.jpg", quality=quality)
    assert leaks_of(tmp_path) == [
        "near-identical: train/eye_2.jpg (line 4) and test/eye_1.jpg (line 3); DR grade 2 and 1, ME risk 1 and 0"
    ]


def test_a_copy_on_a_wider_black_frame_is_near_identical(tmp_path: Path) -> None:
    """As a camera saves it that does not cut its photographs to the field."""
    write_set(tmp_path)
    original = Image.fromarray(photograph(1, 0, 256, seed=3).picture)
    original.save(tmp_path / "train/images/eye_2.jpg", quality=95)
    sensor = Image.new("RGB", (round(1.5 * original.width), original.height))
    sensor.paste(original, (original.width // 4, 0))
    sensor.save(tmp_path / "test/images/eye_1.jpg", quality=95)
    (leak,) = leaks_of(tmp_path)
    assert leak.startswith("near-identical: train/eye_2.jpg")


@pytest.mark.parametrize("seed", [3, 5])
def test_the_whole_of_a_copy_is_near_where_its_fields_edge_is_found_elsewhere(seed: int) -> None:
    original = Image.fromarray(photograph(1, 0, 384, seed=seed).picture)
    file = BytesIO()
    original.resize((150, 150)).save(file, "JPEG", quality=30)
    one, other = (bits([perceptual_hash(np.array(image))]) for image in (original, Image.open(file)))
    assert distances(one, other).min() <= NEAR_BITS


def test_what_is_near_identical_does_not_depend_on_what_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "eye.png"
    Image.fromarray(photograph(1, 0, 256, seed=3).picture).save(path)
    runs = [Preprocessing(image_size=32), Preprocessing(image_size=224), Preprocessing("squash"),
            Preprocessing(surround="kept")]  # fmt: skip
    assert len({look_through([path], run, "uint8", "off", tmp_path)[1][0].phash for run in runs}) == 1


def test_drawn_eyes_are_told_apart(tmp_path: Path) -> None:
    """All fundus photographs show a lit disc, so only its content may count."""
    write_set(tmp_path)
    for seed, name in enumerate(SPLITS):
        for n in range(3):
            drawn = photograph(n, 0, 256, seed=10 * seed + n, eye="left", source=None)
            Image.fromarray(drawn.picture).save(tmp_path / name / "images" / f"eye_{n}.jpg", quality=92)
    assert leaks_of(tmp_path) == []


def test_the_same_patient_in_two_splits(tmp_path: Path) -> None:
    write_set(tmp_path)
    header = ["Image name", "Retinopathy grade", "Risk of macular edema", "Patient"]
    for patient, same, known in (
        ("p9", "p9", "p9"), ("12.0", "12", "12"), ("12,0", "12", "12"), ("1.50", "1.50", "1.50"),
        ("Ann Lee", "ann\u00a0  lee", "Ann Lee or ann\u00a0  lee"),
        ("M\u00fcller", "Mu\u0308ller", "M\u00fcller or Mu\u0308ller"),
    ):  # fmt: skip
        rows = [[f"eye_{n}", n % 3, 0, patient if n < 2 else ""] for n in range(6)]
        write_annotations(tmp_path / "train", rows, header)
        write_annotations(tmp_path / "test", [["eye_0", 0, 0, ""], ["eye_1", 1, 0, same], ["eye_2", 2, 0, ""]], header)
        expected = f"same patient: patient {known}: train (2 photographs) and test (1 photograph)"
        assert leaks_of(tmp_path) == [expected]


def test_leading_zeros_tell_patients_apart(tmp_path: Path) -> None:
    write_set(tmp_path)
    header = ["Image name", "Retinopathy grade", "Risk of macular edema", "Patient"]
    for split, patient, n in (("train", "012", 6), ("test", "12", 3)):
        write_annotations(tmp_path / split, [[f"eye_{i}", i % 3, 0, patient] for i in range(n)], header)
    assert leaks_of(tmp_path) == []


def test_copies_stop_the_run(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data")
    shutil.copy(root / "train/images/eye_0.jpg", root / "test/images/eye_2.jpg")
    quick = ["--image-size", "32", "--backbone", RESNET10, "--weights", "none", "--cache", "off"]
    result = CliRunner().invoke(main, [str(root), *quick, "--artifacts", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert (
        "same bytes: train/eye_0.jpg (line 2) and test/eye_2.jpg (line 4); DR grade 0 and 2, ME risk 0 and 1"
        in result.stderr
    )
    assert "--allow-leakage" in result.stderr
    assert not (tmp_path / "a" / "runs").exists()


def test_copies_in_one_split_are_told_and_stop_the_run_if_their_labels_differ(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data")
    images = root / "train/images"
    for first, second in ((0, 3), (1, 2)):  # both DR 0 and ME 0; DR 1 ME 0 and DR 2 ME 1
        shutil.copy(images / f"eye_{first}.jpg", images / f"eye_{second}.jpg")
    quick = ["--image-size", "32", "--backbone", RESNET10, "--weights", "none", "--workers", "0", "--epochs", "1"]
    command = [str(root), *quick, "--artifacts", str(tmp_path / "a")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    conflict = "same bytes: train/eye_1.jpg (line 3) and train/eye_2.jpg (line 4); DR grade 1 and 2, ME risk 0 and 1"
    assert f"1 fault; nothing was trained. Fix and run again:\n  {conflict} (keep one, or train" in refused.stderr
    trained = CliRunner().invoke(main, [*command, "--allow-leakage"])
    assert trained.exit_code == 0, trained.output
    for copies in ("same bytes: train/eye_0.jpg (line 2) and train/eye_3.jpg (line 5)\n", conflict):
        assert f"Warning: {copies}" in trained.output


def test_pairs_are_found_whichever_portion_they_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_ROWS_AT_ONCE", 2)
    left = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (5, 2, 256))
    assert list(near_pairs(left, left[[3, 4, 0]])) == [(0, 2), (3, 0), (4, 1)]


@pytest.mark.parametrize("split", SPLITS)
def test_copies_are_found_in_each_split(tmp_path: Path, split: str) -> None:
    images = write_set(tmp_path) / split / "images"
    shutil.copy(images / "eye_0.jpg", images / "eye_2.jpg")  # DR 0 ME 0 and DR 2 ME 1
    data = read_dataset(tmp_path)
    looks: dict[str, list[Look]] = {}
    for name in SPLITS:
        paths = [photo.path for photo in data.splits[name].photos]
        _, looks[name] = look_through(paths, Preprocessing(image_size=64), "uint8", "off", tmp_path)
    assert [str(copy) for copy in find_copies(data, looks)] == [
        f"same bytes: {split}/eye_0.jpg (line 2) and {split}/eye_2.jpg (line 4); DR grade 0 and 2, ME risk 0 and 1"
    ]


def test_what_does_not_stop_a_run_is_told(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data")
    header = ["Image name", "Retinopathy grade", "Risk of macular edema", "Patient"]
    write_annotations(root / "train", [[f"eye_{n}", n % 3, n % 2, "p9" if n < 2 else ""] for n in range(6)], header)
    write_annotations(root / "test", [[f"eye_{n}", n % 3, n % 2, "p9" if n < 1 else ""] for n in range(3)], header)
    original = Image.fromarray(photograph(1, 0, 256, seed=3).picture)
    for quality, name in ((95, "train/images/eye_2.jpg"), (50, "valid/images/eye_2.jpg")):
        original.save(root / name, quality=quality)
    quick = ["--image-size", "128", "--backbone", RESNET10, "--weights", "none", "--workers", "0", "--epochs", "1"]
    result = CliRunner().invoke(main, [str(root), *quick, "--cache", "off", "--artifacts", str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert "Warning: near-identical: train/eye_2 (line 4) and valid/eye_2.jpg (line 4)" in result.output
    assert "Warning: same patient: patient p9: train (2 photographs) and test (1 photograph)" in result.output
    assert "Note: no Patient is named for 6 of 12 photographs." in result.output


def test_what_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    """Two files damaged alike, and two of which nothing could be read, in one split and in two."""
    write_set(tmp_path)
    for name in ("train", "valid"):
        for n in range(2):
            (tmp_path / name / "images" / f"eye_{n}.jpg").write_bytes(b"torn")
    assert leaks_of(tmp_path) == []
    data = read_dataset(tmp_path)
    looks: dict[str, list[Look]] = {}
    for name in SPLITS:
        paths = [photo.path for photo in data.splits[name].photos]
        _, looks[name] = look_through(paths, Preprocessing(image_size=64), "uint8", "off", tmp_path)
    assert [bool(look.fault) for look in looks["valid"]] == [True, True, False]
    assert find_copies(data, looks) == []


def test_the_same_pixels_in_other_bytes_are_near_identical(tmp_path: Path) -> None:
    """As after saving a photograph again; only the same bytes stop a run."""
    write_set(tmp_path)
    for name, level in (("train", 1), ("valid", 9)):
        place = tmp_path / name / "images" / "eye_0.jpg"
        eye(7).save(place, "PNG", compress_level=level)
    assert leaks_of(tmp_path) == ["near-identical: train/eye_0.jpg (line 2) and valid/eye_0.jpg (line 2)"]
