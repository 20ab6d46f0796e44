"""The browser page in a real browser: the same answers as Python, no data leaves, and it is accessible."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from chromium import CHROMIUM, FLAGS
from eyes import eye
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin
from retina.runtime import RELEASED, RetinaModel
from retina.runtime.contract import METADATA_KEY, Preprocessing, Rule, Surround, decide, default_thresholds
from retina.runtime.field import LitField
from retina.runtime.overlay import HeadMap, colours, draw
from retina.runtime.picture import decode
from retina.runtime.scoring import make_row
from retina.runtime.table import cells, columns
from serving import serving
from small_export import SmallExport
from tiny_model import CONTRACT, RAMP, write_tiny_model

PAGE = Path(__file__).parent.parent / "examples" / "browser"
EXPLAIN = replace(CONTRACT, explain=True, preprocessing=Preprocessing(framing="field", image_size=64))

missing = [
    reason
    for reason, is_missing in (
        ("playwright: pip install playwright", find_spec("playwright") is None),
        ("Chromium: apt-get install chromium", CHROMIUM is None),
        ("onnxruntime-web: npm ci --prefix examples/browser", not (PAGE / "node_modules").is_dir()),
    )
    if is_missing
]
if missing and os.environ.get("RETINA_EXAMPLES") == "all":
    pytest.fail(f"examples/browser needs {missing}", pytrace=False)
if missing:
    pytest.skip(f"examples/browser needs {missing}", allow_module_level=True)

from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright  # noqa: E402

expect.set_options(timeout=30_000)
Open = Callable[..., Page]
BLOB = "new Blob([Uint8Array.from(atob(a), (c) => c.charCodeAt(0))])"
"""JavaScript for a Blob with the bytes of the Base64 string ``a``."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open an address in a fresh profile; an error that the page does not catch makes the test fail."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_(url: str, until: str = "#choose", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.locator(until).wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def opened(browser: Browser, static: tuple[str, Path]) -> Iterator[tuple[Page, list[str]]]:
    """The page, loaded once, and the errors that it did not catch."""
    errors: list[str] = []
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(static[0])
        page.locator("#choose").wait_for()
        yield page, errors


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Iterator[Page]:
    """The page in its state before the first photograph."""
    page, errors = opened
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="light")
    if page.locator("#clear").is_visible():
        page.locator("#clear").click()
    yield page
    assert errors == []


class QuietHandler(SimpleHTTPRequestHandler):
    """The handler of ``python -m http.server``, without its log."""

    def log_message(self, *_: object) -> None:
        pass


def folder_of_the_page(to: Path, *, runtime: bool = True) -> Path:
    """Copy the page's files as they would be deployed."""
    shutil.copytree(PAGE, to, ignore=shutil.ignore_patterns("node_modules", "*.onnx"))
    if runtime:
        (to / "node_modules").symlink_to(PAGE / "node_modules")
    return to


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page with the tiny model on a plain static server: its address and its folder."""
    folder = folder_of_the_page(tmp_path_factory.mktemp("static") / "page")
    write_tiny_model(folder / "model.onnx", contract=EXPLAIN)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Valid and broken files, with names that sort in another order than that in which they are dropped."""
    folder = tmp_path_factory.mktemp("photographs")
    eye(1, 200).save(folder / "b.png")
    eye(2, 150).resize((240, 150)).save(folder / 'a, "left".jpg', quality=95)
    eye(3, 64).save(folder / "ü.png")
    whole = (folder / 'a, "left".jpg').read_bytes()
    (folder / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "torn.png").write_bytes((folder / "b.png").read_bytes()[:-40])
    (folder / "report.pdf").write_bytes(b"%PDF-1.7 a report")
    eye(4, 20).save(folder / "small.png")
    eye(5, 64).save(folder / "eye.tif")
    (folder / "empty.jpg").write_bytes(b"")
    return sorted(folder.iterdir(), reverse=True)


def drop(page: Page, files: list[Path]) -> None:
    """Drop files on the page, as a mouse would."""
    content = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files]
    transfer = page.evaluate_handle(
        """async (content) => {
          const transfer = new DataTransfer();
          for (const [name, text] of content)
            transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
          return transfer;
        }""",
        content,
    )
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    wait_for_scores(page)


def wait_for_scores(page: Page) -> None:
    page.locator("#status", has_text=re.compile(r"^\d+ of \d+ scored")).wait_for()


def table_of(page: Page) -> list[list[str]]:
    """The table as downloaded."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    assert waiting.value.suggested_filename == "test_predictions.csv"
    text = Path(waiting.value.path()).read_bytes().decode()
    assert "\r" not in text
    return list(csv.reader(text.splitlines()))


def in_module(page: Page, module: str, expression: str, argument: Any = None) -> Any:
    """The value of a JavaScript expression of ``m``, one of the page's modules, and ``a``, the argument."""
    return page.evaluate(f"async (a) => {{ const m = await import('/{module}'); return {expression}; }}", argument)


# The same answers


