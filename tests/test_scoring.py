"""Cores, order, the journal and resuming, within this process."""

import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime
import PIL
import pytest
from PIL import Image
from retina.runtime import OutputError, RetinaModel, UsageError, overlay, scoring
from retina.runtime.file_state import lock, stamp
from retina.runtime.folder import Listing, find_pictures, gather
from retina.runtime.journal import FORMAT, Journal
from retina.runtime.scoring import depends_on, make_row, overlay_base, require_maps, score_rows
from retina.runtime.table import Row
from retina.runtime.workers import AHEAD, ordered_map, usable_cores
from tiny_model import CONTRACT, write_tiny_model

V1 = "cpu,cpuacct/x/cpu."
KEY = {"model": "abc", "exact": False}


@pytest.fixture
def model(tmp_path: Path) -> RetinaModel:
    return RetinaModel(write_tiny_model(tmp_path / "m.onnx"))


def folder_of(path: Path, count: int) -> Listing:
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path / f"{i:04}.png")
    return find_pictures(path)


def test_results_come_in_order_however_long_each_takes() -> None:
    def work(i: int) -> int:
        time.sleep(0.005 * (i % 3))
        return i * i

    assert list(ordered_map(work, range(60), 4)) == [i * i for i in range(60)]
    assert list(ordered_map(abs, range(3), 10**18)) == [0, 1, 2], "more than a window can count"


def test_an_error_ends_the_work_and_leaves_no_thread() -> None:
    before = threading.active_count()

    def work(i: int) -> int:
        return 1 // (i - 20)

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(work, range(10_000), 3))
    assert threading.active_count() == before


def test_an_error_drops_what_has_not_started() -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.01)
        return 1 // i

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(work, range(1000), 1))
    assert len(begun) < AHEAD / 2


