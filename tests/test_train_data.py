"""From annotations to batches: names, grades, weights, the epoch's draws, and cached frames."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import retina.gradcam
import retina.runtime
import retina.train
import torch
from eyes import eye, write_annotations, write_set, write_split
from retina.runtime.contract import Preprocessing
from retina.runtime.digest import sha256_of
from retina.runtime.errors import AnnotationError, OutputError, UsageError
from retina.runtime.picture import decode
from retina.train import frames as frames_code
from retina.train import framing
from retina.train.augment import augment_with_seed, make_augment
from retina.train.config import Sampling, TrainConfig
from retina.train.data import DataSet, read_dataset, scan_dataset
from retina.train.frames import DecodedFrames, _key, look_through
from retina.train.framing import make_frame
from retina.train.items import Draw, EpochPlan, EvalItems, Item, TrainItems, class_weights, collate
from sklearn.utils.class_weight import compute_class_weight

SMALL = Preprocessing(image_size=48)
GRADES = [0, 2, 4, 0, 2, 4, 0, 0]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the DR grades 0, 2 and 4 only."""
    return write_set(tmp_path_factory.mktemp("gaps"), train=GRADES, others=(0, 2, 4))


def sound(root: Path, me_positive_from: int | None = None) -> DataSet:
    data, faults = scan_dataset(root, me_positive_from)
    assert faults == []
    return data


def frames_of(data: DataSet, split: str) -> DecodedFrames:
    return DecodedFrames([photo.path for photo in data.splits[split].photos], SMALL)


def test_rows_become_photographs(tmp_path: Path) -> None:
    write_set(tmp_path)
    header = ["image NAME ", " retinopathy Grade", "Risk of macular edema", "patient", "CAPTION", "Source", "Camera"]
    rows = [["eye_0.PNG", "2.0", 1, "p7", "a, b", "IDRiD", "x"], ["EYE_1", 0, 0, "", "", "", ""]]
    rows += [[f"eye_{n}.jpg", 1, 0, "", "", "", ""] for n in range(2, 6)]
    write_annotations(tmp_path / "train", rows, header)
    first, second, *_ = sound(tmp_path).splits["train"].photos
    assert first.path == tmp_path / "train/images/eye_0.jpg"
    assert (first.image_name, first.line, first.dr_grade, first.me_label) == ("eye_0.PNG", 2, 2, 1)
    assert (first.caption, first.source, first.patient) == ("a, b", "IDRiD", "p7")
    assert second.path.name == "eye_1.jpg"
    assert (second.caption, second.source, second.patient) == ("", "", "")


def test_a_source_or_patient_that_is_not_available_is_unknown(tmp_path: Path) -> None:
    """Or all of these photographs would be one patient's."""
    write_set(tmp_path)
    header = ["Image name", "Retinopathy grade", "Risk of macular edema", "Source", "Patient", "Caption"]
    rows = [
        [f"eye_{n}", n % 3, 0, name, name, name] for n, name in enumerate(("NA", "nan", "n/a", "<NA>", "None", "Nana"))
    ]
    write_annotations(tmp_path / "train", rows, header)
    photos = sound(tmp_path).splits["train"].photos
    assert [(photo.source, photo.patient) for photo in photos] == [("", "")] * 5 + [("Nana", "Nana")]
    assert photos[0].caption == "NA"


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    """An epoch's draws are places in the split: after a stop, rows in another order must not mean other photographs."""
    data = sound(write_set(tmp_path))
    rows = [[f"eye_{n}", n % 3, 0, f"caption {n}"] for n in (3, 0, 5, 1, 4, 2)]
    write_annotations(tmp_path / "train", rows, ["Image name", "Retinopathy grade", "Risk of macular edema", "Caption"])
    again = [(photo.path, photo.caption) for photo in sound(tmp_path).splits["train"].photos]
    assert again == [(photo.path, f"caption {n}") for n, photo in enumerate(data.splits["train"].photos)]