def test_a_drop_gives_the_table_of_retina_score(
    static: tuple[str, Path], photographs: list[Path], page: Page, tmp_path: Path
) -> None:
    drop(page, photographs)
    expect(page.locator("#status")).to_have_text("3 of 9 scored, 6 could not be read")
    header, *lines = table_of(page)
    model = RetinaModel(static[1] / "model.onnx", exact=True)
    assert header == columns(model.contract.dr_grades)
    assert [line[0] for line in lines] == sorted(path.name for path in photographs)
    by_name = {path.name: path for path in photographs}
    for line in lines:
        expected = cells(make_row(model, line[0], by_name[line[0]]), model.contract.dr_grades)
        if line[0] == "eye.tif":  # the only file that Python reads and browsers do not
            assert line[-2:] == ["error", "not a photograph that this browser reads: expected JPEG, PNG, WebP or BMP, "
                                 "found TIFF: convert it, or use retina-score, which reads it"]  # fmt: skip
            continue
        assert (line[:5], line[-2]) == (expected[:5], expected[-2])
        if expected[-2] == "ok":
            assert [float(p) for p in line[5:-2]] == pytest.approx([float(p) for p in expected[5:-2]], abs=1e-5)
        else:
            assert line[-1]
            assert line[5:-2] == [""] * 6
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24) or ()) > 1000, "photographs and maps are to be seen"


@pytest.mark.parametrize("count", [1, 2])
def test_folders_dropped_together_keep_their_names_apart(page: Page, count: int) -> None:
    """With entries that imitate a browser's, because a script cannot create those of real folders."""
    names = page.evaluate(
        """async (count) => {
          const { dropped } = await import('/files.js');
          const leaf = (name) => ({ name, isFile: true, file: (give) => give(new File(["x"], name)) });
          const folder = (name, ...held) => ({ name, isDirectory: true,
            createReader: () => ({ readEntries: (give) => give(held.splice(0)) }) });
          const patients = ["patient1", "patient2"].slice(0, count);
          const held = () => [leaf("left.jpg"), leaf("notes.txt"), folder("old", leaf("a.png"))];
          const items = patients.map((name) => folder(name, ...held()));
          const found = await dropped({ items: items.map((item) => ({ webkitGetAsEntry: () => item })), files: [] });
          return found.map(({ name }) => name);
        }""",
        count,
    )
    both = ["patient1/left.jpg", "patient1/old/a.png", "patient2/left.jpg", "patient2/old/a.png"]
    assert names == (["left.jpg", "old/a.png"] if count == 1 else both)


def test_a_photograph_is_shown_with_its_answers(static: tuple[str, Path], photographs: list[Path], page: Page) -> None:
    path = next(path for path in photographs if path.name == "b.png")
    drop(page, [path])
    model = RetinaModel(static[1] / "model.onnx", exact=True)
    said = model.predict(path)
    assert page.inner_text("#detail-name") == "b.png"
    assert page.inner_text("#dr-answer").startswith(f"Grade {said.grade} ")
    shown = [int(text.rstrip("%")) for text in page.locator("#dr-bars b").all_inner_texts()]
    assert shown == pytest.approx([100 * p for p in said.dr_probs.values()], abs=0.51)
    risk, referred = "Risk" if said.me_risk else "No risk", "Yes" if said.referable else "No"
    assert page.inner_text("#me-answer") == f"{risk} risk: {said.me_prob:.0%}"
    assert page.inner_text("#referable-answer") == f"{referred} probability: {said.referable_prob:.0%}"
    expect(page.locator("#figure-dr strong")).to_contain_text(f"Speaks for DR grade {said.grade}")
    expect(page.get_by_text("not for clinical use")).to_be_visible()


def test_conforms(small_export: SmallExport, static: tuple[str, Path], open_page: Open, tmp_path: Path) -> None:
    """With the kit's raw pixels as PNG files, which are lossless."""
    index = json.loads((small_export.kit / "index.json").read_text())
    expected = {f"{picture['name']}.png": picture for picture in index["pictures"]}
    for name, picture in expected.items():
        pixels = np.frombuffer((small_export.kit / picture["file"]).read_bytes(), np.uint8)
        Image.fromarray(pixels.reshape(picture["shape"])).save(tmp_path / name)
    page = open_page(static[0])
    page.set_input_files("#other-model", small_export.model)
    expect(page.locator("#model-facts")).to_contain_text("from retina_multitask.onnx")
    page.set_input_files("#files", [tmp_path / name for name in expected])
    wait_for_scores(page)
    lines = table_of(page)[1:]
    assert [line[0] for line in lines] == sorted(expected)
    for name, grade, _, risk, _, *probs, me, status, _ in lines:
        picture = expected[name]
        assert status == "ok"
        assert [float(p) for p in probs] == pytest.approx(picture["dr_probs"], abs=index["tolerance"])
        assert float(me) == pytest.approx(picture["me_probs"][1], abs=index["tolerance"])
        if picture["decisions"]:
            assert int(grade) == picture["decisions"]["dr_grade"]
            assert int(risk) == picture["decisions"]["me_risk"]


