"""One folder of photographs is split by patient, with the same mix in each split."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from eyes import HEADER, eye, write_annotations
from hypothesis import given, settings
from hypothesis import strategies as st
from invoking import invoke
from PIL import Image
from retina.runtime.contract import Preprocessing
from retina.train.data import SPLITS, Photo, read_dataset
from retina.train.deal import deal, families
from retina.train.frames import look_through
from retina.train.leakage import find_leaks
from retina.train.splitting import main
from sklearn.model_selection import StratifiedGroupKFold

SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}


def photo(number: int, dr: int | None = 0, me: int | None = 0, source: str = "", patient: str = "") -> Photo:
    name = f"eye_{number:05d}.jpg"
    return Photo(Path(name), name, number + 2, dr, me, source=source, patient=patient)


def alone(photos: Sequence[Photo]) -> list[list[Photo]]:
    return [[photo] for photo in photos]


def numbers(groups: Sequence[Sequence[Photo]]) -> list[list[int]]:
    return [[photo.line - 2 for photo in group] for group in groups]


def test_a_family_is_a_patient_and_whatever_is_linked_to_one() -> None:
    patients = ["ann", "", "Bo Li", "ANN", "", "cy", "bo  li", "", "dee"]
    photos = [photo(n, patient=name) for n, name in enumerate(patients)]
    assert numbers(families(photos, [])) == [[0, 3], [1], [2, 6], [4], [5], [7], [8]]
    assert numbers(families(photos, [(1, 7), (4, 6), (5, 6)])) == [[0, 3], [1, 7], [2, 4, 5, 6], [8]]
    assert numbers(families(photos, [(7, 8), (3, 7), (1, 4)])) == [[0, 3, 7, 8], [1, 4], [2, 6], [5]]


def test_each_kind_is_dealt_by_the_shares() -> None:
    """40 of one kind and 20 of another: 70% and 15% of both are whole numbers."""
    photos = [photo(n, dr=n % 3 // 2, me=n % 3 // 2, source="ab"[n % 3 // 2]) for n in range(60)]
    for seed in range(5):
        splits = deal(alone(photos), SHARES, seed)
        assert {name: Counter(p.dr_grade for p in split) for name, split in splits.items()} == {
            "train": {0: 28, 1: 14}, "valid": {0: 6, 1: 3}, "test": {0: 6, 1: 3}
        }  # fmt: skip


def test_the_only_photographs_of_a_kind_are_trained_on() -> None:
    photos = [photo(n, dr=4 if n < 2 else 0) for n in range(40)]
    for seed in range(5):
        splits = deal(alone(photos), SHARES, seed)
        assert sum(p.dr_grade == 4 for p in splits["train"]) == 2


def test_large_families_are_not_all_in_train() -> None:
    """Of 40 patients with two photographs and 80 with one, each split has its share."""
    photos = [photo(n, patient=f"p{n // 2}" if n < 80 else f"q{n}") for n in range(160)]
    splits = deal(families(photos, []), SHARES, 0)
    assert {name: sum(p.patient[0] == "p" for p in split) for name, split in splits.items()} == {
        "train": 56, "valid": 12, "test": 12
    }  # fmt: skip


def test_grades_are_shared_out_though_no_combination_occurs_twice() -> None:
    photos = [photo(n, dr=n % 5, source=f"camera {n // 5}") for n in range(100)]
    splits = deal(alone(photos), SHARES, 0)
    for name, share in SHARES.items():
        for grade in range(5):
            assert sum(p.dr_grade == grade for p in splits[name]) == pytest.approx(20 * share, abs=1)


labels = st.tuples(st.sampled_from([None, 0, 1, 2, 3, 4]), st.sampled_from([None, 0, 1]), st.sampled_from(["", "a"]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(labels, min_size=1, max_size=5), min_size=1, max_size=40), st.integers(0, 2**40))
def test_every_photograph_is_dealt_once_with_its_whole_family(
    drawn: list[list[tuple[int | None, int | None, str]]], seed: int
) -> None:
    photos = [
        photo(i, *kind, patient=f"p{n}") for i, (n, kind) in enumerate((n, k) for n, f in enumerate(drawn) for k in f)
    ]
    splits = deal(families(photos, []), SHARES, seed)
    assert sorted((p for split in splits.values() for p in split), key=lambda p: p.line) == photos
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {p.patient for p in splits[one]} & {p.patient for p in splits[other]}
    assert splits == deal(families(photos, []), SHARES, seed)


def kinds(photos: Sequence[Photo]) -> Counter[tuple[str, int | None, int | None]]:
    return Counter((p.source, p.dr_grade, p.me_label) for p in photos)


def chi_square(splits: Mapping[str, Sequence[Photo]]) -> float:
    """How far the splits' make-up is from their shares of each kind."""
    total = kinds([p for split in splits.values() for p in split])
    return sum(
        (kinds(splits[name])[kind] - share * n) ** 2 / (share * n)
        for name, share in SHARES.items()
        for kind, n in total.items()
    )


