"""Drawn photographs: equal for equal seeds, true to their labels and masks, and as untidy as real data sets."""

import csv
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from retina.runtime.errors import OutputError, UsageError
from retina.train.eye import View
from retina.train.lesions import LESIONS
from retina.train.synthetic import (
    GRADES,
    ME_SHARES,
    DrawnPhotograph,
    _cases,
    main,
    photograph,
    write_dataset,
    write_lesions,
)
from scipy import ndimage

SIZE = 192
HEADER = "Image name,Retinopathy grade,Risk of macular edema ,Caption,Source,Patient\r\n"


def away_from_fovea(photo: DrawnPhotograph, kind: str) -> np.ndarray:
    """Distance of each pixel of a mask from the fovea, in disc diameters."""
    y, x = np.nonzero(photo.masks[kind])
    distance: np.ndarray = np.hypot(x + 0.5 - photo.fovea[0], y + 0.5 - photo.fovea[1]) / photo.disc_diameter
    return distance


def spots(photo: DrawnPhotograph, kind: str) -> int:
    return int(ndimage.label(photo.masks[kind])[1])


def test_same_seed_same_bytes() -> None:
    first, again, other = (photograph(4, 1, SIZE, seed=seed) for seed in (7, 7, 8))
    assert first.picture.tobytes() == again.picture.tobytes()
    assert all(np.array_equal(first.masks[kind], again.masks[kind]) for kind in LESIONS)
    assert first.picture.shape != other.picture.shape or (first.picture != other.picture).mean() > 0.3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("grade", "me_risk"), [(1, 0), (2, 1), (3, 0), (4, 1)])
def test_pixels_differ_from_the_healthy_eye_only_where_a_mask_says_so(grade: int, me_risk: int, seed: int) -> None:
    healthy, ill = photograph(0, 0, 256, seed=seed), photograph(grade, me_risk, 256, seed=seed)
    lesions = np.logical_or.reduce(list(ill.masks.values()))
    changed = (healthy.picture != ill.picture).any(axis=-1)
    assert not any(mask.any() for mask in healthy.masks.values())
    assert not (changed & ~lesions).any()
    assert changed[lesions].mean() > 0.97
    assert (healthy.fovea, healthy.disc, healthy.eye) == (ill.fovea, ill.disc, ill.eye)


def test_blood_darkens_and_exudate_brightens() -> None:
    for seed in range(4):
        healthy, ill = photograph(0, 0, 256, seed=seed), photograph(3, 1, 256, seed=seed)
        change = ill.picture.astype(int) - healthy.picture
        blood = ill.masks["HE"] & ~ill.masks["EX"] & ~ill.masks["SE"]
        exudate = ill.masks["EX"] & ~ill.masks["HE"] & ~ill.masks["MA"]
        assert change[blood, 1].mean() < -15  # in green, in which blood is most visible
        assert change[exudate, 1].mean() > 30


@pytest.mark.parametrize(
    ("grade", "present"),
    [
        (0, set()),
        (1, {"MA"}),
        (2, {"MA", "HE", "EX"}),
        (3, {"MA", "HE", "EX", "SE"}),
        (4, {"MA", "HE", "EX", "SE", "NV"}),
    ],
)
def test_kinds_follow_the_icdr_scale(grade: int, present: set[str]) -> None:
    allowed = present | {2: {"SE"}, 4: {"PH"}}.get(grade, set())
    for seed in range(6):
        photo = photograph(grade, 0, SIZE, seed=seed)
        assert present <= {kind for kind, mask in photo.masks.items() if mask.any()} <= allowed
        assert all(mask.shape == photo.picture.shape[:2] for mask in photo.masks.values())


def test_lesions_become_more_with_the_grade() -> None:
    pictures = {grade: [photograph(grade, 0, 384, seed=seed) for seed in range(5)] for grade in (1, 2, 3)}
    blood = {grade: [spots(p, "MA") + spots(p, "HE") for p in photos] for grade, photos in pictures.items()}
    assert max(blood[1]) < min(blood[2]) <= max(blood[2]) < min(blood[3])


def test_grade_3_bleeds_in_every_quarter() -> None:
    for seed in range(6):
        photo = photograph(3, 0, SIZE, seed=seed)
        y, x = np.nonzero(photo.masks["HE"])
        lit = np.nonzero(photo.picture.max(axis=-1) > 20)
        right, below = x > np.mean(lit[1]), y > np.mean(lit[0])
        assert {(bool(r), bool(b)) for r, b in zip(right, below, strict=True)} == {
            (r, b) for r in (False, True) for b in (False, True)
        }


@pytest.mark.parametrize("grade", [1, 2, 3, 4])
def test_exudates_lie_within_a_disc_diameter_of_the_fovea_exactly_with_me_risk(grade: int) -> None:
    for seed in range(8):
        without, with_risk = (photograph(grade, me_risk, SIZE, seed=seed) for me_risk in (0, 1))
        assert not (away_from_fovea(without, "EX") <= 1).any()
        near = away_from_fovea(with_risk, "EX")
        assert (near <= 1).sum() >= 20
        if grade == 1:  # which has no other lesions
            assert near.max() <= 1