@pytest.mark.parametrize("rule", [{}, {"rule": "at_least", "threshold": 0.35}])
def test_decisions_follow_the_rules_in_the_file(page: Page, rule: dict[str, Any]) -> None:
    referable = Rule("at_least", 0.7, from_grade=3)
    thresholds = {"me": Rule(**rule), "referable_dr": referable, "referable_me": Rule("at_least", 0.2)}
    contract = replace(CONTRACT, thresholds={**default_thresholds(), **thresholds})
    rng = np.random.default_rng(0)
    for _ in range(20):
        dr, risk = rng.dirichlet(np.ones(5) / 2), rng.uniform()
        expected = decide(contract, dr, np.array([1 - risk, risk]))
        given = [json.loads(contract.to_json()), dr.tolist(), [1 - risk, risk]]
        found = in_module(page, "contract.js", "m.decide(...a)", given)
        assert (found["grade"], found["meRisk"], found["referable"], found["referableMe"]) == (
            expected.grade, expected.me_risk, expected.referable, expected.referable_me,
        )  # fmt: skip
        assert found["referableProb"] == pytest.approx(expected.referable_prob)


def test_pixels_are_those_of_the_one_decoder(page: Page, tmp_path: Path) -> None:
    photograph = eye(7, 96).resize((120, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = photograph.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photograph.size))
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    beyond = Image.Exif()
    beyond[0x0112] = 22
    xmp, entry = b'<rdf:Description tiff:Orientation="6"/>', PngImagePlugin.PngInfo()
    entry.add_itxt("XML:com.adobe.xmp", xmp.decode())
    variants: dict[str, tuple[Image.Image, dict[str, Any], int]] = {
        "plain.png": (photograph, {}, 0),
        "gray.png": (photograph.convert("L"), {}, 0),
        "palette.png": (photograph.quantize(40), {}, 0),
        "profile.png": (photograph, {"icc_profile": bytes(profile)}, 0),
        "clear.png": (clear, {}, 1),
        "upright.jpg": (photograph, {"exif": exif, "quality": 90}, 3),
        "lossless.webp": (photograph, {"lossless": True}, 0),
        "a.bmp": (photograph, {}, 0),
        "xmp.jpg": (photograph, {"xmp": xmp, "quality": 90}, 3),
        "xmp.png": (photograph, {"pnginfo": entry}, 0),
        "xmp.webp": (photograph, {"xmp": xmp, "lossless": True}, 0),
        "beyond.jpg": (photograph, {"exif": beyond, "quality": 90}, 3),
    }
    for name, (image, options, most) in variants.items():
        image.save(tmp_path / name, **options)
        expected = decode(tmp_path / name)
        text = base64.b64encode((tmp_path / name).read_bytes()).decode()
        decoded = f"m.decode({BLOB}, 32).then((b) => [b.height, b.width, [...m.pixelsOf(b)]])"
        found = in_module(page, "picture.js", f"await {decoded}", text)
        pixels = np.array(found[2], np.int16).reshape(found[0], found[1], 3)
        assert pixels.shape == expected.shape, name
        assert np.abs(pixels - expected).max() <= most, name


def test_a_webp_that_is_turned_is_refused(page: Page, tmp_path: Path) -> None:
    """Chromium shows it as stored, which changes answers."""
    for orientation, order in product((1, 6), (b"II", b"MM")):
        exif = Image.Exif()
        exif.endian = "<" if order == b"II" else ">"
        exif[0x010F], exif[0x0112] = "maker", orientation
        eye(7, 96).save(tmp_path / "eye.webp", lossless=True, exif=exif.tobytes())
        content = (tmp_path / "eye.webp").read_bytes()
        assert re.search(rb"EXIF....(Exif\0\0)?" + order, content, re.DOTALL)
        told = f"await m.decode({BLOB}, 32).then(() => 'read', (err) => err.message)"
        found = in_module(page, "picture.js", told, base64.b64encode(content).decode())
        assert found.startswith("read" if orientation == 1 else "WebP with an EXIF orientation"), (orientation, order)


@pytest.mark.parametrize(
    ("task", "rule", "found"),
    [
        ("dr", {"rule": "cumulative"}, "dr: expected the rule argmax, found cumulative"),
        ("me", {"rule": "between"}, "me: expected the rule argmax or at_least, found between"),
        ("referable_dr", None, "referable_dr: expected the rule at_least, found none"),
        ("referable_me", {"rule": "argmax"}, "referable_me: expected the rule at_least, found argmax"),
        ("referable_me", None, ""),
        ("me", {"rule": "at_least"}, "me: expected a threshold from 0 to 1, found undefined"),
        (
            "referable_dr",
            {"rule": "at_least", "threshold": None},
            "referable_dr: expected a threshold from 0 to 1, found null",
        ),
        (
            "referable_me",
            {"rule": "at_least", "threshold": 2},
            "referable_me: expected a threshold from 0 to 1, found 2",
        ),
        (
            "referable_me",
            {"rule": "at_least", "threshold": "0.5"},
            'referable_me: expected a threshold from 0 to 1, found "0.5"',
        ),
        (
            "referable_dr",
            {"rule": "at_least", "threshold": 0.5, "from_grade": "two"},
            'referable_dr: expected from_grade from 0 to 4, found "two"',
        ),
        ("referable_dr", {"rule": "at_least", "threshold": 0.5, "from_grade": None}, ""),
    ],
)
def test_a_rule_that_is_not_known_is_refused(page: Page, task: str, rule: dict[str, Any] | None, found: str) -> None:
    contract = json.loads(CONTRACT.to_json())
    del contract["thresholds"][task]
    contract["thresholds"] |= {} if rule is None else {task: rule}
    told = "(() => { try { m.checked(a); return ''; } catch (err) { return err.message; } })()"
    said = in_module(page, "contract.js", told, contract)
    assert said == (f"contract thresholds.{found}" if found else "")