def test_a_limit_on_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python does where systemd's TasksMax or a container's limit on processes is reached."""
    before, start = threading.active_count(), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if threading.active_count() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(UsageError, match="--workers 4: expected to start as many threads, found: can't start new"):
        list(ordered_map(lambda i: time.sleep(0.01), range(60), 4))
    assert threading.active_count() == before


def test_files_that_cannot_be_listed_to_their_end_leave_no_thread_behind() -> None:
    def files() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="gone"):
        list(ordered_map(abs, files(), 2))
    assert threading.active_count() == before


def test_a_slow_item_lets_the_others_go_ahead_but_only_so_far() -> None:
    release, begun = threading.Event(), []

    def work(i: int) -> int:
        begun.append(i)
        if i == 0:
            release.wait(10)
        return i

    results = ordered_map(work, range(1000), 2)
    reader = threading.Thread(target=lambda: next(results))
    reader.start()
    for _ in range(500):
        if len(begun) == 2 * AHEAD:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(begun) == 2 * AHEAD
    release.set()
    reader.join()
    assert list(results) == list(range(1, 1000))


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, 1),
        ("0::/a:b\n", {"a:b/cpu.max": "100000 100000"}, 1),
        ("0::/a\n", {"../cpu.max": "100000 100000"}, None),
        ("0::/a\n", {"a/cpu.max": "100000 0"}, None),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
        ("3:cpuset:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("0::/host/path/not/here\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/x\n2:memory:/y\n", {V1 + "cfs_quota_us": "100000", V1 + "cfs_period_us": "100000"}, 1),
        ("4:cpu,cpuacct:/x\n", {V1 + "cfs_quota_us": "-1", V1 + "cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_a_quota_cuts_the_cores(tmp_path: Path, groups: str, files: dict[str, str], quota: int | None) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cg" / name).write_text(text + "\n")
    allowed = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path / "self", tmp_path / "cg") == min(allowed, quota or allowed)


def test_affinity_cuts_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_workers_do_not_change_the_rows(tmp_path: Path, model: RetinaModel) -> None:
    listing = folder_of(tmp_path / "eyes", 40)
    (listing.root / "0007.png").write_bytes(b"")
    runs = []
    for workers in (1, 2, 8):
        journal = Journal(tmp_path / f"{workers}.journal", KEY)
        runs.append([row for row, known in score_rows(model, listing, journal, workers)])
        journal.close()
    assert runs[0] == runs[1] == runs[2]
    assert [row.name for row in runs[0]] == list(listing.names)
    for row in runs[0]:
        if row.name == "0007.png":
            assert row == Row("0007.png", None, "empty file")
        else:
            assert row.prediction == model.predict(np.asarray(Image.open(listing.root / row.name)))


def journalled(path: Path, model: RetinaModel, listing: Listing, key: dict[str, object] = KEY) -> list[str]:
    """Score and keep the journal; returns the names that were not taken from it."""
    journal = Journal(path, key)
    try:
        return [row.name for row, known in score_rows(model, listing, journal, 2) if not known]
    finally:
        journal.close()


def test_a_second_run_takes_over_what_has_not_changed(tmp_path: Path, model: RetinaModel) -> None:
    listing = folder_of(tmp_path / "eyes", 12)
    (listing.root / "0003.png").write_bytes(b"broken")
    path = tmp_path / "j"
    assert journalled(path, model, listing) == list(listing.names)
    assert journalled(path, model, listing) == ["0003.png"]  # a failure is tried again
    same_size = (listing.root / "0005.png").read_bytes()
    (listing.root / "0005.png").rename(listing.root / "old.txt")
    (listing.root / "0005.png").write_bytes(same_size)
    times = (listing.root / "old.txt").stat()
    os.utime(listing.root / "0005.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    (listing.root / "0004.png").unlink()
    assert journalled(path, model, find_pictures(listing.root)) == ["0003.png", "0005.png"]
    assert journalled(path, model, find_pictures(listing.root), {**KEY, "exact": True}) == [
        name for name in listing.names if name != "0004.png"
    ]


def test_rows_come_back_exactly(tmp_path: Path, model: RetinaModel) -> None:
    (tmp_path / "odd\udcff\n").mkdir()
    listing = folder_of(tmp_path / "odd\udcff\n" / "eyes", 6)
    journal = Journal(tmp_path / "j", KEY)
    rows = [row for row, _ in score_rows(model, listing, journal, 2)]
    journal.close()
    again = Journal(tmp_path / "j", KEY)
    assert len(again) == 6
    assert [again.row(row.name, stamp(listing.root / row.name)) for row in rows] == rows
    again.close()


@pytest.mark.parametrize("torn", [1, 7, 50])
def test_a_torn_last_line_is_scored_again(tmp_path: Path, model: RetinaModel, torn: int) -> None:
    listing = folder_of(tmp_path / "eyes", 5)
    path = tmp_path / "j"
    journalled(path, model, listing)
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    assert journalled(path, model, listing) == ["0004.png"]
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-torn] + b"\0" * torn)
    assert journalled(path, model, listing) == ["0004.png"]


def test_a_line_that_is_no_row_is_scored_again(tmp_path: Path, model: RetinaModel) -> None:
    listing = folder_of(tmp_path / "eyes", 3)
    path = tmp_path / "j"
    journalled(path, model, listing)
    whole = path.read_bytes()
    head, first, second, third = whole.splitlines(keepends=True)
    for strange in (
        b"{}\n",
        second.replace(b'"me_prob"', b'"another"'),
        second.replace(b'"stamp": [', b'"stamp": [1, '),
        re.sub(rb'"dr_probs": {.*?}', b'"dr_probs": [0.5]', second),
    ):
        assert strange != second
        path.write_bytes(head + first + strange + third)
        assert journalled(path, model, listing) == ["0001.png", "0002.png"]
        assert path.read_bytes() == whole


def test_a_journal_of_something_else_starts_over_and_says_what_changed(tmp_path: Path, model: RetinaModel) -> None:
    listing = folder_of(tmp_path / "eyes", 3)
    journalled(tmp_path / "j", model, listing)
    journal = Journal(tmp_path / "j", {**KEY, "model": "other"})
    assert (journal.changed, len(journal)) == (["model"], 0)
    journal.close()
    journalled(tmp_path / "j", model, listing)
    journal = Journal(tmp_path / "j", KEY, resume=False)
    assert (journal.changed, len(journal)) == ([], 0)
    journal.discard()
    assert not (tmp_path / "j").exists()


def test_a_journal_says_all_that_changed_in_order(tmp_path: Path) -> None:
    """Both added and missing keys count, and so does an older format."""
    for key, changed in (
        (KEY, []),
        ({**KEY, "overlays": "maps", "model": "other", "exact": True}, ["exact", "model", "overlays"]),
        (KEY, ["exact", "model", "overlays"]),
    ):
        journal = Journal(tmp_path / "j", key)
        assert journal.changed == changed
        journal.close()
    (tmp_path / "j").write_text('{"format": 1, "model": "abc", "exact": false}\n')
    journal = Journal(tmp_path / "j", KEY)
    assert journal.changed == ["format"]
    journal.close()


@pytest.mark.parametrize("start", [b"", b"{", b'{"format": ', b'{"format": 2, "mod'])
def test_a_journal_killed_within_its_first_line_begins_anew(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "j").write_bytes(start)
    with closing(Journal(tmp_path / "j", KEY)) as journal:
        assert (len(journal), journal.changed) == (0, [])
    assert json.loads((tmp_path / "j").read_text()) == {"format": FORMAT, **KEY}


@pytest.mark.parametrize("content", [b"n", b'{"form": 3}', b"notes of somebody else\n"])
def test_a_file_that_is_no_journal_is_kept_however_short(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(OutputError, match="expected an earlier run's journal or no file, found another file"):
        Journal(tmp_path / "j", KEY)
    assert (tmp_path / "j").read_bytes() == content


def test_a_row_of_which_the_disk_takes_a_part_is_not_taken_for_kept(tmp_path: Path, model: RetinaModel) -> None:
    """write(2) then tells how much it wrote, and fails only when it is called again."""
    import resource

    listing = folder_of(tmp_path / "eyes", 1)
    row = Row("0000.png", model.predict(listing.root / "0000.png"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Journal(tmp_path / "j", KEY)) as journal:
        size = (tmp_path / "j").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))  # only for this process
        try:
            with pytest.raises(OutputError, match="cannot be written: File too large"):
                journal.add(row, (1, 2, 3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "j").stat().st_size == size + 50


def test_a_stamp_by_hand(tmp_path: Path) -> None:
    """Size and modification time each count alone, because on Windows the third number never changes."""
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a.jpg", ns=(1, 1_700_000_000_123_456_700))
    found = stamp(tmp_path / "a.jpg")
    assert found is not None and found[:2] == (5, 1_700_000_000_123_456_700)
    assert stamp(tmp_path / "none.jpg") is None


def test_a_row_of_a_file_that_had_no_stamp_is_not_kept(tmp_path: Path, model: RetinaModel) -> None:
    """The file appeared while it was being scored. The rows after it are kept nevertheless."""
    listing = folder_of(tmp_path / "eyes", 2)
    first, second = (Row(name, model.predict(listing.root / name)) for name in listing.names)
    journal = Journal(tmp_path / "j", KEY)
    journal.add(first, None)
    journal.add(second, stamp(listing.root / second.name))
    journal.close()
    again = Journal(tmp_path / "j", KEY)
    assert len(again) == 1 and again.row(second.name, stamp(listing.root / second.name)) == second
    again.close()


def test_a_row_depends_on_all_that_computes_it(
    tmp_path: Path, model: RetinaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a resumed run ignored one of these, it would mix rows of two kinds in one table."""
    monkeypatch.chdir(tmp_path)
    other = RetinaModel(model.path, exact=True)
    other.provider = "openvino"  # as if it were installed
    found = depends_on(other, Path("maps"))
    assert found.pop("versions") == {
        "retina-edge": version("retina-edge"),
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "pydicom": version("pydicom"),
    }
    digest = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert found == {"model": digest, "exact": True, "provider": "openvino", "overlays": str(tmp_path / "maps")}
    plain = depends_on(model)
    assert (plain["exact"], plain["provider"], plain["overlays"]) == (False, "cpu", None)