def test_caption_and_further_columns_are_optional(tmp_path: Path) -> None:
    write_set(tmp_path)
    for split, n in (("train", 6), ("valid", 3), ("test", 3)):
        rows = [[f"eye_{i}", i % 3, 0] for i in range(n)]
        write_annotations(tmp_path / split, rows, ["Image name", "Retinopathy grade", "Risk of macular edema"])
    assert {photo.caption for photo in sound(tmp_path).splits["train"].photos} == {""}


def test_items_are_the_notebooks(gaps: Path) -> None:
    data = sound(gaps)
    image, dr_index, me_label, filename, caption = EvalItems(data, "valid", frames_of(data, "valid"))[2]
    assert (image.shape, image.dtype) == ((3, 48, 48), torch.float32)
    assert (dr_index, me_label, filename, caption) == (2, 1, "eye_2.jpg", "caption 2")
    train = TrainItems(data, frames_of(data, "train"), make_augment("notebook"), seed=1)
    image, dr_index, me_label, filename, caption = train[Draw(4, epoch=1, position=0)]
    assert (image.shape, image.dtype) == ((3, 48, 48), torch.uint8)
    assert (dr_index, me_label, filename, caption) == (1, 1, "eye_4.jpg", "caption 4")


def test_grades_map_to_contiguous_indices_and_back(gaps: Path) -> None:
    data = sound(gaps)
    assert data.dr_grades == (0, 2, 4)
    items = TrainItems(data, frames_of(data, "train"), make_augment("notebook"), seed=1)
    assert items.dr_index == [0, 1, 2, 0, 1, 2, 0, 0]
    assert [data.dr_grades[index] for index in items.dr_index] == GRADES


def test_graded_macular_edema_needs_a_threshold(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "valid", "test")):
        write_split(tmp_path / split, [0, 1, 2], seed, me=[0, 1, 2])
    _, faults = scan_dataset(tmp_path)
    assert len(faults) == 3
    assert "train/annotations.csv, line 4: Risk of macular edema: expected 0 or 1, found 2" in faults[0]
    assert "--me-positive-from" in faults[0]
    for threshold, labels in ((1, [0, 1, 1]), (2, [0, 0, 1])):
        photos = sound(tmp_path, threshold).splits["valid"].photos
        assert [photo.me_label for photo in photos] == labels


def test_a_grade_that_train_lacks_is_a_fault(tmp_path: Path) -> None:
    write_set(tmp_path, train=(0, 1, 0, 1), others=(0, 1, 3))
    _, faults = scan_dataset(tmp_path)
    assert [fault.split("annotations.csv, ")[1] for fault in faults] == [
        "line 4: Retinopathy grade: expected one of 0, 1 as in train, found 3 (eye_2.jpg)"
    ] * 2


def test_valid_and_test_may_have_grades_that_only_the_model_knows(tmp_path: Path) -> None:
    write_set(tmp_path, train=[0, 1] * 3, others=(0, 1, 3))
    data, faults = scan_dataset(tmp_path, known_grades=(0, 1, 2, 3))
    assert (data.dr_grades, faults) == ((0, 1), [])
    faults = scan_dataset(tmp_path, known_grades=(0, 2))[1]
    assert [fault.split("annotations.csv, ")[1] for fault in faults] == [
        "line 4: Retinopathy grade: expected one of 0, 1, 2 as in train or the model, found 3 (eye_2.jpg)"
    ] * 2


def test_a_folder_may_be_given_as_text(tmp_path: Path) -> None:
    write_set(tmp_path)
    assert read_dataset(str(tmp_path)) == read_dataset(tmp_path)
    assert TrainConfig(tmp_path) == TrainConfig(str(tmp_path))
    assert TrainConfig(tmp_path).to_dict()["data"] == str(tmp_path)
    with pytest.raises(UsageError, match="data: expected a folder, found 7"):
        TrainConfig(7)  # type: ignore[arg-type]