# Where the maps are drawn


def rgb_of(page: Page, selector: str) -> NDArray[np.int16]:
    """The pixels (H, W, 3) of overlapping canvases, blended by their opacities."""
    text = page.evaluate(
        """(selector) => {
          const all = [...document.querySelectorAll(selector)];
          const whole = Object.assign(document.createElement("canvas"), { width: all[0].width, height: all[0].height });
          const pen = whole.getContext("2d");
          for (const canvas of all) { pen.globalAlpha = canvas.style.opacity || 1; pen.drawImage(canvas, 0, 0); }
          return whole.toDataURL().split(",")[1];
        }""",
        selector,
    )
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def test_colours_are_those_of_the_overlays(page: Page) -> None:
    found = np.array(in_module(page, "overlay.js", "m.colours()"))
    usual = colours().astype(int)
    assert np.abs(found[:, :3] - usual[:, :3]).max() <= 1
    assert np.abs(found[:, 3] / 2 - usual[:, 3]).max() <= 1  # shown at half opacity at first


@pytest.mark.parametrize("shape", [(760, 760), (768, 720), (700, 768)])
def test_map_lies_where_python_draws_it(
    static: tuple[str, Path], page: Page, tmp_path: Path, shape: tuple[int, int]
) -> None:
    """With an off-centre eye on black photographs of different shapes."""
    photograph = Image.new("RGB", shape)
    photograph.paste(eye(9, 680), (shape[0] - 690, 30))
    photograph.save(tmp_path / "eye.png")
    drop(page, [tmp_path / "eye.png"])
    page.locator("#figure-me .line").wait_for()
    shown = {kind: rgb_of(page, f"#{kind} .tile canvas") for kind in ("figure-dr", "figure-me")}
    plain = rgb_of(page, "#tile-photograph")

    pixels = np.asarray(photograph)
    said = RetinaModel(static[1] / "model.onnx", exact=True).predict(tmp_path / "eye.png")
    field = LitField.find(pixels, EXPLAIN.preprocessing)
    maps = said.maps or {}
    assert maps["dr"] == pytest.approx(pixels[..., 0].mean() / 255 * RAMP.reshape(4, 4), abs=1e-5)
    side = shown["figure-dr"].shape[0]
    left, top = field.left * shape[0], field.top * shape[1]
    right, bottom = field.right * shape[0], field.bottom * shape[1]
    for head in ("dr", "me"):
        painted = draw(photograph, HeadMap(head, maps[head], 0, 1.0), field)
        framed = (
            np.asarray(image.transform((side, side), Image.Transform.EXTENT, (left, top, right, bottom), 2), np.int16)
            for image in (painted, photograph)
        )
        # Compare only what the map adds, because the photographs themselves are enlarged differently.
        added = next(framed) - next(framed)
        difference = np.abs(shown[f"figure-{head}"] - plain - added).mean(axis=2)
        assert np.abs(added).mean() > 5, "there is a map to compare"
        assert difference.mean() < 2.5
        assert np.percentile(difference, 95) < 12  # the white line is drawn on another canvas


@pytest.mark.parametrize("surround", ["black", "kept"])
def test_field_is_the_one_that_python_finds(page: Page, surround: Surround) -> None:
    """On photographs with a caption in a corner, which is part of the field only if the surround is kept."""
    preprocessing = Preprocessing(image_size=64, surround=surround)
    lefts = []
    for seed, (width, height) in enumerate(product((180, 400), (180, 333))):
        photograph = Image.new("RGB", (width, height), (9, 3, 2))
        photograph.paste((250, 250, 250), (2, 2, 32, 10))
        photograph.paste(eye(seed, 150), (width - 160, 20))
        expected = LitField.find(np.asarray(photograph), preprocessing)
        buffer = io.BytesIO()
        photograph.save(buffer, "PNG")
        text = base64.b64encode(buffer.getvalue()).decode()
        contract = json.dumps(asdict(preprocessing))
        looked = f"m.findField(await createImageBitmap({BLOB}), {contract})"
        found = in_module(page, "overlay.js", f"(({{ lit, ...f }}) => ({{ ...f, lit: [...lit] }}))({looked})", text)
        side = preprocessing.intermediate_size
        assert found["side"] == side
        for edge in ("left", "top", "right", "bottom"):
            assert found[edge] == pytest.approx(getattr(expected, edge), abs=1.2 / side)
        assert np.abs(np.array(found["lit"]).reshape(side, side) - expected.lit).mean() < 0.02
        lefts.append(expected.left)
    assert (min(lefts[2:]) > 0.3) == (surround == "black")


