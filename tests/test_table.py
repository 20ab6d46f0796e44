"""The table, the measures of agreement and the summary."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from retina.runtime import AnnotationError, OutputError, Prediction
from retina.runtime.agreement import Confusion, read_truth
from retina.runtime.annotations import Annotation
from retina.runtime.contract import Contract, Rule, default_thresholds
from retina.runtime.folder import Listing
from retina.runtime.summary import Summary
from retina.runtime.table import Row, Table, cells, columns, record, utf8
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix

GRADES = (0, 2, 4)
PREDICTION = Prediction(
    grade=2, dr_probs={0: 0.25, 2: 0.7, 4: 0.05}, me_risk=1, me_prob=0.123456789,
    referable=True, referable_prob=0.75, referable_me=False,
)  # fmt: skip


def test_header_and_cells_are_those_of_the_design() -> None:
    assert columns(GRADES) == [
        "Image name", "Pred DR grade (orig)", "True DR grade (orig)", "Pred ME risk", "True ME risk",
        "dr_prob_0", "dr_prob_2", "dr_prob_4", "me_prob", "status", "error",
    ]  # fmt: skip
    truth = Annotation(2, "a", 4, 0, {})
    probs = ["0.250000", "0.700000", "0.050000", "0.123457"]
    assert cells(Row("a.jpg", PREDICTION), GRADES) == ["a.jpg", "2", "", "1", "", *probs, "ok", ""]
    assert cells(Row("a.jpg", PREDICTION), GRADES, truth) == ["a.jpg", "2", "4", "1", "0", *probs, "ok", ""]
    assert cells(Row("b", None, "empty file"), GRADES, truth) == (
        ["b", "", "4", "", "0", "", "", "", "", "error", "empty file"]
    )


@pytest.mark.parametrize(("novelty", "unfamiliar"), [(9.123456789, True), (0.0, False)])
def test_novelty_has_its_columns_at_the_end(novelty: float, unfamiliar: bool) -> None:
    told = replace(PREDICTION, novelty=novelty, unfamiliar=unfamiliar)
    rounded = f"{novelty:.6f}"
    assert columns(GRADES, novelty=True) == [*columns(GRADES), "novelty", "unfamiliar"]
    assert columns(GRADES, referral=True, novelty=True) == [*columns(GRADES, referral=True), "novelty", "unfamiliar"]
    plain = cells(Row("a.jpg", PREDICTION), GRADES)
    assert cells(Row("a.jpg", told), GRADES) == plain
    assert cells(Row("a.jpg", told), GRADES, novelty=True) == [*plain, rounded, str(int(unfamiliar))]
    assert cells(Row("a.jpg", PREDICTION), GRADES, novelty=True) == [*plain, "", ""]
    both = cells(Row("b", None, "empty file"), GRADES, referral=True, novelty=True)
    assert both == [*cells(Row("b", None, "empty file"), GRADES), *[""] * 5]
    line = record(Row("a.jpg", told))
    assert (line["novelty"], line["unfamiliar"]) == (float(rounded), unfamiliar)
    assert not {"novelty", "unfamiliar"} & record(Row("a.jpg", PREDICTION)).keys()


def test_odd_names_survive_a_csv_reader(tmp_path: Path) -> None:
    names = [
        "a,b.jpg",
        'quote".jpg',
        "new\nline.jpg",
        "carriage\rreturn.jpg",
        " blank .jpg",
        "Ä😀.jpg",
        "byte\udcff.jpg",
    ]
    with Table(tmp_path / "t.csv", columns(GRADES)) as table:
        for name in names:
            table.write(cells(Row(name, PREDICTION), GRADES))
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["Image name"] for row in read] == [*names[:-1], "byte\\udcff.jpg"]
    assert utf8(names[-1]) == "byte\\udcff.jpg"


def test_the_table_appears_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("earlier")
    with pytest.raises(KeyError), Table(path, ["a"]) as table:
        table.write(["1"])
        raise KeyError
    assert path.read_text() == "earlier"
    with Table(path, ["a"]) as table:
        table.write(["1"])
        assert path.read_text() == "earlier"
        synced = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.read_text())))
    assert synced == [(len("a\n1\n"), "earlier")], "whole and on the disk before it gets its name"
    assert path.read_bytes() == b"a\n1\n"
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/t\.csv\.partial: cannot be written: No such file"):
        Table(tmp_path / "none" / "t.csv", ["a"])


@pytest.mark.parametrize("seed", range(4))
def test_measures_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 5, 200)
    predicted = np.clip(true + rng.integers(-1, 3, 200), 0, 4)
    if seed == 3:
        true[:], predicted[:] = 1, 1 + (np.arange(200) > 190)
    confusion = Confusion()
    for pair in zip(true.tolist(), predicted.tolist(), strict=True):
        confusion.add(*pair)
    assert confusion.accuracy() == pytest.approx(accuracy_score(true, predicted))
    assert confusion.quadratic_kappa() == pytest.approx(cohen_kappa_score(true, predicted, weights="quadratic"))
    np.testing.assert_array_equal(confusion.matrix(), confusion_matrix(true, predicted))


def test_kappa_over_grades_with_gaps() -> None:
    """Weights go by the difference of grades: 0 for 4 costs 16 times as much as 3 for 4, although there is no 2."""
    confusion = Confusion()
    for true, predicted, times in ((0, 0, 5), (4, 4, 5), (0, 4, 1), (3, 4, 2)):
        for _ in range(times):
            confusion.add(true, predicted)
    grades, answers = [0] * 6 + [4] * 5 + [3] * 2, [0] * 5 + [4] * 8
    expected = cohen_kappa_score(grades, answers, labels=[0, 1, 2, 3, 4], weights="quadratic")
    assert confusion.quadratic_kappa() == pytest.approx(expected)


def test_nothing_counted_is_nan_not_an_error() -> None:
    assert np.isnan(Confusion().accuracy())
    assert np.isnan(Confusion().quadratic_kappa())


def truth_of(tmp_path: Path, rows: str, *names: str) -> dict[str, int | None]:
    path = tmp_path / "a.csv"
    path.write_text("Image name,Retinopathy grade,Risk of macular edema\n" + rows)
    return {name: row.dr_grade for name, row in read_truth(path, Listing(tmp_path, names)).by_name.items()}


def test_truth_finds_files_of_other_endings(tmp_path: Path) -> None:
    assert truth_of(tmp_path, "a.png,1,0\nB,2,1\nnone,3,0\n", "a.jpg", "x/b.JPG") == {"a.jpg": 1, "x/b.JPG": 2}


def test_truth_of_another_patient_is_no_truth(tmp_path: Path) -> None:
    rows = "p1/right.jpg,2,1\np2/left.jpg,4,1\np3/right.jpg,0,0\n"
    assert truth_of(tmp_path, rows, "p1/left.jpg", "p1/right.jpg") == {"p1/right.jpg": 2}


def test_truth_names_all_faults(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as caught:
        truth_of(tmp_path, "a.png,1,0\na.jpg,2,1\nb,9,2\nc,1,0\nd,x,1\n", "a.jpg", "b.jpg", "c.jpg", "c.png", "d.jpg")
    for fault in (
        "line 3: 'a.jpg' means 'a.jpg', as line 2 does already",
        "line 4: Retinopathy grade: expected 0 to 4, found 9",
        "line 4: Risk of macular edema: expected 0 or 1, found 2",
        "'c.jpg' and 'c.png'",
        "line 6: Retinopathy grade: expected a whole number from 0, found 'x'",
    ):
        assert fault in str(caught.value)
    with pytest.raises(AnnotationError, match="found none among 2 rows, such as 'a'"):
        truth_of(tmp_path, "a,1,0\nb,1,0\n", "c.jpg")


def test_summary_counts_and_tells() -> None:
    summary = Summary(Contract())
    for i in range(3):
        summary.add(Row(f"{i}", PREDICTION), known=i == 0, truth=Annotation(2, "a", 2, 0, {}))
    summary.add(Row("bad\udcff", None, "empty file"), known=False, truth=None)
    text = "\n".join(summary.lines(1.5))
    assert "to refer: DR 3" in "\n".join(replace(summary, listed=True).lines(1.5))
    for line in (
        "scored 3, 1 of them in an earlier run; failed 1; 2.0 per second",
        "DR grades 2: 3",
        "to refer (which ones: --referral): DR 3 (100.0%), from a probability of 0.500; "
        "ME 0 (0.0%), from a probability of 0.500",
        "ME risk 3 (100.0%)",
        "failed 1: empty file (such as 'bad\\\\udcff')",
        "against 3 annotations:",
        "DR accuracy 1.0000, quadratic weighted kappa undefined: only one grade occurs",
        "ME accuracy 0.0000",
    ):
        assert line in text


def test_referral_and_json_by_hand() -> None:
    """DR is referred here and ME is not."""
    assert cells(Row("a", PREDICTION), GRADES, referral=True)[-4:] == ["", "1", "0.750000", "0"]
    assert cells(Row("b", None, "empty file"), GRADES, referral=True)[-4:] == ["empty file", "", "", ""]
    odd = replace(
        PREDICTION, grade=0, dr_probs={0: 0.12345678, 4: 0.87654322}, me_risk=0, referable=False,
        referable_prob=0.87654322, referable_me=True,
    )  # fmt: skip
    assert record(Row("byte\udcff", odd)) == {
        "image": "byte\\udcff", "status": "ok", "error": "", "dr_grade": 0,
        "dr_probs": {"0": 0.123457, "4": 0.876543}, "me_risk": 0, "me_prob": 0.123457,
        "referable": False, "referable_prob": 0.876543, "referable_me": True,
    }  # fmt: skip


def test_summary_keeps_each_count_in_its_place() -> None:
    """With two photographs: one has ME risk, one is referred for ME; truth and prediction differ for both heads."""
    rules = default_thresholds() | {"referable_dr": Rule("at_least", 0.4), "referable_me": Rule("at_least", 0.3)}
    summary = Summary(Contract(thresholds=rules))
    rows = ((3, 1, False, False, (0, 0)), (1, 0, False, True, (1, 0)), (1, 0, False, True, (1, 0)))
    for grade, risk, referable, referable_me, truth in rows:
        said = Prediction(
            grade=grade, dr_probs={grade: 1.0}, me_risk=risk, me_prob=0.5,
            referable=referable, referable_prob=0.0, referable_me=referable_me,
        )  # fmt: skip
        summary.add(Row("a", said), known=False, truth=Annotation(2, "a", *truth, {}))
    lines = list(summary.lines(0.0))
    assert "DR grades 1: 2, 3: 1" in lines
    referred = (
        "to refer (which ones: --referral): DR 0 (0.0%), from a probability of 0.400; "
        "ME 2 (66.7%), from a probability of 0.300"
    )
    assert referred in lines
    assert "ME risk 1 (33.3%)" in lines
    dr, me = lines.index("DR true down, predicted across"), lines.index("ME true down, predicted across")
    assert [line.split() for line in lines[dr + 1 : dr + 5]] == [
        ["0", "1", "3"], ["0", "0", "0", "1"], ["1", "0", "2", "0"], ["3", "0", "0", "0"]
    ]  # fmt: skip
    assert [line.split() for line in lines[me + 1 : me + 4]] == [["0", "1"], ["0", "2", "1"], ["1", "0", "0"]]


def test_summary_counts_unfamiliar_pictures_if_the_model_can_tell() -> None:
    def line(contract: Contract, *unfamiliar: bool, listed: bool = False) -> str:
        summary = Summary(contract, novelty_listed=listed)
        for number, is_unfamiliar in enumerate(unfamiliar):
            said = replace(PREDICTION, novelty=1.0, unfamiliar=is_unfamiliar)
            summary.add(Row(f"{number}\udcff", said), known=False, truth=None)
        return "".join(line for line in summary.lines(1.0) if line.startswith("unfamiliar"))

    told = Contract(unfamiliar_from=10.0)
    assert line(told, False, False) == "unfamiliar 0 (0.0%)"
    perhaps = (
        "unfamiliar 2 (50.0%): perhaps no retina, but counted above too; look at them before you use their answers"
    )
    assert line(told, False, True, True, False) == f"{perhaps} (such as '1\\\\udcff'; which ones: --novelty)"
    assert line(told, False, True, True, False, listed=True) == f"{perhaps} (such as '1\\\\udcff')"
    assert line(Contract(), False) == ""


def test_summary_compares_referral_with_the_truth_by_hand() -> None:
    rules = default_thresholds() | {"referable_dr": Rule("at_least", 0.4, from_grade=3)}
    summary = Summary(Contract(thresholds=rules))
    for dr, me, referable, referable_me in ((4, 1, 1, 0), (3, 1, 0, 1), (3, 1, 1, 1), (2, 0, 1, 0), (0, 0, 0, 0)):
        said = replace(PREDICTION, referable=bool(referable), referable_me=bool(referable_me))
        summary.add(Row("a", said), known=False, truth=Annotation(2, "a", dr, me, {}))
    summary.add(Row("b", None, "empty file"), known=False, truth=Annotation(3, "b", 4, 1, {}))
    lines = list(summary.lines(1.0))
    assert "referral of DR grade 3 or more: sensitivity 0.6667 (2 of 3), specificity 0.5000 (1 of 2)" in lines
    assert "referral of ME risk: sensitivity 0.6667 (2 of 3), specificity 1.0000 (2 of 2)" in lines
    assert "annotated, but not scored and so not compared: 1" in lines
    healthy = Summary(Contract())
    healthy.add(Row("a", PREDICTION), known=False, truth=Annotation(2, "a", 0, 0, {}))
    expected = "sensitivity unknown (none annotated), specificity 1.0000 (1 of 1)"
    assert f"referral of ME risk: {expected}" in list(healthy.lines(1.0))


def test_summary_compares_nothing_where_no_annotated_photograph_was_scored() -> None:
    summary = Summary(Contract())
    summary.add(Row("b", None, "empty file"), known=False, truth=Annotation(3, "b", 4, 1, {}))
    assert list(summary.lines(1.0)) == [
        "scored 0; failed 1; 1.0 per second",
        "failed 1: empty file (such as 'b')",
        "annotated, but not scored and so not compared: 1",
    ]


def test_summary_says_nothing_of_grades_that_the_model_was_never_trained_for() -> None:
    summary = Summary(Contract(provenance={"untrained_heads": ["dr"]}))
    summary.add(Row("a", PREDICTION), known=False, truth=None)
    assert list(summary.lines(1.0)) == [
        "scored 1; failed 0; 1.0 per second",
        "ME risk 1 (100.0%)",
        "to refer (which ones: --referral): ME 0 (0.0%), from a probability of 0.500",
        "Caution: The model was never trained for DR: what it says about DR means nothing.",
    ]


def test_summary_shows_eight_reasons_the_commonest_first() -> None:
    def failures(reasons: int) -> list[str]:
        summary = Summary(Contract())
        for reason in range(reasons):
            for nth in range(1 + (reason == reasons - 1)):
                summary.add(Row(f"{reason}-{nth}", None, f"reason {reason}"), known=False, truth=None)
        return list(summary.lines(1.0))[1:]

    assert failures(8) == ["failed 2: reason 7 (such as '7-0')"] + [
        f"failed 1: reason {i} (such as '{i}-0')" for i in range(7)
    ]
    assert len(failures(9)) == 9 and failures(9)[0] == "failed 2: reason 8 (such as '8-0')"
    assert failures(10)[8] == "... and 2 more reasons: see the column error"


def test_truth_takes_grades_up_to_4_and_counts_what_it_finds_no_file_of(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Image name,Retinopathy grade,Risk of macular edema\na,4,2\nb,0,1\nnone,0,0\n")
    truth = read_truth(path, Listing(tmp_path, ("a.jpg", "b.jpg")), me_positive_from=2)
    assert {name: (row.dr_grade, row.me_grade) for name, row in truth.by_name.items()} == {
        "a.jpg": (4, 1), "b.jpg": (0, 0)
    }  # fmt: skip
    assert truth.unmatched == ["none"]