def test_only_the_splits_asked_for_are_read(tmp_path: Path) -> None:
    write_split(tmp_path / "test", [0, 3], 0)
    data = read_dataset(tmp_path, splits=("test",))
    assert (list(data.splits), data.dr_grades, len(data.splits["test"].photos)) == (["test"], (), 2)
    with pytest.raises(AnnotationError, match=r"expected train/ and test/, .* found no annotations\.csv in train/$"):
        read_dataset(tmp_path, splits=("train", "test"))


def test_a_missing_column_does_not_make_every_photograph_unlisted(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_annotations(tmp_path / "valid", [["eye_0", 1], ["eye_1", 1]], ["Image name", "Retinopathy grade"])
    _, faults = scan_dataset(tmp_path)
    assert len(faults) == 2  # the missing column, and eye_2.jpg, which no row names
    assert "expected a column 'Risk of macular edema'" in faults[0]
    assert "eye_2.jpg: expected a row" in faults[1]


@pytest.mark.parametrize(
    ("encoding", "found"), [("utf-16", "UTF-16"), ("cp1252", "byte 0xfc"), ("mac-roman", "byte 0x9f")]
)
def test_annotations_in_another_encoding_are_one_fault(tmp_path: Path, encoding: str, found: str) -> None:
    write_set(tmp_path)
    path = tmp_path / "train" / "annotations.csv"
    (path.parent / "images" / "eye_1.jpg").rename(path.parent / "images" / "für_1.jpg")
    path.write_bytes(path.read_text(encoding="utf-8").replace("eye_1", "für_1").encode(encoding))
    (fault, *others) = scan_dataset(tmp_path)[1]
    assert fault.startswith(f"{path}, expected UTF-8 text, found {found}")
    assert fault.endswith('save it as "CSV UTF-8"')
    missed = [other for other in others if "expected a row" in other]
    assert len(missed) == (encoding == "mac-roman")  # whose letters cannot be told from those of Windows


def test_an_excel_workbook_is_one_fault(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "train" / "annotations.csv"
    path.write_bytes(b"PK\x03\x04\x14\x00 workbook")
    faults = scan_dataset(tmp_path)[1]
    assert faults == [f'{path}, expected UTF-8 text, found an Excel workbook; save it as "CSV UTF-8"']


def test_names_may_begin_with_the_folders_that_lead_to_the_photographs(tmp_path: Path) -> None:
    root = write_set(tmp_path / "data")
    path = root / "train" / "annotations.csv"
    written = path.read_text(encoding="utf-8")
    for folders in ("images/", "train/images/", "data\\train\\images\\", "../data/train/images/", "/old/place/"):
        path.write_text(written.replace("eye_", f"{folders}eye_"), encoding="utf-8")
        data, faults = scan_dataset(root)
        assert faults == [], folders
        assert data.splits["train"].photos[0].path == root / "train/images/eye_0.jpg"
    path.write_text(written.replace("eye_1.", "other/eye_1."), encoding="utf-8")
    missing, unlisted = scan_dataset(root)[1]
    assert missing.endswith("found 'eye_1.jpg', to which those folders do not lead; write that if it is meant")
    assert "eye_1.jpg: expected a row" in unlisted


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [0, 1], 0)
    with pytest.raises(AnnotationError, match=r"found no annotations\.csv in valid/, test/"):
        scan_dataset(tmp_path)
    with pytest.raises(AnnotationError, match="found none there"):
        scan_dataset(tmp_path / "nowhere")


def test_class_weights_are_scikit_learns_balanced() -> None:
    dr_index = np.repeat([0, 1, 2, 3, 4], [792, 201, 354, 110, 63])
    expected = compute_class_weight("balanced", classes=np.arange(5), y=dr_index)
    np.testing.assert_allclose(class_weights(dr_index.tolist(), 5).numpy(), expected, rtol=1e-6)
    assert class_weights([0, 0, 1], 3).tolist() == [0.5, 1.0, 1.0], "the absent grade counts among three"


def test_what_is_learned_does_not_depend_on_the_cache(gaps: Path, tmp_path: Path) -> None:
    data = read_dataset(gaps)
    paths = [photo.path for photo in data.splits["train"].photos]
    kept, _ = look_through(paths, SMALL, "uint8", "memory", tmp_path)
    direct = DecodedFrames(paths, SMALL)
    assert any((direct[i] % 1 >= 0.5).any() for i in range(3)), "some would be cut off instead of rounded"
    drawn = [TrainItems(data, frames, make_augment("notebook"), 42) for frames in (kept, direct)]
    for i in range(3):
        kept_item, direct_item = (items[Draw(i, 1, i)] for items in drawn)
        assert torch.equal(kept_item.image, direct_item.image)


def plan(kind: Sampling = "shuffle", n: int = 23, batch_size: int = 4, **kwargs: Any) -> EpochPlan:
    return EpochPlan([i % 3 for i in range(n)], batch_size, kind, 7, **kwargs)


def test_shuffle_visits_each_photograph_once() -> None:
    epoch = plan()
    batches = list(epoch)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert len(epoch) == 6
    assert sorted(draw.photo for batch in batches for draw in batch) == list(range(23))
    assert [draw.position for batch in batches for draw in batch] == list(range(23))
    assert list(epoch) == batches  # a pure function of seed and epoch
    epoch.epoch = 2
    assert list(epoch) != batches


def test_a_lone_last_photograph_is_left_out() -> None:
    assert [len(batch) for batch in plan(n=21)] == [4] * 5
    assert [len(batch) for batch in plan(n=5, batch_size=1)] == [1] * 5  # with batches of one, none is left out
    assert [len(batch) for batch in plan(n=1)] == [1]  # nor the only one there is


def test_weighted_draws_balance_grades() -> None:
    dr_index = np.repeat([0, 1, 2, 3, 4], [792, 201, 354, 110, 63])
    epoch = EpochPlan(dr_index.tolist(), 16, "weighted", seed=3)
    drawn: Counter[int] = Counter()
    for number in range(1, 11):
        epoch.epoch = number
        drawn.update(dr_index[epoch.draws()].tolist())
    expected = drawn.total() / 5
    chi_square = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert drawn.total() == 15200
    assert chi_square < 18.5  # 99.9th percentile with 4 degrees of freedom
    assert len({int(i) for i in epoch.draws()}) < 1520  # with replacement


def test_two_devices_share_the_micro_batches_of_one() -> None:
    one = list(plan(n=32))
    ranks = [list(plan(n=32, rank=rank, world=2)) for rank in range(2)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == one
    odd = [list(plan(n=36, rank=rank, world=2)) for rank in range(2)]
    assert [len(share) for share in odd] == [4, 4]  # the ninth is dropped, so that no device waits


def test_more_devices_than_micro_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="--batch-size 16: expected at least one batch of the 23"):
        plan(batch_size=16, world=3)


def test_start_skips_what_an_interrupted_epoch_has_behind_it() -> None:
    epoch = plan()
    whole = list(epoch)
    epoch.start = 2
    assert list(epoch) == whole[2:]
    assert len(epoch) == 4


def test_augmentation_depends_on_seed_epoch_and_position_alone(gaps: Path) -> None:
    data = sound(gaps)
    items = TrainItems(data, frames_of(data, "train"), make_augment("cameras"), seed=1)
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    first = items[Draw(0, 1, 0)].image
    assert torch.equal(torch.get_rng_state(), generator)
    torch.manual_seed(99)
    assert torch.equal(items[Draw(0, 1, 0)].image, first)
    others = [items[Draw(0, 1, 1)].image, items[Draw(0, 2, 0)].image]
    items.seed = 2
    others.append(items[Draw(0, 1, 0)].image)
    assert not any(torch.equal(other, first) for other in others)


@pytest.mark.parametrize(("flip", "share"), [("horizontal", 0.5), ("vertical", 0.1)])
def test_flips_come_as_often_as_the_notebooks(flip: str, share: float) -> None:
    picture = torch.zeros(3, 33, 33, dtype=torch.uint8)
    # A spot to the right of and above the centre stays in its quadrant when turned by 10 degrees.
    picture[:, 6:10, 23:27] = 200
    augment = make_augment("notebook")
    flipped = 0
    for seed in range(300):
        y, x = (
            axis.float().mean()
            for axis in torch.nonzero(augment_with_seed(augment, picture, seed)[0] > 60, as_tuple=True)
        )
        flipped += int(x < 16) if flip == "horizontal" else int(y > 16)
    assert abs(flipped / 300 - share) < 4 * np.sqrt(share * (1 - share) / 300)


def test_collated_batches() -> None:
    batch = collate([Item(torch.full((3, 4, 4), n), n, n % 2, f"{n}.jpg", f"c{n}") for n in range(3)])
    assert batch.image.shape == (3, 3, 4, 4)
    assert (batch.dr_index.tolist(), batch.me_label.tolist()) == ([0, 1, 2], [0, 1, 0])
    assert batch.dr_index.dtype == torch.int64
    assert (batch.filenames, batch.captions) == (["0.jpg", "1.jpg", "2.jpg"], ["c0", "c1", "c2"])


@pytest.mark.parametrize("framing", ["field", "squash"])
def test_every_cache_gives_the_same_frames(tmp_path: Path, framing: Literal["field", "squash"]) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        eye(n, 80 + n).save(path)
    preprocessing = Preprocessing(framing=framing, image_size=48)
    frame = make_frame(preprocessing)
    expected = torch.cat([frame(torch.from_numpy(decode(path))[None]) for path in paths])
    looks = []
    for cache in ("off", "memory", "disk", "disk"):  # the second time it is found on disk
        exact, look = look_through(paths, preprocessing, "float32", cache, tmp_path / "cache")
        whole, _ = look_through(paths, preprocessing, "uint8", cache, tmp_path / "cache")
        for i in range(3):
            assert torch.equal(exact[i], expected[i])
            assert torch.equal(whole[i].round().to(torch.uint8), expected[i].round().to(torch.uint8))
        looks.append(look)
    assert whole[0].dtype == torch.uint8
    assert all(look == looks[0] for look in looks)
    assert len({look.sha256 for look in looks[0]}) == 3


def test_frames_on_disk_are_reused_until_a_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "eye.png"
    eye(1).save(path)
    before, (look_before,) = look_through([path], SMALL, "uint8", "disk", tmp_path / "cache")
    first = before[0]
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.suffix for file in files] == [".json", ".npy"]
    decoded: list[int] = []
    look_through([path], SMALL, "uint8", "disk", tmp_path / "cache", lambda: decoded.append(1))
    assert decoded == []
    assert sorted((tmp_path / "cache").iterdir()) == files
    for file, content in ((files[1], files[1].read_bytes()[:200]), (files[1], b""), (files[0], b"{")):
        file.write_bytes(content)  # damaged: decoded again
        mended, _ = look_through([path], SMALL, "uint8", "disk", tmp_path / "cache", lambda: decoded.append(1))
        assert torch.equal(mended[0], first)
    assert decoded == [1, 1, 1]
    eye(2).save(path)
    os.utime(path, ns=(1, 1))
    after, (look_after,) = look_through([path], SMALL, "uint8", "disk", tmp_path / "cache")
    assert look_before.sha256 != look_after.sha256
    assert not torch.equal(first, after[0])