def test_a_build_of_onnxruntime_under_another_name_has_a_version_too(
    tmp_path: Path, model: RetinaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--provider cuda asks for onnxruntime-gpu in place of onnxruntime, which pip then does not know; nor need it know
    pydicom.
    """

    def known_to_pip(package: str) -> str:
        if package in ("onnxruntime", "pydicom", "retina-edge"):
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("importlib.metadata.version", known_to_pip)
    versions = depends_on(model)["versions"]
    assert versions["onnxruntime"] == onnxruntime.__version__
    assert "pydicom" not in versions
    assert versions["retina-edge"] == "unknown", "a copy of the folders, without pip"
    assert (versions["pillow"], versions["numpy"]) == (version("pillow"), version("numpy"))


def test_a_photograph_replaced_while_it_is_scored_is_scored_again(
    tmp_path: Path, model: RetinaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = folder_of(tmp_path / "eyes", 2)

    def then_replaced(model: RetinaModel, name: str, path: Path, overlays: Path | None) -> Row:
        row = make_row(model, name, path, overlays)
        if name == "0000.png":
            path.write_bytes(path.read_bytes() + b"\0")
        return row

    monkeypatch.setattr(scoring, "make_row", then_replaced)
    assert journalled(tmp_path / "j", model, listing) == list(listing.names)
    monkeypatch.undo()
    assert journalled(tmp_path / "j", model, listing) == ["0000.png"]


def test_rows_reach_the_disk_every_few_seconds(
    tmp_path: Path, model: RetinaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = folder_of(tmp_path / "eyes", 1)
    row = Row("0000.png", model.predict(listing.root / "0000.png"))
    now, synced = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    sizes = []
    with closing(Journal(tmp_path / "j", KEY)) as journal:
        for later in (0.0, 2.1, 1.9, 0.2):  # seconds since the row before
            now[0] += later
            journal.add(row, (1, 2, 3))
            sizes.append((tmp_path / "j").stat().st_size)
    assert synced == [sizes[1], sizes[3]]


def test_two_runs_never_write_one_table(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", KEY)
    with pytest.raises(OutputError, match="another retina-score is writing this table"):
        Journal(tmp_path / "j", KEY)
    first.close()
    Journal(tmp_path / "j", KEY).close()


def test_a_run_never_writes_a_journal_that_another_has_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before the other run removed it, and locked after: a third run would then lock a journal of its own."""
    running = [Journal(tmp_path / "j", KEY)]

    def late(*arguments: Any) -> None:
        while running:
            running.pop().discard()
        lock(*arguments)

    monkeypatch.setattr("retina.runtime.journal.lock", late)
    second = Journal(tmp_path / "j", KEY)
    monkeypatch.undo()
    with pytest.raises(OutputError, match="another retina-score is writing this table"):
        Journal(tmp_path / "j", KEY)
    second.close()


def locks_fail(monkeypatch: pytest.MonkeyPatch, why: int, alone: bool) -> None:
    """As the system would say it, with this number."""

    def fail(*_: object) -> None:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(fcntl, "lockf" if alone else "flock", fail)


@pytest.mark.parametrize("why", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("alone", [False, True])
def test_a_file_system_without_locks_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int, alone: bool
) -> None:
    """flock(2) and fcntl(2) fail so on Lustre without its option flock, and on NFS without a lock service."""
    locks_fail(monkeypatch, why, alone)
    with (tmp_path / "j").open("w") as file:
        lock(file.fileno(), "another", alone=alone)


def test_a_journal_on_a_windows_share_is_read_by_its_own_descriptor(
    tmp_path: Path, model: RetinaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There (CIFS) a lock is mandatory: "any IO on a locked file will always fail with EACCES when done from a separate
    file descriptor", says flock(2).
    """
    listing = folder_of(tmp_path / "in", 2)
    journalled(tmp_path / "j", model, listing)
    opened: list[IO[bytes]] = []
    of_any_file = Path.open

    def of_share(path: Path, *how: Any, **more: Any) -> IO[bytes]:
        if path == tmp_path / "j" and any(not file.closed for file in opened):
            raise PermissionError(errno.EACCES, "Permission denied")
        opened.append(of_any_file(path, *how, **more))
        return opened[-1]

    monkeypatch.setattr(Path, "open", of_share)
    with closing(Journal(tmp_path / "j", KEY)) as journal:
        assert len(journal) == 2


def test_a_full_disk_keeps_what_was_done_and_says_so(tmp_path: Path, model: RetinaModel) -> None:
    import resource

    listing = folder_of(tmp_path / "eyes", 30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # like a full disk, but only for this process
    try:
        with pytest.raises(OutputError, match="What was scored so far is kept there: make room"):
            journalled(tmp_path / "j", model, listing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = journalled(tmp_path / "j", model, listing)
    assert 0 < len(left) < 30


def test_a_file_that_vanishes_keeps_its_row(tmp_path: Path, model: RetinaModel) -> None:
    listing = folder_of(tmp_path / "eyes", 3)
    (listing.root / "0001.png").unlink()
    journal = Journal(tmp_path / "j", KEY)
    rows = [row for row, _ in score_rows(model, listing, journal, 2)]
    journal.close()
    assert [row.error for row in rows] == ["", "no such file", ""]


def test_gathering_folders_files_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d/a.jpg", "d/e/b.JPG", "d/notes.txt", "c.scan", "new\nline.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert gather(["d"]) == Listing(Path("d"), ("a.jpg", "e/b.JPG"), Counter({".txt": 1}), (Path("d"),))
    assert gather(["d", "./c.scan", "missing.jpg"]).names == ("c.scan", "d/a.jpg", "d/e/b.JPG", "missing.jpg")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfc.scan\r\n\r\nd\nc.scan\n\xff.jpg\n")
    assert gather(["@list.txt"]).names == ("c.scan", "d/a.jpg", "d/e/b.JPG", "\udcff.jpg")
    Path("list0").write_bytes(b"new\nline.jpg\0c.scan\0")
    assert gather(["@list0"]).names == ("c.scan", "new\nline.jpg")
    with pytest.raises(UsageError, match="@none: expected a list of paths"):
        gather(["@none"])
    Path("@eaDir").mkdir()
    for name in ("@eaDir/a.jpg", "@eye.jpg"):
        Path(name).touch()
    assert gather(["@eaDir", "@eye.jpg"]).names == ("@eaDir/a.jpg", "@eye.jpg"), "what is there under such a name"


def test_what_is_named_and_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("d/a.jpg").touch()
    for arguments in (["photgraphs/"], ["gone.jpg"], [""], ["d", ""], ["d", "photgraphs"], ["d", 300 * "x"]):
        with pytest.raises(UsageError, match="expected a folder, a photograph or a list of them, found nothing there"):
            gather(arguments)
    assert gather(["d", "gone.jpg", 300 * "x" + ".jpg"]).names == ("d/a.jpg", "gone.jpg", 300 * "x" + ".jpg")
    Path("list").write_text("photgraphs/\n")
    assert gather(["@list"]).names == ("photgraphs",)


def test_what_is_left_out_of_several_folders_is_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d/a.jpg", "d/notes.txt", "e/b.jpg", "e/more.txt", "e/c.pdf"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    listing = gather(["d", "e"])
    assert listing == Listing(
        Path(), ("d/a.jpg", "e/b.jpg"), Counter({".txt": 2, ".pdf": 1}), (Path("d"), Path("e"))
    )  # fmt: skip


def test_blank_lines_of_a_list_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for encoding in ("utf-8", "utf-16"):
        Path("list").write_bytes(" \r\n\tb.jpg\r\n  \na.jpg\n\n".encode(encoding))
        assert gather(["@list"]) == Listing(Path(), ("\tb.jpg", "a.jpg"), lists=(Path("list"),))


def test_a_list_that_says_it_is_utf_16_and_is_not_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").write_bytes("a.jpg\n".encode("utf-16") + b"\0")
    with pytest.raises(UsageError, match="@list: expected a list in UTF-8 or UTF-16, found neither; save it again"):
        gather(["@list"])


def test_a_photograph_named_twice_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert gather([".", "a.jpg"]).names == ("a.jpg",)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_a_list_as_windows_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list").write_bytes("\ufeffp/\u65e5.jpg\r\np/b\u2028\x85.jpg\r\n".encode(encoding))
    assert gather(["@list"]).names == ("p/b\u2028\x85.jpg", "p/\u65e5.jpg")


def test_a_link_that_leads_nowhere_does_not_hide_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "circle").symlink_to("circle")
    assert find_pictures(tmp_path) == Listing(tmp_path, ("a.jpg", "loop.jpg"), Counter({"": 1}), (tmp_path,))


def test_a_resumed_run_draws_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    """For example after a kill between a row and its second overlay, or if someone removed files."""
    model = RetinaModel(write_tiny_model(tmp_path / "e.onnx", contract=replace(CONTRACT, explain=True)))
    listing, maps = folder_of(tmp_path / "eyes", 3), tmp_path / "maps"

    def drawn_afresh() -> list[str]:
        journal = Journal(tmp_path / "j", KEY)
        try:
            return [row.name for row, known in score_rows(model, listing, journal, 1, maps) if not known]
        finally:
            journal.close()

    assert drawn_afresh() == list(listing.names)
    assert drawn_afresh() == []
    (maps / "0000.png_dr.jpg").unlink()
    (maps / "0002.png_me.jpg").unlink()
    assert drawn_afresh() == ["0000.png", "0002.png"]
    assert len(list(maps.iterdir())) == 6


def test_no_overlay_of_a_former_photograph_stays_beside_a_failed_row(tmp_path: Path) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "e.onnx", contract=replace(CONTRACT, explain=True)))
    listing, maps = folder_of(tmp_path / "eyes", 2), tmp_path / "maps"
    for damaged in (False, True):
        if damaged:
            (tmp_path / "eyes" / "0000.png").write_bytes(b"no photograph any more")
        table = Journal(tmp_path / "j", KEY)
        rows = [row for row, _ in score_rows(model, listing, table, 1, maps)]
        table.close()
    assert [bool(row.error) for row in rows] == [True, False]
    assert {path.name for path in maps.iterdir()} == {"0001.png_dr.jpg", "0001.png_me.jpg"}


def test_an_overlay_has_the_photographs_full_size(tmp_path: Path) -> None:
    """Also of one so large that the network is given a reduced one."""
    model = RetinaModel(write_tiny_model(tmp_path / "e.onnx", contract=replace(CONTRACT, explain=True)))
    Image.new("RGB", (1800, 1750), "orange").save(tmp_path / "a.png")
    (tmp_path / "maps").mkdir()
    assert make_row(model, "a.png", tmp_path / "a.png", tmp_path / "maps").error == ""
    for head in ("dr", "me"):
        with Image.open(tmp_path / "maps" / f"a.png_{head}.jpg") as drawn:
            assert drawn.size == (1800, 1750)


def test_an_overlay_too_large_for_memory_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "e.onnx", contract=replace(CONTRACT, explain=True)))
    listing = folder_of(tmp_path / "eyes", 2)

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(overlay, "write_overlays", no_memory)
    journal = Journal(tmp_path / "j", KEY)
    rows = [row for row, _ in score_rows(model, listing, journal, 1, tmp_path / "maps")]
    journal.close()
    assert [row.error for row in rows] == ["too large for the memory at hand"] * 2


def test_overlays_among_the_photographs_are_refused_however_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "e.onnx", contract=replace(CONTRACT, explain=True)))
    folder_of(tmp_path / "eyes", 1)
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("eyes")
    for maps in (tmp_path / "eyes/maps", Path("link/maps"), Path("eyes")):
        with pytest.raises(UsageError, match="expected a folder outside eyes"):
            require_maps(model, gather(["eyes"]), maps)
    require_maps(model, gather(["eyes"]), Path("eyes.maps"))
    # The overlays of eyes/0000.png would lie in eyes, for the next "eyes/*" or "eyes" to score.
    for maps in (Path("eyes"), Path("link"), Path()):
        with pytest.raises(UsageError, match="expected a folder outside eyes"):
            require_maps(model, gather(["eyes/0000.png"]), maps)
    require_maps(model, gather(["eyes/0000.png"]), Path("eyes/maps"))


def test_overlays_lie_below_their_folder_whatever_the_name() -> None:
    maps = Path("maps")
    assert overlay_base(maps, "p/a.jpg") == Path("maps/p/a.jpg")
    assert overlay_base(maps, "/archive/a.jpg") == Path("maps/archive/a.jpg")
    assert overlay_base(maps, "../dd/a.jpg") == Path("maps/__/dd/a.jpg")


@pytest.mark.parametrize("why", [errno.EAGAIN, errno.EACCES])
@pytest.mark.parametrize("alone", [False, True])
def test_a_lock_that_another_holds_is_told_whichever_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int, alone: bool
) -> None:
    """fcntl(2): "fails with error EACCES or EAGAIN"; on NFS it is the former."""
    locks_fail(monkeypatch, why, alone)
    with (tmp_path / "j").open("w") as file, pytest.raises(OutputError, match="another"):
        lock(file.fileno(), "another", alone=alone)


def test_a_name_that_no_file_can_have_has_no_stamp(tmp_path: Path, model: RetinaModel) -> None:
    """A list in UTF-16 may hold a zero; the photograph gets a row that says so, and the others are scored."""
    assert stamp(tmp_path / "a\0b.jpg") is None
    listing = Listing(tmp_path, ("a\0b.jpg",))
    with closing(Journal(tmp_path / "j", KEY)) as journal:
        ((row, known),) = score_rows(model, listing, journal, 1)
    assert (row.prediction, known) == (None, False) and "null" in row.error


@pytest.mark.parametrize(("limit", "cores"), [("125000 100000", 2), ("240000 100000", 3), ("20000 100000", 1)])
def test_part_of_a_core_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores(tmp_path, tmp_path) == cores
