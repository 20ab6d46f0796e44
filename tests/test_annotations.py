"""The annotation reader, and how names are matched to files."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retina.runtime.annotations import Annotation, NameIndex, fault_report, me_label, scan_annotations
from retina.runtime.errors import AnnotationError, UsageError
from retina.runtime.folder import find_pictures

HEADER = "Image name,Retinopathy grade,Risk of macular edema,Caption,Patient\n"


def write(folder: Path, text: str | bytes, name: str = "annotations.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_reads_names_grades_and_further_columns(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + 'a.jpg,3,1,"two, words",p1\n\nb.jpg,0,0,,p2\n')
    annotations, faults = scan_annotations(path)
    first, second = annotations
    assert faults == []
    assert (first.line, first.image, first.dr_grade, first.me_grade) == (2, "a.jpg", 3, 1)
    assert first.extra == {"Caption": "two, words", "Patient": "p1"}
    assert (second.line, second.image, second.dr_grade, second.me_grade) == (4, "b.jpg", 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffImage name,Retinopathy grade,Risk of macular edema\r\n a ,2,1\r\n",
        " IMAGE  NAME ,retinopathy Grade,Risk of macular edema \na,2,1\n",
        "Image name;Retinopathy grade;Risk of macular edema\na;2;1\n",
        "\ufeffsep=;\r\nImage name;Retinopathy grade;Risk of macular edema\r\na;2,0;1\r\n",
        "Risk of macular edema\tImage name\tRetinopathy grade\n1.0\ta\t2.00\n",
        "Image name,Retinopathy grade,Risk of macular edema\ra,2,1\r",
        'Image name,Retinopathy grade,Risk of macular edema,"Quality (0; 1; 2; 3; 4)"\na,2,1,3\n',
    ],
    ids=[
        "byte order mark",
        "case and blanks",
        "semicolons",
        "separator named",
        "tabs, other order, 1.0",
        "old Macs' line ends",
        "separators in a name",
    ],
)
def test_tolerates_what_spreadsheets_write(tmp_path: Path, text: str) -> None:
    (row,) = scan_annotations(write(tmp_path, text))[0]
    assert (row.image, row.dr_grade, row.me_grade) == ("a", 2, 1)


def test_a_header_that_no_csv_can_have_is_a_fault(tmp_path: Path) -> None:
    (fault,) = scan_annotations(write(tmp_path, 200_000 * "x" + "\n1,2\n"))[1]
    assert fault.startswith("line 1: expected comma-separated values, found: field larger than field limit")


def test_lines_below_excels_mark_of_the_separator_keep_their_numbers(tmp_path: Path) -> None:
    """The mark in capitals too, as people write it by hand."""
    text = "SEP=;\r\nImage name;Retinopathy grade;Risk of macular edema\r\na,b;1;0\r\nc;x;0\r\n"
    annotations, (fault,) = scan_annotations(write(tmp_path, text))
    assert [(row.line, row.image) for row in annotations] == [(3, "a,b")]
    assert fault.startswith("line 4: Retinopathy grade")


def test_names_every_fault_at_once_with_file_line_and_value(tmp_path: Path) -> None:
    text = HEADER + "a,x,0,,\nb,1,-1,,\n,1,1,,\nc,1,1,,\nc,2,1,,\nd,1\ne,1.5,,,\nf,1,1,,\n"
    path = write(tmp_path, text)
    annotations, faults = scan_annotations(path)
    ungraded = "; write NA where it was not graded"
    assert [row.image for row in annotations] == ["c", "f"]
    assert faults == [
        "line 2: Retinopathy grade: expected a whole number from 0, found 'x'" + ungraded,
        "line 3: Risk of macular edema: expected a whole number from 0, found '-1'",
        "line 4: Image name: expected a name, found nothing",
        "line 6: Image name: 'c' is already on line 5",
        "line 7: expected 5 columns, found 2: 'd'",
        "line 8: Retinopathy grade: expected a whole number from 0, found '1.5'",
        "line 8: Risk of macular edema: expected a whole number from 0, found ''" + ungraded,
    ]
    assert fault_report(path, faults).startswith(f"{path}: 7 faults")


@pytest.mark.parametrize(
    ("dr", "me", "what"),
    [
        ("1", "Yes", "'Yes'; write 1 for yes and 0 for no"),
        ("1", "FALSE", "'FALSE'; write 1 for yes and 0 for no"),
        ("True", "1", "'True'; write the grade, 0 to 4"),
        ("mild", "1", "'mild'; write the grade's number, or NA where it was not graded"),
        ("Moderate NPDR", "1", "'Moderate NPDR'; write the grade's number, or NA where it was not graded"),
        ("1", "no risk", "'no risk'; write the grade's number, or NA where it was not graded"),
        ("N/A", "1", "'N/A'; write NA where it was not graded"),
        ("1", "NaN", "'NaN'; write NA where it was not graded"),
        ("?", "1", "'?'; write NA where it was not graded"),
    ],
)
def test_a_label_in_words_is_not_taken_for_none(tmp_path: Path, dr: str, me: str, what: str) -> None:
    (fault,) = scan_annotations(write(tmp_path, f"{HEADER}a,{dr},{me},,\n"))[1]
    assert fault.endswith(f": expected a whole number from 0, found {what}")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "found no row"),
        (HEADER.encode(), "found no row"),
        (b"Image name,Risk of macular edema\na,1\n", "line 1: expected a column 'Retinopathy grade'"),
        (b"\n,,\nImage name,Risk of macular edema\na,1\n", "line 3: expected a column 'Retinopathy grade'"),
        (b"Image name,image NAME,Retinopathy grade,Risk of macular edema\na,a,1,1\n", "expected one column"),
        (
            f"{HEADER.strip()},,, patient\na,1,1,,p,,,q\n".encode(),
            "line 1: expected one column 'Patient', found 2",
        ),
        (HEADER.encode() + b"\xe4.jpg,1,1,,\n", "expected UTF-8 text, found byte 0xe4"),
        (HEADER.encode() + b'"a.jpg,1,1,,\n', "found: a quotation mark that is not closed"),
    ],
)
def test_refuses_what_is_not_an_annotations_file(tmp_path: Path, content: bytes, found: str) -> None:
    (fault,) = scan_annotations(write(tmp_path, content))[1]
    assert found in fault


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    annotations, faults = scan_annotations(tmp_path / "none.csv")
    assert (annotations, faults) == ([], ["cannot be read: No such file or directory"])


@pytest.mark.parametrize(
    ("grade", "positive_from", "label"),
    [(0, None, 0), (1, None, 1), (2, None, None), (0, 1, 0), (1, 2, 0), (2, 2, 1), (3, 2, 1), (3, 3, 1), (4, 2, None)],
)
def test_edema_is_a_risk_from_a_grade_on(grade: int, positive_from: int | None, label: int | None) -> None:
    found, fault = me_label(Annotation(2, "a.jpg", 0, grade, {}), positive_from)
    assert found == label
    assert (f"found {grade} (a.jpg)" in fault) if label is None else fault == ""


@pytest.mark.parametrize("positive_from", [None, 2])
def test_edema_that_was_not_graded_is_no_fault(positive_from: int | None) -> None:
    assert me_label(Annotation(2, "a.jpg", 0, None, {}), positive_from) == (None, "")


def test_a_long_report_is_cut() -> None:
    assert fault_report(Path("a.csv"), ["fault"] * 150).endswith("... and 50 more")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_rows_or_faults(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    annotations, faults = scan_annotations(write(tmp_path_factory.getbasetemp(), HEADER.encode() + content))
    assert annotations or faults


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("eye.jpg", "eye.jpg"),
        ("EYE.JPG", "eye.jpg"),
        ("eye.png", "eye.jpg"),
        ("eye", "eye.jpg"),
        ("IM.0012", "IM.0012.tif"),
        ("left/one", "left/one.PNG"),
        ("./left\\one", "left/one.PNG"),
        ("one", "left/one.PNG"),
        ("Äuge", "A\u0308uge.jpg"),
        ("both.png", "both.png"),
    ],
)
def test_a_name_finds_its_file(tmp_path: Path, name: str, file: str) -> None:
    touch(tmp_path, "eye.jpg", "IM.0012.tif", "left/one.PNG", "A\u0308uge.jpg", "both.jpg", "both.png", "notes.txt")
    assert NameIndex(tmp_path).find(name) == file


def test_a_name_as_written_comes_before_any_other_reading(tmp_path: Path) -> None:
    """A backslash may be part of a name, and names may differ in case alone."""
    files = ("eye.jpg", "EYE.jpg", "odd\\left.jpg", "odd/left.jpg", "stra\u00dfe.jpg")
    touch(tmp_path, *files)
    index = NameIndex(tmp_path)
    assert [index.find(name) for name in files] == list(files)
    assert index.find("STRASSE.JPG") == "stra\u00dfe.jpg"


def test_a_looser_match_never_wins_nor_spoils_an_exact_one(tmp_path: Path) -> None:
    files = ("eye.jpg", "left/eye.jpg", "one.jpg", "ONE.png", "odd\\LEFT.jpg", "odd/left.jpg")
    touch(tmp_path, *files)
    index = NameIndex(tmp_path)
    assert (index.find("eye.jpg"), index.find("EYE.png")) == ("eye.jpg", "eye.jpg"), "not the one in a folder"
    assert index.find("One.JPG") == "one.jpg", "the case counts less than the extension"
    assert index.find("odd\\left.jpg") == "odd/left.jpg", "the separator counts less than the case"


def test_a_file_above_and_one_below_the_name_are_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path / "b", "a/b/eye.jpg", "eye.jpg")
    with pytest.raises(AnnotationError, match=r"found 'a/b/eye\.jpg' and 'eye\.jpg'"):
        NameIndex(tmp_path / "b").find("b/eye.jpg")


def test_names_from_a_folder_above_are_not_taken_for_another_eyes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "left/eye.jpg", "right/eye.jpg")
    monkeypatch.chdir(tmp_path / "left")
    (tmp_path / "link").symlink_to(tmp_path / "left")
    for folder in (".", tmp_path / "left", tmp_path / "link"):
        index = NameIndex(folder)
        assert (index.find("left/eye.jpg"), index.find("right/eye.jpg")) == ("eye.jpg", None)
    assert NameIndex(tmp_path / "link").find("link/eye.jpg") == "eye.jpg"


def test_only_the_names_given_are_found_even_if_there_are_none(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    assert [NameIndex(tmp_path, ["b.jpg"]).find(name) for name in ("a", "b")] == [None, "b.jpg"]
    assert NameIndex(tmp_path, []).find("a.jpg") is None


def test_an_ambiguous_name_is_an_error_that_names_three_at_most(tmp_path: Path) -> None:
    touch(tmp_path, "a.bmp", "a.jpg", "a.png", "a.tif")
    with pytest.raises(AnnotationError, match=r"found 'a\.bmp' and 'a\.jpg' and 'a\.png'; write one of them$"):
        NameIndex(tmp_path).find("a")


def test_an_ambiguous_name_is_an_error_that_names_both(tmp_path: Path) -> None:
    touch(tmp_path, "both.jpg", "both.png", "l/e.jpg", "r/e.jpg")
    index = NameIndex(tmp_path)
    with pytest.raises(AnnotationError, match=r"'both\.jpg' and 'both\.png'"):
        index.find("both")
    with pytest.raises(AnnotationError, match=r"'l/e\.jpg' and 'r/e\.jpg'"):
        index.find("e.jpg")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/old/place/images/p1/left.jpg", "p1/left.jpg"),
        ("D:\\old\\P1\\LEFT.png", "p1/left.jpg"),
        ("top.png", "a/b/top.jpg"),
        ("b/top.jpg", "a/b/top.jpg"),
        ("Photographs/r/e.jpg", "r/e.jpg"),
        ("archive\\photographs\\r\\e.jpg", "r/e.jpg"),
        ("any/r/e.jpg", None),
        ("/any/r/e.jpg", "r/e.jpg"),
        ("../r/e.jpg", None),
        ("../photographs/r/e.jpg", "r/e.jpg"),
        ("..\\..\\archive\\photographs\\r\\e.jpg", "r/e.jpg"),
        ("../train/p1/left.jpg", None),
        ("s3://bucket/any/r/e.jpg", "r/e.jpg"),
        ("~/any/r/e.jpg", "r/e.jpg"),
        ("p2/left.jpg", None),
        ("p2/LEFT", None),
        ("1/left.jpg", None),
        ("a/c/top.jpg", None),
        ("any/b/top.jpg", None),
    ],
)
def test_folders_that_say_something_else_are_another_photograph(tmp_path: Path, name: str, file: str | None) -> None:
    folder = tmp_path / "archive" / "photographs"
    touch(folder, "p1/left.jpg", "p1/right.jpg", "a/b/top.jpg", "l/e.jpg", "r/e.jpg")
    assert NameIndex(folder).find(name) == file


def test_a_name_without_a_file_finds_none(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt")
    index = NameIndex(tmp_path)
    assert index.find("notes.txt") is None
    assert index.find("b.jpg") is None


def test_the_walk_is_sorted_and_follows_links_once(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/readme.txt", ".hidden/x.jpg", ".DS_Store", "c/d/new\nline.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    touch(outside, "far.jpg")
    (tmp_path / "link").symlink_to(outside)
    listing = find_pictures(tmp_path)
    assert listing.names == ("a/z.PNG", "b.jpg", "c/d/new\nline.jpg", "link/far.jpg")
    assert listing.ignored == {".txt": 1, "hidden": 1}
    assert listing.ignored_text == "2 other files: 1 .txt, 1 hidden"


def test_of_two_links_to_a_folder_the_first_name_counts(tmp_path: Path) -> None:
    """In whatever order the disk lists them."""
    touch(tmp_path, "far/x.jpg", "near/y.jpg")
    for name in ("c", "a", "d", "b"):
        (tmp_path / "near" / name).symlink_to(tmp_path / "far")
    assert find_pictures(tmp_path / "near").names == ("a/x.jpg", "y.jpg")


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its mode: root may list any folder."""
    touch(tmp_path, "left/a.jpg", "right/b.jpg")
    with pytest.raises(UsageError, match="none: expected a folder, found nothing there"):
        find_pictures(tmp_path / "none")
    with pytest.raises(UsageError, match=r"b\.jpg.*: expected a folder that can be listed, found: Not a directory"):
        find_pictures(tmp_path / "right/b.jpg")
    of_any_folder = os.scandir

    def of_left_refused(folder: Path) -> object:
        if folder.name == "left":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return of_any_folder(folder)

    monkeypatch.setattr(os, "scandir", of_left_refused)
    with pytest.raises(UsageError, match="left: expected a folder that can be listed, found: Permission denied"):
        find_pictures(tmp_path)


def test_the_most_frequent_kinds_left_out_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, "IM0001", "IM0002", "a.HEIC", "b.heic", "c.heic", *(f"d.{ending}" for ending in "abcde"))
    told = find_pictures(tmp_path).ignored_text
    assert told == "10 other files: 3 .heic, 2 without ending, 1 .a, 1 .b, 1 .c, others"
