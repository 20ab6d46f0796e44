"""The report and its plots, from seeded predictions."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chromium import CHROMIUM, FLAGS
from legends import require_clear
from matplotlib.figure import Figure
from PIL import Image
from retina.runtime.contract import Contract
from retina.runtime.errors import OutputError
from retina.train import plots
from retina.train.console import epoch_line
from retina.train.metrics import evaluate
from retina.train.predictions import Predictions
from retina.train.report import (
    Mistake,
    _card,
    _cell,
    _class_table,
    _counts_table,
    _figures_table,
    _gallery,
    _leak_list,
    _settings,
    _thumbnail,
    worst_mistakes,
    write_report,
)

CONTRACT = Contract(provenance={"run": "r", "data_fingerprint": "f00d" * 16})
EVIL = '<script>alert("x")</script> & co.png'
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        **{
            f"{split}_{name}": [0.5, 0.7, 0.6]
            for split in ("train", "valid")
            for name in ("loss", "dr_loss", "me_loss", "dr_accuracy", "me_accuracy", "dr_kappa", "me_auc", "score")
        },
        "lr_backbone": [1e-4, 1e-4, 5e-5],
        "lr_heads": [1e-3, 1e-3, 5e-4],
        "seconds": [9.0, 8.0, 8.0],
    }
)


def predictions(folder: Path, dr: list[tuple[int, int, float]], grades: int = 5) -> Predictions:
    """A photograph for each (true index, predicted index, confidence) of ``dr``; ME is right and wrong in turn."""
    n = len(dr)
    dr_probs = np.stack([np.full(grades, (1 - sure) / (grades - 1)) for _, _, sure in dr])
    for row, (_, pred, sure) in zip(dr_probs, dr, strict=True):
        row[pred] = sure
    me_true = np.arange(n) % 2
    risk = np.where(np.arange(n) % 3 == 0, 1 - me_true, me_true) * 0.6 + 0.2
    names = [EVIL, *(f"eye {i}.png" for i in range(1, n))]
    for i in range(n):
        picture = np.full((48, 64, 3), 10 * i, np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return Predictions(
        tuple(names),
        tuple(str(folder / f"{i}.png") for i in range(n)),
        np.array([true for true, _, _ in dr]),
        me_true,
        dr_probs.astype(np.float32),
        np.stack([1 - risk, risk], axis=1).astype(np.float32),
        ("old <cam>", "new") * (n // 2),
        tuple(f"p{i // 2}" for i in range(n)),
    )


NOTHING_FOUND: dict[str, Any] = {"leaks": []}
ANSWERS = [(0, 4, 0.5), (0, 0, 0.9), (2, 1, 0.6), (4, 0, 0.8), (2, 2, 0.7), (1, 3, 0.9), (3, 3, 0.8), (1, 0, 0.95)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "runs" / "first & <best>"
    folder.mkdir(parents=True)
    splits = {name: predictions(folder.parent, ANSWERS) for name in ("train", "valid", "test")}
    Path(splits["test"].paths[5]).unlink()
    metrics = {
        "checkpoint": "best",
        "epoch": 2,
        "splits": {name: evaluate(p, CONTRACT, n_bootstrap=30) for name, p in splits.items()},
    }
    config = {
        "epochs": 3,
        "weights": "<img src=x>",
        "data_fingerprint": "f00d" * 16,
        "leaks": ["a.png & b.png"],
        "unnamed_patients": "no Patient is named for 2 < 9 photographs.",
        "counts": {"train": {"photographs": 99999}},
        "versions": {"torch": "9.9"},
    }
    assert write_report(folder, config, metrics, HISTORY, splits, CONTRACT) == folder / "report.html"
    return folder


class _Page(HTMLParser):
    """Collects tags and text, and checks that opened tags are closed."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_page_is_whole_and_fetches_nothing(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    page = _Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href"):
            target = attributes.get(name) or "data:"
            assert target.startswith(("data:", "#"))
        link = attributes.get("href") or ""
        if link.startswith("#"):
            assert any(other.get("id") == link[1:] for _, other in page.tags)
    assert "url(" not in text
    assert "@import" not in text
    for needed in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert needed in text