def test_the_disc_is_bright_and_on_the_nasal_side() -> None:
    for seed in range(8):
        photo = photograph(0, 0, SIZE, seed=seed)
        x, y = (round(value) for value in photo.disc)
        around = int(photo.disc_diameter / 3)
        disc = photo.picture[y - around : y + around, x - around : x + around, 1].mean()
        fovea_x, fovea_y = (round(value) for value in photo.fovea)
        assert disc > 1.3 * photo.picture[fovea_y - 4 : fovea_y + 4, fovea_x - 4 : fovea_x + 4, 1].mean()
        assert (photo.disc[0] > photo.fovea[0]) == (photo.eye == "right")


def test_there_is_room_for_the_lesions_in_every_eye() -> None:
    """If a quarter of the field has no room, ``place`` continues in the next one."""
    for seed in range(150):
        rng = np.random.default_rng(seed)
        view = View.draw(rng, 64, None, None)
        for sector in range(4):
            spot = view.place(rng, sector, beyond_fovea=1.6, reach=0.6)
            assert math.dist(spot, view.fovea) > 1.6 * view.unit


def test_eye_and_camera_can_be_asked_for() -> None:
    assert photograph(0, 0, SIZE, seed=1, source="ronda").picture.shape == (192, 192, 3)
    assert photograph(0, 0, SIZE, seed=1, source="larga").picture.shape == (128, 192, 3)
    assert {photograph(0, 0, 64, seed=seed, eye="left").eye for seed in range(5)} == {"left"}


def test_the_frame_is_black_round_a_lit_field() -> None:
    """By the rule of the field framing: a channel above 20 of 255 on at least 2% of a row or column."""
    for seed in range(8):
        lit = photograph(0, 0, SIZE, seed=seed).picture.max(axis=-1) > 20
        columns = np.nonzero(lit.mean(axis=0) >= 0.02)[0]
        assert 0.7 * SIZE < np.ptp(columns) < SIZE - 1
        assert not lit[:4, :4].any()
        assert lit.mean() > 0.45


def test_no_two_are_nearly_alike() -> None:
    photos = (photograph(seed % 5, 0, SIZE, seed=seed) for seed in range(60))
    hashes = [imagehash.phash(Image.fromarray(photo.picture)) for photo in photos]
    assert min(a - b for a, b in combinations(hashes, 2)) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grade": 5, "me_risk": 0, "seed": 0}, "grade 0 to 4, found 5"),
        ({"grade": 2, "me_risk": 2, "seed": 0}, "me_risk 0 or 1, found 2"),
        ({"grade": 0, "me_risk": 1, "seed": 0}, "me_risk 0 at grade 0"),
        ({"grade": 2, "me_risk": 0, "seed": 0, "size": 63}, "size 64 to 10000, found 63"),
        ({"grade": 2, "me_risk": 0, "seed": 0, "size": 10_001}, "size 64 to 10000, found 10001"),
        ({"grade": 2, "me_risk": 0, "seed": -1}, "seed 0 or more, found -1"),
        ({"grade": 2, "me_risk": 0, "seed": 0, "source": "phone"}, "source ronda or larga, found phone"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        photograph(**arguments)


PER_SPLIT = {"train": 24, "valid": 10, "test": 10}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, PER_SPLIT, size=96, seed=3)
    return folder