def test_frames_on_disk_are_those_of_the_code_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "eye.png"
    eye(1).save(path)
    look_through([path], SMALL, "uint8", "disk", tmp_path / "cache")
    changed = tmp_path / "framing.py"
    changed.write_text(Path(framing.__file__).read_text() + "# changed")
    monkeypatch.setattr(framing, "__file__", str(changed))
    decoded: list[int] = []
    look_through([path], SMALL, "uint8", "disk", tmp_path / "cache", lambda: decoded.append(1))
    assert decoded == [1]


def test_a_photograph_replaced_within_its_times_is_read_again(tmp_path: Path) -> None:
    """As ``cp -p`` and ``rsync -t`` do, with one of equal size."""
    path = tmp_path / "eye.bmp"
    eye(1).save(path)
    before, _ = look_through([path], SMALL, "uint8", "disk", tmp_path / "cache")
    times, size = path.stat(), path.stat().st_size
    eye(2).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == size
    after, _ = look_through([path], SMALL, "uint8", "disk", tmp_path / "cache")
    assert not torch.equal(before[0], after[0])


def test_mapped_frames_travel_to_a_worker_by_name(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for n, path in enumerate(paths):
        eye(n).save(path)
    frames, _ = look_through(paths, SMALL, "uint8", "disk", tmp_path / "cache")
    parcel = pickle.dumps(frames)
    assert len(parcel) < 1000 < 4 * 3 * 48 * 48
    assert torch.equal(pickle.loads(parcel)[3], frames[3])


CODE = ["picture.py", "formats.py", "dicom.py", "jpeg.py", "webp.py", "field.py", "framing.py", "perceptual_hash.py"]


@pytest.mark.parametrize("changed", ["the intermediate square", "another decoder of DICOM", *CODE])
def test_what_changes_frames_changes_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    before = _key([], SMALL, "uint8")
    assert _key([], SMALL, "uint8") == before
    if changed == "the intermediate square":
        monkeypatch.setattr(Preprocessing, "intermediate_size", 64)
    elif changed in CODE:
        monkeypatch.setattr(frames_code, "sha256_of", lambda path: "other" if path.name == changed else sha256_of(path))
    else:
        monkeypatch.setattr("importlib.metadata.version", lambda name: "99" if name == "pydicom" else version(name))
    assert _key([], SMALL, "uint8") != before


def test_what_a_killed_run_left_in_the_cache_is_removed_a_day_later(tmp_path: Path) -> None:
    eye(1).save(tmp_path / "a.png")
    cache = tmp_path / "cache"
    cache.mkdir()
    old, fresh, other = cache / ".0a1b2c3d.7.tmp", cache / ".0a1b2c3d.8.tmp", cache / "notes.tmp"
    for file, age in ((old, 86_500), (fresh, 86_300), (other, 86_500)):
        file.write_bytes(b"half")
        os.utime(file, times=(time.time() - age,) * 2)
    look_through([tmp_path / "a.png"], SMALL, "uint8", "disk", cache)
    assert {file for file in cache.iterdir() if file.suffix == ".tmp"} == {fresh, other}


def test_a_file_that_cannot_be_read_is_named_and_not_cached(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    eye(1).save(good)
    bad.write_bytes(good.read_bytes()[:300])
    _, (fine, faulty) = look_through([good, bad], SMALL, "uint8", "disk", tmp_path / "cache")
    assert fine.fault == ""
    assert str(bad) in faulty.fault
    assert faulty.phash == ""
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "eye.png"
    eye(1).save(path)
    with pytest.raises(OutputError, match="try --cache memory"):
        look_through([path], SMALL, "uint8", "disk", path / "cache")


def test_every_public_name_is_there() -> None:
    for name in retina.train.__all__:
        assert getattr(retina.train, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        _ = retina.train.optimise
    for package in (retina.train, retina.gradcam, retina.runtime):
        assert set(package.__all__) | {"__doc__"} <= set(dir(package)), "a shell completes them"


def test_a_draw_knows_its_epoch_and_place() -> None:
    plan = EpochPlan([0, 1, 2, 0, 1, 2, 0], 2, "shuffle", 5)
    for plan.epoch in (1, 3):
        draws = [draw for batch in plan for draw in batch]
        assert [(draw.epoch, draw.position) for draw in draws] == [(plan.epoch, place) for place in range(6)]