def test_page_shows_figures_settings_and_the_warning(run_dir: Path) -> None:
    page = _Page((run_dir / "report.html").read_text(encoding="utf-8"))
    said = " ".join(page.text)
    # 3 of the 8 DR grades in ANSWERS are right.
    assert "0.375" in said
    assert "Not for clinical use." in said
    assert "Best checkpoint: epoch 2 of 3" in said
    assert "Leakage: 1 found." in said
    assert "No Patient is named for 2 < 9 photographs." in said
    for setting in ("f00d" * 16, "<img src=x>", "9.9", "a.png & b.png", "old <cam>", "first & <best>"):
        assert setting in said
    assert said.count("referable ME risk: where the probability of risk reaches 0.5") == 2, "below the curves, and last"
    assert "99999" not in said, "counts are shown as a table of the predictions"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium: apt-get install chromium")
def test_nothing_sticks_out_of_the_page(run_dir: Path) -> None:
    """On narrow screens a table is scrolled in its place; on a desk two sources are shown whole, on paper five."""
    api = pytest.importorskip("playwright.sync_api")
    wider = "all => all.some(it => it.scrollWidth > it.clientWidth)"
    broken = """all => all.flatMap(it => {
        const texts = document.createTreeWalker(it, NodeFilter.SHOW_TEXT), found = [], word = new Range();
        while (texts.nextNode())
            for (const each of texts.currentNode.data.matchAll(/\\S+/g)) {
                word.setStart(texts.currentNode, each.index);
                word.setEnd(texts.currentNode, each.index + each[0].length);
                if (new Set([...word.getClientRects()].map(at => at.top)).size > 1) found.push(each[0]);
            }
        return found;
    })"""
    with api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as shown:
        for width, media in ((380, "screen"), (800, "screen"), (1280, "screen"), (718, "print")):
            page = shown.new_page(viewport={"width": width, "height": 900})
            page.goto((run_dir / "report.html").as_uri())
            page.emulate_media(media=media)
            if media == "print":  # three sources more, as wide as the last one
                last = "all => all.forEach(it => { for (let i = 0; i < 3; i++) it.after(it.cloneNode(true)) })"
                page.eval_on_selector_all("#figures tr > :last-child", last)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert not page.eval_on_selector_all("td", wider), "it would lie over its neighbour"
            assert page.eval_on_selector_all("table:not(.pairs) td", broken) == []
            if width == 1280:
                assert not page.eval_on_selector_all(".scroll", wider)


def test_every_picture_can_be_decoded(run_dir: Path) -> None:
    page = _Page((run_dir / "report.html").read_text(encoding="utf-8"))
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    sizes = []
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) as picture:
            picture.load()
            sizes.append(picture.size)
    # Learning curves, ROC; two confusion matrices and a reliability diagram per split; 5 DR and 3 ME mistakes, one file
    # missing.
    assert len(sizes) == 2 + 3 * 3 + 5 + 3 - 1
    assert sizes.count((64, 48)) == 5 + 3 - 1