def rows(folder: Path, split: str) -> list[dict[str, str]]:
    with (folder / split / "annotations.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_layout(dataset: Path) -> None:
    for split, count in PER_SPLIT.items():
        images = {path.stem: path for path in (dataset / split / "images").iterdir()}
        listed = rows(dataset, split)
        assert {path.suffix for path in images.values()} == {".jpg"}
        assert len(images) == len(listed) == count
        # Every row finds its file by name without ending, and every file has a row.
        assert {Path(row["Image name"]).stem for row in listed} == set(images)
        for row in listed:
            path = images[Path(row["Image name"]).stem]
            with Image.open(path) as picture:
                assert (picture.mode, picture.width) == ("RGB", 96)
            kinds = {mask.stem.rpartition("_")[2] for mask in (dataset / split / "masks").glob(f"{path.stem}_*.png")}
            assert ("MA" in kinds) == (row["Retinopathy grade"] != "0")
            assert ("NV" in kinds) == (row["Retinopathy grade"] == "4")


def test_masks_are_black_and_white(dataset: Path) -> None:
    for path in (dataset / "test" / "masks").iterdir():
        with Image.open(path) as mask:
            assert mask.mode == "L"
            assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_annotations_are_as_untidy_as_real_ones(dataset: Path) -> None:
    raw = (dataset / "train" / "annotations.csv").read_bytes().decode()
    assert raw.startswith(HEADER)
    assert raw.count("\n") == raw.count("\r\n") == 25
    names = [row["Image name"] for row in rows(dataset, "train")]
    assert {Path(name).suffix for name in names} == {".png", ".JPG", ""}


def test_grades_and_patients(dataset: Path) -> None:
    patients: dict[str, set[str]] = {}
    for split in PER_SPLIT:
        listed = rows(dataset, split)
        grades = [int(row["Retinopathy grade"]) for row in listed]
        assert set(grades) == set(GRADES)
        assert max(GRADES, key=grades.count) == 0
        assert {row["Risk of macular edema "] for row in listed} == {"0", "1"}
        assert all(row["Risk of macular edema "] == "0" for row in listed if row["Retinopathy grade"] == "0")
        assert {row["Source"] for row in listed} == {"ronda", "larga"}
        for row in listed:
            patients.setdefault(row["Patient"], set()).add(split)
        of_patient = [sum(row["Patient"] == patient for row in listed) for patient in {r["Patient"] for r in listed}]
        assert set(of_patient) <= {1, 2}
    assert all(len(splits) == 1 for splits in patients.values())


@pytest.mark.parametrize("count", [0, 1, 3, 9, 10, 11, 57])
def test_any_number_of_photographs(tmp_path: Path, count: int) -> None:
    entries = write_dataset(tmp_path, {"train": count}, size=64)
    assert len(entries) == count == len(rows(tmp_path, "train"))
    assert count < 10 or {entry.dr_grade for entry in entries} == set(GRADES)


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_dataset(tmp_path / folder, {"train": 4, "test": 3}, size=64, seed=seed)
    a, b, c = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in "abc"
    )
    assert a == b != c


def test_lesion_folder(tmp_path: Path) -> None:
    paths = write_lesions(tmp_path / "lesions", 4, size=128, seed=1)
    assert [path.name for path in paths] == [f"drawn_{number:02d}.jpg" for number in (1, 2, 3, 4)]
    with (tmp_path / "lesions" / "lesions.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert list(listed[0]) == ["Image name", "Same eye in the test split", "Hard exudate pixels", "Haemorrhage pixels"]
    for path, row in zip(paths, listed, strict=True):
        assert row["Image name"] == path.name
        for ending, column in (("EX", "Hard exudate pixels"), ("HE", "Haemorrhage pixels")):
            with Image.open(path.with_name(f"{path.stem}_{ending}.png")) as mask, Image.open(path) as picture:
                assert mask.size == picture.size
                assert int((np.asarray(mask) == 255).sum()) == int(row[column]) > 0


def test_an_older_set_is_not_mixed_with_a_new_one(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="train: expected a new or empty folder"):
        write_dataset(dataset, PER_SPLIT, size=64)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_dataset(blocked / "data", {"train": 1}, size=64)


def test_shell_entry(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "d"), "--train", "10", "--valid", "1", "--test", "0", "--lesions", "1", "--size", "64"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert "train: 10 photographs of" in first.output
    assert "DR 0/1/2/3/4: 5/1/2/1/1" in first.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2
    assert again.output.startswith(f"retina.train.synthetic: {tmp_path}/d/train: expected a new or empty folder")
    assert "Traceback" not in again.output


def test_every_photograph_of_a_set_is_of_an_eye_of_its_own(dataset: Path) -> None:
    # The healthy ones of one camera and one eye would be the same picture if all had one seed.
    files = sorted(dataset.glob("*/images/*.jpg"))
    hashes = [imagehash.phash(Image.open(file), hash_size=16) for file in files]
    assert min(a - b for a, b in combinations(hashes, 2)) > 16


def test_edema_risk_is_as_frequent_in_each_grade_as_said() -> None:
    cases = _cases(np.random.default_rng(0), 400)
    for grade, share in zip(GRADES, ME_SHARES, strict=True):
        risks = [case.me_risk for case in cases if case.grade == grade]
        assert sum(risks) == round(share * len(risks))


def test_the_lesion_folder_has_every_grade_with_and_without_edema_and_all_blood(tmp_path: Path) -> None:
    paths = write_lesions(tmp_path / "lesions", 24, size=96, seed=1)
    rng, preretinal = np.random.default_rng([1, 4]), 0
    for index, path in enumerate(paths):
        drawn = photograph((2, 3, 4)[index % 3], int(index // 3 % 2 == 0), 96, seed=int(rng.integers(2**32)))
        preretinal += int(drawn.masks["PH"].any())
        for kind, expected in (("EX", drawn.masks["EX"]), ("HE", drawn.masks["HE"] | drawn.masks["PH"])):
            with Image.open(path.with_name(f"{path.stem}_{kind}.png")) as mask:
                np.testing.assert_array_equal(np.asarray(mask) == 255, expected)
    assert preretinal