def of_scikit_learn(photos: Sequence[Photo], seed: int) -> dict[str, list[Photo]]:
    """As an independent reference: 20 stratified folds by patient, of which train gets 14."""
    kind = [f"{p.source} {p.dr_grade} {p.me_label}" for p in photos]
    patients = [p.patient or p.image_name for p in photos]
    folds = StratifiedGroupKFold(20, shuffle=True, random_state=seed).split(photos, kind, patients)
    splits: dict[str, list[Photo]] = {name: [] for name in SPLITS}
    for number, (_, members) in enumerate(folds):
        splits["valid" if number < 3 else "test" if number < 6 else "train"] += [photos[i] for i in members]
    return splits


def drawn_patients(seed: int) -> list[Photo]:
    """600 photographs of patients with one to six, whose eyes are alike, from two sources that grade differently."""
    rng = np.random.default_rng(seed)
    photos: list[Photo] = []
    while len(photos) < 600:
        source = int(rng.random() < 0.2)
        patient, grade = f"p{len(photos)}", int(rng.choice(5, p=[0.52, 0.13, 0.23, 0.075, 0.045]))
        for _ in range(int(rng.integers(1, 7))):
            own = int(np.clip(grade + rng.integers(-1, 2), 0, 4))
            risk = int(rng.random() < own / 5 + 0.2 * source)
            photos.append(photo(len(photos), own, risk, "ab"[source], patient))
    return photos