def test_a_mistake_whose_photograph_is_gone_says_so(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    (missing,) = re.findall(r'<div class="missing">(.*?)</div>', text)
    assert "5.png" in missing
    assert "eye 5.png" in text


def test_worst_mistakes_come_farthest_first_then_surest(tmp_path: Path) -> None:
    worst = worst_mistakes(predictions(tmp_path, ANSWERS), CONTRACT)
    assert [(m.said, m.true, round(m.confidence, 2)) for m in worst["dr"]] == [
        ("0", "4", 0.8),
        ("4", "0", 0.5),
        ("3", "1", 0.9),
        ("0", "1", 0.95),
        ("1", "2", 0.6),
    ]
    assert worst["dr"][1].name == EVIL
    assert [m.name for m in worst["me"]] == [EVIL, "eye 3.png", "eye 6.png"]
    assert len(worst_mistakes(predictions(tmp_path, ANSWERS), CONTRACT, limit=2)["dr"]) == 2


def test_no_mistake_is_said_to_be_certain() -> None:
    assert "&gt;99% sure" in _gallery([Mistake("a", "gone.png", "", "0", "4", 0.9999)])


def test_distance_is_in_grades_and_not_in_indices(tmp_path: Path) -> None:
    contract = Contract(dr_grades=(0, 1, 2, 4))
    (first, second) = worst_mistakes(predictions(tmp_path, [(0, 1, 0.9), (2, 3, 0.5)], grades=4), contract)["dr"]
    assert (first.said, second.said) == ("4", "1")


def test_pictures_and_tables_stand_beside_the_page(run_dir: Path) -> None:
    expected = {"report.html", "learning_curves.png", "roc.png"}
    for split in ("train", "valid", "test"):
        expected |= {f"confusion_dr_{split}.png", f"confusion_me_{split}.png", f"reliability_{split}.png"}
        expected.add(f"classification_report_{split}.txt")
    assert {file.name for file in run_dir.iterdir()} == expected
    assert "precision" in (run_dir / "classification_report_test.txt").read_text()


def test_confusion_matrix_is_dark_where_the_row_is(tmp_path: Path) -> None:
    plots.confusion_matrix([[90, 10], [1, 0]], ["no", "yes"], "title", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        grey = np.asarray(picture.convert("L"), float)
    left, top, right, bottom = 0.3, 0.25, 0.8, 0.7  # inside the axes
    height, width = grey.shape

    def shade(x: float, y: float) -> float:
        return float(
            np.median(grey[round((y - 0.02) * height) : round((y + 0.02) * height), round(x * width) :][:, :12])
        )

    assert shade(left, top) < 120 < shade(right, top)
    assert shade(left, bottom) < 120 < shade(right, bottom), "shade is the share of the row, however rare the class"


def test_curves_that_do_not_fit_on_the_disk_leave_the_picture_before(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "curves.png"
    plots.learning_curves(HISTORY.head(2), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # like a full disk, but only for this process
    try:
        with pytest.raises(OutputError, match=r"curves\.png: cannot be written: File too large"):
            plots.learning_curves(HISTORY, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(("scores", "best"), [([0.5, 0.7, 0.6], 2), ([0.5, 0.6, 0.7], 3), ([0.7, 0.7, 0.6], 1)])
def test_a_line_through_every_plot_marks_the_first_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], best: int
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_png", lambda path, figure: drawn.append(figure))
    plots.learning_curves(HISTORY.assign(valid_score=scores), tmp_path / "curves.png")
    (figure,) = drawn
    assert len(figure.axes) == 6
    for ax in figure.axes:
        (line,) = (line for line in ax.lines if line.get_linestyle() == "-.")
        assert np.asarray(line.get_xdata()).tolist() == [best, best]
        legend = ax.get_legend()
        assert legend is not None
        assert f"best epoch ({best})" in [text.get_text() for text in legend.get_texts()]


def test_no_legend_covers_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_png", lambda path, figure: drawn.append(figure))
    plots.learning_curves(HISTORY, tmp_path / "curves.png")
    answered = predictions(tmp_path, ANSWERS)
    plots.reliability_diagrams(answered, tmp_path / "reliability.png")
    plots.roc_curves(dict.fromkeys(("train", "valid", "test"), answered), CONTRACT, tmp_path / "roc.png")
    assert len(drawn) == 3
    for figure in drawn:
        require_clear(figure)


def test_curves_of_one_epoch_and_of_one_class_can_be_drawn(tmp_path: Path) -> None:
    plots.learning_curves(HISTORY.head(1), tmp_path / "one.png")
    p = predictions(tmp_path, ANSWERS)
    healthy = Predictions(**{**vars(p), "me_true": np.zeros(8, np.int64), "dr_true": np.zeros(8, np.int64)})
    plots.roc_curves({"test": healthy}, CONTRACT, tmp_path / "roc.png")
    assert (tmp_path / "one.png").exists()
    assert (tmp_path / "roc.png").exists()


@pytest.mark.skipif("RETINA_DATA" not in os.environ, reason="RETINA_DATA names no folder of photographs")
def test_report_of_real_photographs_stays_small(tmp_path: Path) -> None:
    files = sorted(Path(os.environ["RETINA_DATA"]).glob("retina/test/images/*"))[:8]
    p = predictions(tmp_path, ANSWERS)
    p = Predictions(**{**vars(p), "paths": tuple(map(str, files))})
    metrics = {"epoch": 1, "splits": {"test": evaluate(p, CONTRACT, n_bootstrap=10)}}
    page = write_report(tmp_path, NOTHING_FOUND, metrics, HISTORY, {"test": p}, CONTRACT)
    assert page.stat().st_size < 1_000_000


def test_each_split_has_its_own_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        name: predictions(tmp_path, answers)
        for name, answers in (("train", ANSWERS), ("valid", ANSWERS[:4]), ("test", ANSWERS[2:]))
    }
    figures_of = {name: evaluate(p, CONTRACT, n_bootstrap=10) for name, p in splits.items()}
    draw, drawn = plots.confusion_matrix, {}

    def confusion_matrix(matrix: list[list[int]], labels: list[str], title: str, path: Path) -> None:
        drawn[path.name] = matrix
        draw(matrix, labels, title, path)

    monkeypatch.setattr(plots, "confusion_matrix", confusion_matrix)
    metrics = {"epoch": 1, "splits": figures_of}
    page = write_report(tmp_path, NOTHING_FOUND, metrics, HISTORY, splits, CONTRACT).read_text(encoding="utf-8")
    for name, figures in figures_of.items():
        section = page.split(f'<section id="split-{name}">')[1].split("</section>")[0]
        tables = re.findall(r"Classification report</caption>.*?</table>", section, re.DOTALL)
        for task, table in zip(("dr", "me"), tables, strict=True):
            body = figures["all"][task]
            assert drawn[f"confusion_{task}_{name}.png"] == body["confusion_matrix"]
            assert re.findall(r"<td>(\d+)</td></tr>", table) == [str(row["support"]) for row in body["classes"]]


def test_figures_stand_where_their_names_are(tmp_path: Path) -> None:
    def figure(value: float) -> dict[str, object]:
        return {"value": value, "low": value - 0.25, "high": value + 0.125, "why": ""}

    card = _card(figure(0.5), "title")
    assert '<i style="left:25.0%;width:37.5%"></i><b style="left:50.0%"></b>' in card
    assert '<p class="big">0.500</p>' in card and "(0.250 to 0.625)" in card
    row = {"label": "2", "precision": figure(0.5), "recall": figure(0.375), "f1": figure(0.75), "support": 7}
    cells = re.findall(r"<td>(.*?)</td>", _class_table({"classes": [row]}))
    assert [cell.split("<")[0] for cell in cells] == ["2", "0.500", "0.375", "0.750", "7"]
    table = _figures_table(evaluate(predictions(tmp_path, ANSWERS), CONTRACT, n_bootstrap=2))
    numbers = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:4]]
    assert numbers == [["photographs", "8", "4", "4"], ["patients", "4", "4", "4"]]


def test_photographs_are_counted_by_split_source_and_label(tmp_path: Path) -> None:
    table = _counts_table({"test": predictions(tmp_path, ANSWERS)}, CONTRACT)
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["", "photographs", "patients", *(f"DR {grade}" for grade in range(5)), "ME no risk", "ME risk"],
        ["test", "8", "4", "2", "2", "2", "1", "1", "4", "4"],
        ["test, new", "4", "4", "1", "2", "0", "0", "1", "0", "4"],
        ["test, old &lt;cam&gt;", "4", "4", "1", "0", "2", "1", "0", "4", "0"],
    ]