def test_opacity_slider_with_the_keyboard(photographs: list[Path], page: Page) -> None:
    drop(page, [next(path for path in photographs if path.name == "b.png")])
    page.locator("#figure-dr .tint").wait_for()
    slider = page.get_by_label("Map opacity")

    def opacities() -> list[str]:
        return [page.locator(f"#figure-dr .{kind}").evaluate("c => c.style.opacity") for kind in ("tint", "line")]

    assert opacities() == ["0.5", "1"]
    for key, expected in (("Home", ["0", "0"]), ("End", ["1", "1"]), ("ArrowLeft", ["0.95", "1"])):
        slider.press(key)
        assert opacities() == expected
    assert page.inner_text("#opacity-value") == "95%"


def test_a_file_without_maps_says_so(
    static: tuple[str, Path], photographs: list[Path], open_page: Open, tmp_path: Path
) -> None:
    page = open_page(static[0])
    page.set_input_files("#other-model", write_tiny_model(tmp_path / "plain.onnx"))
    expect(page.locator("#model-facts")).to_contain_text("plain.onnx")
    drop(page, [path for path in photographs if path.name == "b.png"])
    expect(page.locator("#map-note")).to_contain_text("no Grad-CAM maps: retina-export --explain")
    expect(page.locator("#slider")).to_be_hidden()
    expect(page.locator("#figure-dr")).to_be_hidden()
    expect(page.locator("#tile-photograph")).to_be_visible()


def test_a_file_that_is_no_model_takes_nothing_away(
    photographs: list[Path], static: tuple[str, Path], open_page: Open, tmp_path: Path
) -> None:
    """And photographs that come with a model are scored by it."""
    page = open_page(static[0])
    eyes = [path for path in photographs if path.name in ("b.png", "ü.png")]
    drop(page, eyes)
    expect(page.locator("#rows tr")).to_have_count(2)
    (tmp_path / "other.onnx").write_bytes(b"\x08\x07 not a model")
    page.set_input_files("#other-model", tmp_path / "other.onnx")
    expect(page.locator("#trouble")).to_contain_text("other.onnx: expected an ONNX model, found a damaged file")
    expect(page.locator("#rows tr")).to_have_count(2)
    drop(page, [eyes[0]])
    expect(page.locator("#trouble")).to_be_hidden()
    drop(page, [write_tiny_model(tmp_path / "plain.onnx"), eyes[0]])
    expect(page.locator("#model-facts")).to_contain_text("plain.onnx")
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.locator("#rows")).to_contain_text(eyes[0].name)


def test_what_the_model_was_never_trained_for_is_said(
    static: tuple[str, Path], open_page: Open, tmp_path: Path
) -> None:
    page = open_page(static[0])
    expect(page.locator("#caution")).to_be_hidden()
    never = replace(EXPLAIN, provenance={"untrained_heads": ["me"]})
    page.set_input_files("#other-model", write_tiny_model(tmp_path / "never.onnx", contract=never))
    expect(page.locator("#caution")).to_be_visible()
    expect(page.locator("#caution")).to_have_text(f"Caution. {never.caution}")
    page.set_input_files("#other-model", write_tiny_model(tmp_path / "plain.onnx"))
    expect(page.locator("#model-facts")).to_contain_text("plain.onnx")
    expect(page.locator("#caution")).to_be_hidden()


@pytest.mark.parametrize("body", [None, [1], "text"])
def test_what_is_no_contract_is_refused_in_words(page: Page, body: object) -> None:
    told = "(() => { try { m.checked(a); return ''; } catch (err) { return err.constructor.name + err.message; } })()"
    assert in_module(page, "contract.js", told, body).startswith("ModelFileErrorcontract schema: expected 1, found ")


@pytest.mark.parametrize("grades", [[0, 1, 2, 3], [0, 1, 2]])
def test_outputs_unlike_the_contract_s_grades_are_refused(
    static: tuple[str, Path], open_page: Open, tmp_path: Path, grades: list[int]
) -> None:
    model = onnx.load(write_tiny_model(tmp_path / "five.onnx"))
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps(json.loads(entry.value) | {"dr_grades": grades})
    onnx.save(model, tmp_path / "other.onnx")
    page = open_page(static[0])
    page.set_input_files("#other-model", tmp_path / "other.onnx")
    expect(page.locator("#trouble")).to_contain_text(
        f"outputs: expected {len(grades)} of dr_probs, found the shape [N,5]"
    )