@pytest.mark.filterwarnings("ignore:The least populated class")
@pytest.mark.parametrize("seed", range(3))
def test_the_mix_is_closer_to_the_shares_than_that_of_scikit_learn(seed: int) -> None:
    photos = drawn_patients(seed)
    ours = chi_square(deal(families(photos, []), SHARES, seed))
    assert ours < 0.5 * chi_square(of_scikit_learn(photos, seed))


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_real_labels_are_dealt_closer_to_the_shares_than_by_scikit_learn(real_data: Path) -> None:
    photos = [p for split in read_dataset(real_data / "retina").splits.values() for p in split.photos]
    splits = deal(families(photos, []), SHARES, 42)
    assert chi_square(splits) < 0.5 * chi_square(of_scikit_learn(photos, 42))
    for grade in range(5):
        n = sum(p.dr_grade == grade for p in photos)
        for name in ("valid", "test"):
            assert abs(sum(p.dr_grade == grade for p in splits[name]) - 0.15 * n) <= 1.5


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """24 photographs of 12 patients, named in three ways; one is a copy of another patient's."""
    folder = tmp_path / "pool"
    rows: list[list[object]] = []
    for n in range(24):
        below = ("", "left/", "right/")[n % 3]
        (folder / "images" / below).mkdir(parents=True, exist_ok=True)
        eye(n).save(folder / "images" / f"{below}eye_{n}.jpg", quality=92)
        name = (f"eye_{n}", f"pool/images/left/eye_{n}.jpg", f"right\\EYE_{n}.png")[n % 3]
        caption = 'a "b", c' if n < 23 else "of two\rlines"
        rows.append([name, n // 2 % 3, "NA" if n == 5 else int(n // 2 % 3 == 2), caption, "cam", f"p{n // 2}", n])
    shutil.copy(folder / "images/eye_0.jpg", folder / "images/left/eye_19.jpg")
    rows[19][1:3] = rows[0][1:3]
    write_annotations(folder, rows, [*HEADER, "Camera no"])
    return folder


def split(folder: Path, out: Path, *more: object) -> Result:
    return invoke(main, folder, "--out", out, *more)


def table(folder: Path) -> list[list[str]]:
    with (folder / "annotations.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_pool_becomes_a_data_folder_without_leaks(pool: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in pool.rglob("*.*") if path.is_file()}
    done = split(pool, tmp_path / "new/data")
    assert done.exit_code == 0, done.output
    data = read_dataset(tmp_path / "new/data")
    looks = {
        name: look_through(part.paths, Preprocessing(), "uint8", "off", tmp_path)[1]
        for name, part in data.splits.items()
    }
    assert find_leaks(data, looks) == []
    rows = [row for name in SPLITS for row in table(tmp_path / "new/data" / name)[1:]]
    expected = {int(row[-1]): row[1:] for row in table(pool)[1:]}
    assert {int(row[-1]): row[1:] for row in rows} == expected
    names = {int(row[-1]): row[0] for row in rows}
    assert names == {n: (f"eye_{n}", f"left/eye_{n}.jpg", f"right\\EYE_{n}.png")[n % 3] for n in range(24)}
    for name in SPLITS:
        assert table(tmp_path / "new/data" / name)[0] == table(pool)[0]
        images = tmp_path / "new/data" / name / "images"
        for path in images.rglob("*.jpg"):
            original = pool / "images" / path.relative_to(images)
            assert path.read_bytes() == before[original]
            assert not path.samefile(original)
    assert {path: path.read_bytes() for path in pool.rglob("*.*") if path.is_file()} == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["data"]
    assert f"Kept together: same bytes: {pool}/eye_0 (line 2) and {pool}/pool/images/left/eye_19.jpg (" in done.output
    counts = {line.rsplit(maxsplit=3)[0]: line.split()[-3:] for line in done.output.splitlines() if line[-1:].isdigit()}
    assert [sum(map(int, cells)) for cells in counts.values()] == [24, 8, 8, 8, 16, 7, 1, 24]
    assert list(counts) == ["photographs", "DR grade 0", "DR grade 1", "DR grade 2", "ME risk 0", "ME risk 1",
                            "ME risk NA", "Source cam"]  # fmt: skip
    assert counts["photographs"] == [str(len(data.splits[name].photos)) for name in SPLITS]


def test_hard_links_take_no_space_and_lead_to_what_a_link_names(pool: Path, tmp_path: Path) -> None:
    (pool / "images/eye_3.jpg").rename(tmp_path / "elsewhere.jpg")
    (pool / "images/eye_3.jpg").symlink_to("../../elsewhere.jpg")
    assert split(pool, tmp_path / "data", "--link").exit_code == 0
    linked = list((tmp_path / "data").rglob("*.jpg"))
    assert len(linked) == 24
    for path in linked:
        assert not path.is_symlink()
        assert path.samefile(pool / path.relative_to(tmp_path / "data").as_posix().split("/", 1)[1])


def test_the_splits_depend_on_the_seed_but_not_on_the_order_of_the_rows(pool: Path, tmp_path: Path) -> None:
    def of(name: str, seed: int) -> list[list[list[str]]]:
        assert split(pool, tmp_path / name, "--seed", seed).exit_code == 0
        return [table(tmp_path / name / part) for part in SPLITS]

    first, other = of("first", 1), of("other", 2)
    header, *rows = table(pool)
    write_annotations(pool, rows[::-1], header)
    assert of("again", 1) == first != other


def test_the_shares_are_those_asked_for(pool: Path, tmp_path: Path) -> None:
    assert split(pool, tmp_path / "data", "--valid", 0.25, "--test", 0.5).exit_code == 0
    counts = [len(table(tmp_path / "data" / name)) - 1 for name in SPLITS]
    assert sum(counts) == 24
    assert counts == pytest.approx([6, 6, 12], abs=2)


def test_a_split_data_folder_is_trained_on_as_graded(pool: Path, tmp_path: Path) -> None:
    header, *rows = table(pool)
    rows[4][2] = "2"
    write_annotations(pool, rows, header)
    done = split(pool, tmp_path / "data")
    assert done.exit_code == 2
    assert "line 6: Risk of macular edema: expected 0 or 1, found 2" in done.output
    assert split(pool, tmp_path / "data", "--me-positive-from", 1).exit_code == 0
    assert read_dataset(tmp_path / "data", 1)
    assert sorted(row[2] for name in SPLITS for row in table(tmp_path / "data" / name)).count("2") == 1


def test_photographs_of_unnamed_patients_are_counted(pool: Path, tmp_path: Path) -> None:
    header, *rows = table(pool)
    write_annotations(pool, [[*row[:5], row[5] if n < 20 else ""] for n, row in enumerate(rows)], header[:6])
    assert "no Patient is named for 4 of 24 photographs" in (said := split(pool, tmp_path / "data").output)
    assert "Source cam" in said
    write_annotations(pool, [row[:3] for row in rows], header[:3])
    said = split(pool, tmp_path / "other").output
    assert "no Patient is named for 24 of 24 photographs" in said
    assert "Source" not in said


def test_all_faults_are_listed_and_nothing_is_written(pool: Path, tmp_path: Path) -> None:
    header, *rows = table(pool)
    rows[0][1] = "9"
    rows[19][1] = "1"
    rows.pop(6)
    write_annotations(pool, rows, header)
    (pool / "images/eye_3.jpg").write_bytes(b"no picture")
    shutil.copy(pool / "images/left/eye_1.jpg", pool / "images/right/eye_2.jpg")
    done = split(pool, tmp_path / "data")
    assert done.exit_code == 2
    for fault in (
        "4 faults; nothing was written",
        "line 2: Retinopathy grade: expected 0 to 4, found 9",
        "eye_6.jpg: expected a row",
        "eye_3.jpg: ",
        "and {pool}/right\\EYE_2.png (line 4); DR grade 0 and 1 (keep one)",
    ):
        assert fault.replace("{pool}", str(pool)) in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_what_cannot_be_split_is_refused(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "photographs").symlink_to("pool/images")
    for arguments, why in (
        ((pool, "--out", tmp_path / "full"), "full: expected a new or empty folder, found files"),
        ((pool, "--out", tmp_path / "file"), "file: expected a new or empty folder, found files"),
        ((pool, "--out", pool), "pool: expected a new or empty folder, found files"),
        ((pool, "--out", pool / "images/data"), "data: expected a folder outside"),
        ((pool, "--out", tmp_path / "photographs/data"), "data: expected a folder outside"),
        ((pool, "--out", tmp_path / "loop"), "loop: expected a new or empty folder, found"),
        ((pool, "--out", tmp_path / "file/data"), "expected a folder that can be written"),
        ((pool, "--out", tmp_path / "data", "--valid", 0.6, "--test", 0.4), "expected less than 1 together"),
        ((pool, "--out", tmp_path / "data", "--valid", "nan"), "expected less than 1 together"),
        ((pool, "--out", tmp_path / "data", "--test", 0), "0 is not in the range"),
        (
            (pool, "--out", tmp_path / "data", "--test", 0.001),
            "found 24 in 11 groups of one patient or of copies, which leave nothing for test/. Add",
        ),
        ((tmp_path / "none", "--out", tmp_path / "data"), "cannot be read"),
    ):
        done = invoke(main, *arguments)
        assert done.exit_code == 2
        assert why in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "loop", "photographs", "pool"]
    assert (tmp_path / "full/note.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("out", ["data", "link", ".", "data/../data", "漢" * 80])
def test_an_empty_folder_is_filled_by_whatever_name(
    pool: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path if out != "." else tmp_path / "data")
    done = split(pool, Path(out))
    assert done.exit_code == 0, done.output
    assert read_dataset(tmp_path / ("data" if len(out) < 20 else out))
    assert (tmp_path / "link").is_symlink()


def test_the_next_command_can_be_pasted(pool: Path, tmp_path: Path) -> None:
    assert f"Next:  retina-train '{tmp_path}/my data'" in split(pool, tmp_path / "my data").output


def test_a_patient_with_most_photographs_leaves_no_grade_to_the_others(tmp_path: Path) -> None:
    """The only photograph of grade 4, or with an ME risk, is of another patient."""
    photos = [photo(n, n % 4, 0, patient="big") for n in range(32)] + [photo(32 + n, n % 4) for n in range(6)]
    photos += [photo(38, 4), photo(39, 0, 1)]
    for seed in range(5):
        train = deal(families(photos, []), SHARES, seed)["train"]
        assert {p.dr_grade for p in train} == {0, 1, 2, 3, 4}
        assert {p.me_label for p in train} == {0, 1}


def test_labels_too_few_to_choose_an_epoch_by_are_refused(pool: Path, tmp_path: Path) -> None:
    header, *rows = table(pool)
    for row in rows[1:]:
        row[2] = "NA"
    rows[19][2] = rows[0][2] = "0"
    write_annotations(pool, rows, header)
    done = split(pool, tmp_path / "data")
    assert done.exit_code == 2
    assert "which leave no ME label for valid/. Add photographs, or choose" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    (tmp_path / "mine").mkdir()
    assert split(pool, tmp_path / "mine").exit_code == 2
    assert list((tmp_path / "mine").iterdir()) == []


def test_near_identical_photographs_stay_together_whatever_their_grades(pool: Path, tmp_path: Path) -> None:
    """Graders differ, and so may the grades of two photographs of one eye."""
    with Image.open(pool / "images/eye_0.jpg") as original:
        original.save(pool / "images/left/eye_22.jpg", quality=80)
    for seed in range(5):
        done = split(pool, tmp_path / f"{seed}", "--seed", seed)
        assert done.exit_code == 0, done.output
        assert re.search(r"near-identical: \S+ \(line 2\) and \S+ \(line 24\); DR grade 0 and 2, ME", done.output)
        (home,) = (name for name in SPLITS if "eye_0" in {row[0] for row in table(tmp_path / f"{seed}" / name)})
        assert "left/eye_22.jpg" in {row[0] for row in table(tmp_path / f"{seed}" / home)}


def test_of_very_many_pairs_some_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    (folder / "images").mkdir(parents=True)
    rows = []
    for n in range(20):
        (Image.new("RGB", (64, 64)) if n < 8 else eye(n)).save(folder / "images" / f"{n}.png")
        rows.append([f"{n}", 0 if n < 8 else n % 3, 0, "", f"camera\n{n % 12}", n])
    write_annotations(folder, rows)
    done = split(folder, tmp_path / "data")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert sum(line.startswith("Kept together: same bytes") for line in lines) == 20
    assert lines[20] == "Kept together: 8 more pairs"  # 28 of 8 photographs
    assert sum(line.startswith("Source camera ") for line in lines) == 10
    (others,) = (line for line in lines if line.startswith("Source: 2 others"))
    assert sum(map(int, others.split()[-3:])) == 2


def test_the_table_that_was_checked_is_written(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the photographs of a large pool takes long, and somebody may sort its table meanwhile."""
    before = table(pool)

    def sort_meanwhile(*given: Any) -> Any:
        write_annotations(pool, before[:0:-1], before[0])
        return look_through(*given)

    monkeypatch.setattr("retina.train.pool.look_through", sort_meanwhile)
    assert split(pool, tmp_path / "data").exit_code == 0
    rows = [row for name in SPLITS for row in table(tmp_path / "data" / name)[1:]]
    assert {row[-1]: row[1] for row in rows} == {row[-1]: row[1] for row in before[1:]}


def test_a_columns_name_may_hold_other_separators(pool: Path, tmp_path: Path) -> None:
    quality, rows = "Quality (0; 1; 2; 3; 4)", table(pool)[1:]
    with (pool / "annotations.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows([[*HEADER[:3], quality], *([*row[:3], 1] for row in rows)])
    assert split(pool, tmp_path / "data").exit_code == 0
    assert read_dataset(tmp_path / "data")
    assert table(tmp_path / "data/train")[0][-1] == quality


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_a_stopped_split_leaves_nothing(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    copied: list[Path] = []

    def copy_two(photograph: Path, place: Path) -> None:
        if len(copied) == 2:
            raise error
        place.write_bytes(photograph.read_bytes())
        copied.append(place)

    monkeypatch.setattr("retina.train.pool.shutil.copyfile", copy_two)
    done = split(pool, tmp_path / "data")
    assert done.exit_code == code
    assert ("nothing was written" if code == 130 else "data: cannot be written: No space left") in done.output
    assert len(copied) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def test_lack_of_room_is_told_before_anything_is_written(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retina.runtime.output_file.free_bytes", lambda folder: 1000)
    assert split(pool, tmp_path / "linked", "--link").exit_code == 0
    monkeypatch.setattr("retina.train.pool.look_through", lambda *_: pytest.fail("read first"))
    done = split(pool, tmp_path / "data")
    assert done.exit_code == 2
    assert "MB of free space for the photographs, found 0 MB; make room, or try --link" in done.output


def test_what_cannot_be_linked_is_told(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across_disks(photograph: object, place: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", across_disks)
    monkeypatch.setattr("retina.train.pool.look_through", lambda *_: pytest.fail("read first"))
    done = split(pool, tmp_path / "data", "--link")
    assert done.exit_code == 2
    assert "Invalid cross-device link. Leave out --link to copy it" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