def test_an_interval_below_zero_begins_where_the_strip_does() -> None:
    """Only a kappa's can: without it, the strip would be drawn outside of the card."""
    card = _card({"value": 0.125, "low": -0.25, "high": 0.5, "why": ""}, "kappa")
    assert '<i style="left:0.0%;width:50.0%"></i><b style="left:12.5%"></b>' in card
    assert "(-0.250 to 0.500)" in card


def test_a_kappa_below_zero_has_no_strip_which_would_show_it_as_zero() -> None:
    card = _card({"value": -0.125, "low": -0.25, "high": 0.5, "why": ""}, "kappa")
    assert "strip" not in card and "(-0.250 to 0.500)" in card


def test_only_the_reason_for_a_missing_interval_stands_below_its_figure() -> None:
    assert _cell({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500<small>(0.400 to 0.600)</small>"
    for value, shown in ((0.5, "0.500"), (None, "\N{EN DASH}")):
        figure = {"value": value, "low": None, "high": None, "why": "too <few"}
        assert _cell(figure) == f'{shown}<small class="why">too &lt;few</small>'


def test_a_figure_without_an_interval_says_why_and_has_no_strip() -> None:
    card = _card({"value": 0.5, "low": None, "high": None, "why": "one <patient>"}, "title")
    assert "strip" not in card and '<p class="big">0.500</p><p>one &lt;patient&gt;</p>' in card


def test_a_mistakes_photograph_is_shrunk_to_its_longer_side(tmp_path: Path) -> None:
    Image.new("RGB", (900, 1200), "orange").save(tmp_path / "eye.png")
    shown = _thumbnail(Mistake("eye.png", str(tmp_path / "eye.png"), "", "0", "4", 0.9))
    assert shown.endswith('width="240" height="320">')
    with Image.open(io.BytesIO(base64.b64decode(shown.split(",", 1)[1].split('"')[0]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (240, 320))


def test_that_no_leakage_was_found_is_said() -> None:
    assert _leak_list([]) == "<p>No photograph or patient was found in two splits.</p>"


def test_settings_leave_out_the_figures_that_the_page_shows() -> None:
    contract = Contract(provenance={"run": "r", "metrics": {"valid": {"dr_accuracy": 0.125}}})
    shown = _settings({"leaks": ["a"], "epochs": 3}, contract)
    assert "<tr><th>provenance · run</th><td>r</td></tr>" in shown and "<tr><th>epochs</th><td>3</td></tr>" in shown
    assert "0.125" not in shown and "leaks" not in shown
    nothings: tuple[Any, ...] = (None, "", [])
    for nothing in nothings:
        assert "<tr><th>track</th><td>none</td></tr>" in _settings({"track": nothing}, contract)
    assert "<tr><th>ema</th><td>0.0</td></tr>" in _settings({"ema": 0.0}, contract)


def test_what_spoils_the_figures_is_said_above_them(tmp_path: Path) -> None:
    splits = {name: predictions(tmp_path, ANSWERS) for name in ("train", "valid", "test")}
    metrics = {"epoch": 2, "splits": {name: evaluate(p, CONTRACT, n_bootstrap=5) for name, p in splits.items()}}
    for leaks, untrained in ((["a <&> b"], ["dr"]), ([], [])):
        contract = replace(CONTRACT, provenance={"untrained_heads": untrained})
        page = write_report(tmp_path, {"leaks": leaks}, metrics, HISTORY, splits, contract).read_text(encoding="utf-8")
        above, below = page.split('<section id="figures">')
        assert ("Photographs or patients are in two splits" in above) == bool(leaks)
        assert ("<li>a &lt;&amp;&gt; b</li>" in below) == bool(leaks)
        caution = html.escape(contract.caution)
        assert bool(caution) == bool(untrained)
        assert not caution or above.count(caution) == page.count(caution) == 1


def test_a_head_without_labels_has_no_curve_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_png", lambda path, figure: drawn.append(figure))
    plots.learning_curves(HISTORY.assign(valid_me_loss=np.nan), tmp_path / "curves.png")
    legends = [ax.get_legend() for ax in drawn[0].axes]
    named = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend is not None]
    assert named[3][:2] == ["train", "valid: no labels"]
    assert sum("no labels" in name for names in named for name in names) == 1


def test_an_epoch_takes_a_second_line_only_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"seconds": 12.0, **HISTORY.iloc[1].to_dict()}
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = epoch_line(row, 2)
    assert whole == (
        "epoch   2  train loss 0.700 DR 0.700 ME 0.700  valid loss 0.700 DR 0.700 kappa 0.700 ME 0.700 AUC 0.700  "
        "8 s  best"
    )
    assert not epoch_line(row, 1).endswith("best")
    monkeypatch.setenv("COLUMNS", str(len(whole)))
    assert epoch_line(row, 2) == whole
    monkeypatch.setenv("COLUMNS", str(len(whole) - 1))
    first, second = epoch_line(row, 2).split("\n")
    assert f"{first}  {second.lstrip()}" == whole and max(len(first), len(second)) < 80