def test_outputs_that_a_later_version_adds_are_ignored(
    photographs: list[Path], static: tuple[str, Path], open_page: Open, tmp_path: Path
) -> None:
    model = onnx.load(write_tiny_model(tmp_path / "plain.onnx"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["me_probs"], ["added"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("added", onnx.TensorProto.FLOAT, ["N", 2]))
    onnx.save(model, tmp_path / "later.onnx")
    page = open_page(static[0])
    page.set_input_files("#other-model", tmp_path / "later.onnx")
    expect(page.locator("#model-facts")).to_contain_text("later.onnx")
    drop(page, [path for path in photographs if path.name == "b.png"])
    expect(page.locator("#status")).to_have_text("1 of 1 scored")


def test_an_unfamiliar_picture_is_marked(
    photographs: list[Path], static: tuple[str, Path], open_page: Open, tmp_path: Path
) -> None:
    names = ["b.png", "ü.png"]
    novelty = [20 * np.asarray(Image.open(photographs[0].with_name(name)))[..., 2].mean() / 255 for name in names]
    strange = names[int(np.argmax(novelty))]
    level = float(np.mean(novelty))
    page = open_page(static[0])
    for contract, unfamiliar in ((replace(CONTRACT, unfamiliar_from=level), [strange]), (CONTRACT, [])):
        model = write_tiny_model(tmp_path / f"{len(unfamiliar)}.onnx", contract=contract)
        drop(page, [model, *(path for path in photographs if path.name in names)])
        expect(page.locator("#status")).to_have_text("2 of 2 scored" + (", 1 unfamiliar" if unfamiliar else ""))
        expect(page.locator("#rows .mark", has_text="unfamiliar")).to_have_count(len(unfamiliar))
        for name in names:
            row = page.locator("#rows tr", has_text=name)
            row.click()
            expect(page.locator("#detail-name")).to_have_text(name)
            expect(row.locator("th .mark")).to_have_count(int(name in unfamiliar))
            expect(page.locator("#unfamiliar")).to_be_visible(visible=name in unfamiliar)
        assert table_of(page)[0] == columns(CONTRACT.dr_grades), "as without --novelty"


@pytest.mark.parametrize("name", ["blue", "me_weight"])
def test_an_answer_that_is_no_number_is_none(
    photographs: list[Path], static: tuple[str, Path], open_page: Open, tmp_path: Path, name: str
) -> None:
    model = onnx.load(write_tiny_model(tmp_path / "a.onnx", contract=replace(CONTRACT, unfamiliar_from=10.0)))
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    beyond = np.full_like(onnx.numpy_helper.to_array(tensor), np.inf)
    tensor.CopyFrom(onnx.numpy_helper.from_array(beyond, name))
    onnx.save(model, tmp_path / "beyond.onnx")
    page = open_page(static[0])
    drop(page, [tmp_path / "beyond.onnx", *(path for path in photographs if path.name == "b.png")])
    expect(page.locator("#rows")).to_contain_text("expected finite numbers, found ")


@pytest.mark.parametrize("level", [0, -1, "10", True, [10]])
def test_a_level_that_is_no_number_is_refused(page: Page, level: object) -> None:
    body = json.loads(CONTRACT.to_json()) | {"unfamiliar_from": level}
    told = "(() => { try { m.checked(a); return ''; } catch (err) { return err.constructor.name + err.message; } })()"
    found = in_module(page, "contract.js", told, body)
    assert found.startswith("ModelFileErrorcontract unfamiliar_from: expected a number above 0, found ")


def test_what_reaches_the_level_is_unfamiliar(page: Page) -> None:
    for level, novelty, expected in ((10, 10, True), (10, 9.99, False), (None, None, False)):
        body = json.loads(CONTRACT.to_json()) | {"unfamiliar_from": level}
        given = [body, [1, 0, 0, 0, 0], [1, 0], novelty]
        found = in_module(page, "contract.js", "m.decide(m.checked(a[0]), a[1], a[2], a[3])", given)
        assert found["unfamiliar"] == expected
    too_far = json.dumps(json.loads(CONTRACT.to_json()) | {"unfamiliar_from": 10.0}).replace("10.0", "1e400")
    told = "(() => { try { m.checked(JSON.parse(a)); return ''; } catch (err) { return err.message; } })()"
    assert "expected a number above 0" in in_module(page, "contract.js", told, too_far)


def test_a_referral_for_edema_that_is_no_risk_is_seen_in_the_table(
    photographs: list[Path], static: tuple[str, Path], open_page: Open, tmp_path: Path
) -> None:
    page = open_page(static[0])
    for risk, referral, word in ((1.0, 1.0, "no"), (1.0, 0.0, "refer"), (0.0, 0.0, "yes")):
        rules = {"me": Rule("at_least", risk), "referable_me": Rule("at_least", referral)}
        contract = replace(CONTRACT, thresholds={**default_thresholds(), **rules})
        model = write_tiny_model(tmp_path / f"{word}.onnx", contract=contract)
        drop(page, [model, *(path for path in photographs if path.name == "b.png")])
        expect(page.locator("#rows td").nth(2)).to_have_text(word)
        expect(page.locator("#rows td").nth(2).locator(".raised")).to_have_count(int(word != "no"))


def test_cleared_it_says_so_where_the_next_photograph_is_chosen(photographs: list[Path], page: Page) -> None:
    drop(page, [path for path in photographs if path.name == "b.png"])
    page.locator("#clear").press("Enter")
    expect(page.locator("#status")).to_have_text("Cleared.")
    assert page.evaluate("() => document.activeElement.id") == "files"


def test_of_many_photographs_asked_for_in_a_row_the_last_is_shown(photographs: list[Path], page: Page) -> None:
    drop(page, [path for path in photographs if path.name in ("b.png", "ü.png")])
    page.evaluate(
        "() => { const seen = (window.seen = []); const post = Worker.prototype.postMessage;"
        "Worker.prototype.postMessage = function (message, ...rest) {"
        "  if (message.task === 'look') seen.push(message.given.name); return post.call(this, message, ...rest); }; }"
    )
    last = page.locator("#rows button").nth(1).inner_text()
    page.evaluate(
        "() => { const [one, other] = document.querySelectorAll('#rows tr');"
        "for (let n = 0; n < 5; n += 1) { one.click(); other.click(); } }"
    )
    expect(page.locator("#tile-photograph")).to_have_attribute("aria-label", f"{last}, as the model frames it")
    assert page.evaluate("() => window.seen") == [last]


# Error messages


def test_what_cannot_be_loaded_is_said(open_page: Open, static: tuple[str, Path]) -> None:
    for file, said in (
        ("worker.js", "worker.js could not be loaded from beside this page. Reload the page."),
        ("model.onnx", "The model beside this page (model.onnx) could not be loaded. Reload the page, or choose"),
    ):
        page = open_page("about:blank", "html")
        page.context.route(f"**/{file}", lambda route: route.abort())
        page.goto(static[0])
        expect(page.locator("#trouble")).to_contain_text(said)
        expect(page.locator("#loading")).to_be_hidden()
        expect(page.locator("#model-choice")).to_be_visible(visible=file == "model.onnx")


def test_without_a_model_one_can_be_chosen(open_page: Open, static: tuple[str, Path], tmp_path: Path) -> None:
    page = open_page("about:blank", "html")
    page.route("**/model.onnx", lambda route: route.fulfill(status=404, body=""))
    page.goto(static[0])
    expect(page.locator("#trouble")).to_contain_text("There is no model beside this page (model.onnx)")
    (tmp_path / "other.onnx").write_bytes(b"\x08\x07 not a model")
    page.set_input_files("#model-file", tmp_path / "other.onnx")
    expect(page.locator("#trouble")).to_contain_text("other.onnx: expected an ONNX model, found a damaged file")
    page.set_input_files("#model-file", write_tiny_model(tmp_path / "bare.onnx", contract=None))
    expect(page.locator("#trouble")).to_contain_text(
        "expected a contract under the metadata key retina.contract, found none"
    )
    page.set_input_files("#model-file", write_tiny_model(tmp_path / "tiny.onnx"))
    expect(page.locator("#choose")).to_be_visible()
    expect(page.locator("#trouble")).to_be_hidden()


def test_without_onnxruntime_and_service_it_says_what_to_run(open_page: Open, static: tuple[str, Path]) -> None:
    page = open_page("about:blank", "html")
    page.context.route("**/node_modules/**", lambda route: route.fulfill(status=404, body=""))
    page.goto(static[0])
    expect(page.locator("#trouble")).to_contain_text("onnxruntime-web is not installed beside this page. Run npm ci")


# No data leaves


def test_nothing_leaves_the_origin(static: tuple[str, Path], photographs: list[Path], open_page: Open) -> None:
    page = open_page("about:blank", "html")
    asked: list[tuple[str, str]] = []
    page.context.on("request", lambda request: asked.append((request.method, request.url)))
    page.goto(static[0])
    page.locator("#choose").wait_for()
    drop(page, photographs)
    page.locator("#figure-dr .tint").wait_for()
    table_of(page)
    with pytest.raises(AssertionError):
        expect(page.locator("#trouble")).to_be_visible(timeout=1)
    urls = [url for _, url in asked]
    assert any(url.endswith(".wasm") for url in urls), "requests of the worker are seen too"
    # blob: is the table, which the browser downloads
    assert [url for url in urls if not url.startswith((static[0] + "/", f"blob:{static[0]}/"))] == []
    assert {method for method, _ in asked} == {"GET"}


def test_its_policy_lets_nothing_leave(static: tuple[str, Path], open_page: Open) -> None:
    page = open_page(static[0], "html")
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        for way in (
            f"fetch('{url}')",
            f"fetch('{url}', {{ method: 'POST', mode: 'no-cors', body: 'x' }})",
            f"new Promise((_, no) => Object.assign(new WebSocket('{url.replace('http', 'ws')}'), {{ onerror: no }}))",
            f"new Promise((_, no) => Object.assign(new Image(), {{ onerror: no, src: '{url}/a.png' }}))",
            f"import('{url}/a.js')",
        ):
            with pytest.raises(Error, match="refused"):
                page.evaluate(f"() => {way}.catch(() => {{ throw new Error('refused') }})")
        page.evaluate(
            f"() => {{ navigator.sendBeacon('{url}', 'x');"
            f"const form = Object.assign(document.createElement('form'), {{ action: '{url}', method: 'post' }});"
            "document.body.append(form); form.submit(); form.remove(); }"
        )
        elsewhere.settimeout(1.0)
        with pytest.raises(TimeoutError):
            # A browser may open a connection in advance and then not submit the form: no byte may arrive.
            while True:
                connection, _ = elsewhere.accept()
                with connection:
                    connection.settimeout(0.5)
                    assert connection.recv(1) == b""


# Accessibility


def test_keyboard_alone(static: tuple[str, Path], photographs: list[Path], open_page: Open) -> None:
    page = open_page(static[0])
    page.on("filechooser", lambda _: None)  # from the start, because subscribing at the key press may be too late

    def focused() -> str:
        return str(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))

    page.keyboard.press("Tab")
    assert focused() == "Skip to choosing photographs"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused() == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([path for path in photographs if path.suffix == ".png"])
    wait_for_scores(page)
    names = page.locator("#rows button").all_inner_texts()
    while focused() != names[0]:
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert focused() == names[1]
    page.keyboard.press("Enter")
    expect(page.locator("#detail-name")).to_have_text(names[1])
    expect(page.locator("#rows tr.selected button")).to_have_text(names[1])
    page.get_by_role("button", name="Next photograph").press("Enter")
    expect(page.locator("#detail-name")).to_have_text(names[2])


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_fits_every_width(photographs: list[Path], page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    drop(page, photographs)
    page.locator("#figure-me .tint").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    clipped = page.evaluate(
        "() => [...document.querySelectorAll('button, .button, h2, td, th')].filter((e) => e.offsetParent && "
        "e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline').map((e) => e.textContent)"
    )
    assert clipped == []
    title = page.locator("#results-title")
    lines = "it => { const text = new Range(); text.selectNodeContents(it); return text.getClientRects().length }"
    assert title.evaluate(lines) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    grounds = {"paper": "ink quiet", "panel": "ink quiet accent error", "soft": "accent", "accent": "accent-ink"}
    grounds |= {"raised-soft": "raised ink"}
    pairs = [(ink, ground) for ground, inks in grounds.items() for ink in inks.split()]
    value = "(name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
    colour = {name: page.evaluate(value, name) for pair in pairs for name in pair}
    assert (luminance(colour["paper"]) < 0.1) is (scheme == "dark")
    for ink, ground in pairs:
        dark, light = sorted((luminance(colour[ink]), luminance(colour[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"--{ink} on --{ground}"  # WCAG 2.2, AA


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# Served by retina-serve


def test_served_it_is_isolated_and_scores_in_the_browser(
    photographs: list[Path], open_page: Open, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "tiny.onnx", contract=EXPLAIN)
    with serving(tmp_path, "--model", model) as service:
        page = open_page(service.url)
        assert page.evaluate("() => crossOriginIsolated")
        expect(page.locator("#model-facts")).to_contain_text("Scored in this browser")
        expect(page.locator("#model-facts")).to_contain_text(RetinaModel(model).sha256[:12])
        drop(page, photographs)
        expect(page.locator("#status")).to_have_text("3 of 9 scored, 6 could not be read")
        page.close()
        assert not [line for line in service.lines() if line.get("route") == "/score"]


def test_without_onnxruntime_the_service_scores_and_the_page_says_so(
    photographs: list[Path], open_page: Open, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "tiny.onnx", contract=replace(EXPLAIN, unfamiliar_from=1e-3))
    page_folder = folder_of_the_page(tmp_path / "page", runtime=False)
    with serving(tmp_path, "--model", model, "--page", page_folder, token="open sesame") as service:
        page = open_page(service.url, "#token")
        for token in ("wrong", "open sesame"):
            expect(page.locator("#trouble")).to_contain_text("asks for an access token")
            page.get_by_label("Access token").fill(token)
            page.get_by_role("button", name="Continue").click()
        expect(page.locator("#privacy")).to_have_text(f"Photographs are sent to 127.0.0.1:{service.port}")
        drop(page, photographs)
        expect(page.locator("#status")).to_have_text("4 of 9 scored, 5 could not be read, 4 unfamiliar")
        lines = {line[0]: line for line in table_of(page)[1:]}
        opened = RetinaModel(model)
        for path in photographs:
            expected = cells(make_row(opened, path.name, path), opened.contract.dr_grades)
            assert lines[path.name] == expected
        page.get_by_role("button", name="b.png", exact=True).click()
        page.locator("#figure-dr .tint").wait_for()
        page.get_by_role("button", name="eye.tif").click()
        expect(page.locator("#dr-answer")).to_contain_text("Grade")
        expect(page.locator("#pictures")).to_be_hidden()
        page.close()


# With the released model


@pytest.mark.slow
def test_camera_original_as_python_decides_it(real_data: Path, open_page: Open, tmp_path: Path) -> None:
    if not RELEASED.is_file():
        pytest.skip("no released model in this checkout")
    originals = sorted((real_data / "fullsize").glob("*.jpg"))[:1]
    model = RetinaModel(RELEASED, exact=True)
    with serving(tmp_path, "--model", RELEASED) as service:
        page = open_page(service.url)
        page.set_input_files("#files", originals)
        wait_for_scores(page)
        lines = {line[0]: line for line in table_of(page)[1:]}
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        page.close()
    for path in originals:
        expected = cells(make_row(model, path.name, path), model.contract.dr_grades)
        assert lines[path.name][:5] == expected[:5]
        found = [float(p) for p in lines[path.name][5:-2]]
        assert found == pytest.approx([float(p) for p in expected[5:-2]], abs=0.02)
