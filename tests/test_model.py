"""Opening a model file and predicting, compared with answers computed by hand (tiny_model.py)."""

import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image, ImageFilter
from retina.runtime import ModelFileError, PictureError, Prediction, RetinaModel, UsageError
from retina.runtime.contract import HEADS, METADATA_KEY, Contract, Head, Preprocessing, Rule, default_thresholds
from retina.runtime.model_file import find_model
from retina.runtime.picture import decode
from retina.runtime.second_look import is_close_call, least_side, needs_second_look
from retina.runtime.session import first_line, handing_back, open_session
from telemetry import bare_environment
from tiny_model import CONTRACT, RAMP, expected_probs, tiny_model, write_tiny_model


def pixels(seed: int = 0, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (height, width, 3)) * rng.uniform(0, 1, 3)).astype(np.uint8)


def check(prediction: Prediction, image: NDArray[np.uint8], atol: float = 1e-6) -> None:
    dr, me = expected_probs(image)
    np.testing.assert_allclose(list(prediction.dr_probs.values()), dr, atol=atol)
    assert prediction.me_prob == pytest.approx(me[1], abs=atol)
    assert prediction.grade == int(np.argmax(dr))
    assert prediction.me_risk == int(me[1] > 0.5)
    assert prediction.referable_prob == pytest.approx(dr[2:].sum(), abs=atol)
    assert prediction.referable == (dr[2:].sum() >= 0.5)
    assert prediction.referable_me == (me[1] >= 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_of_source_gives_the_hand_computed_answer(tmp_path: Path, seed: int) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    image = pixels(seed)
    path = tmp_path / "eye.png"
    Image.fromarray(image).save(path)
    content = path.read_bytes()
    buffers = (content, bytearray(content), memoryview(content))
    for source in (path, str(path), PurePath(path), *buffers, image, image[::-1][::-1], Image.fromarray(image)):
        check(model.predict(source), image)
    assert model.score_file(bytearray(content)).source == ""
    assert [scored.prediction is None for scored in model.score([str(path), PurePath(path)])] == [False, False]


@pytest.mark.parametrize("source", [None, 7, io.BytesIO(b"x")], ids=lambda source: type(source).__name__)
def test_a_source_of_another_kind_is_named(tmp_path: Path, source: Any) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    with pytest.raises(
        TypeError, match=f"expected a path, bytes, an array or a Pillow image, found {type(source).__name__}"
    ):
        model.predict(source)


def test_grades_are_the_contracts_own(tmp_path: Path) -> None:
    contract = replace(
        CONTRACT,
        dr_grades=(0, 2, 4),
        thresholds={
            "dr": Rule(),
            "me": Rule("at_least", 0.01),
            "referable_dr": Rule("at_least", 0.001, from_grade=4),
            "referable_me": Rule("at_least", 0.5),
        },
    )
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx", contract=contract))
    prediction = model.predict(np.full((40, 40, 3), (0, 250, 0), np.uint8))
    assert list(prediction.dr_probs) == [0, 2, 4]
    assert prediction.referable_prob == prediction.dr_probs[4]
    assert (prediction.grade, prediction.me_risk, prediction.referable) == (0, 0, True)


def test_maps_come_where_the_file_has_them(tmp_path: Path) -> None:
    image = pixels()
    plain = RetinaModel(write_tiny_model(tmp_path / "m.onnx")).predict(image)
    with_maps = write_tiny_model(tmp_path / "e.onnx", contract=replace(CONTRACT, explain=True))
    explain = RetinaModel(with_maps).predict(image)
    Image.fromarray(image).save(tmp_path / "eye.png")
    (scored,) = RetinaModel(tmp_path / "e.onnx").score([tmp_path / "eye.png"], maps=True)
    assert plain.maps is None
    assert scored.prediction == explain == plain
    mean = image.reshape(-1, 3).mean(0) / 255
    for said in (explain, scored.prediction):
        assert said is not None and said.maps is not None
        np.testing.assert_allclose(said.maps["dr"], mean[0] * RAMP.reshape(4, 4), rtol=1e-5)
        np.testing.assert_allclose(said.maps["me"], mean[1] * RAMP.reshape(4, 4), rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((48, 64, 3), np.float32),
        np.zeros((31, 64, 3), np.uint8),
        np.zeros((1, 48, 64, 3), np.uint8),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, wrong: NDArray[Any]) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    with pytest.raises(PictureError, match=r"expected \(H, W, 3\) uint8 RGB"):
        model.predict(wrong)
    with pytest.raises(PictureError, match=r"expected \(H, W, 3\) uint8 RGB"):
        model.predict_pixels(wrong)


def test_further_outputs_and_keys_are_ignored(tmp_path: Path) -> None:
    later = with_contract(mood="good")
    later.graph.node.append(helper.make_node("ReduceMax", ["levels"], ["quality"]))
    later.graph.output.insert(0, helper.make_tensor_value_info("quality", TensorProto.FLOAT, None))
    check(RetinaModel(save(tmp_path / "m.onnx", later)).predict(pixels()), pixels())


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def with_contract_text(text: str) -> onnx.ModelProto:
    model = tiny_model()
    helper.set_model_props(model, {METADATA_KEY: text})
    return model


def with_contract(**changes: object) -> onnx.ModelProto:
    return with_contract_text(json.dumps(json.loads(CONTRACT.to_json()) | changes))


def external(path: Path) -> Path:
    model = tiny_model()
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda p: p, "No such file"),
    "empty": (lambda p: (p.write_bytes(b""), p)[1], "expected a model file, found an empty one"),
    "not ONNX": (lambda p: (p.write_bytes(b"PK\x03\x04 not onnx" * 99), p)[1], "retina-export CHECKPOINT --out"),
    "cut short": (lambda p: (p.write_bytes(tiny_model().SerializeToString()[:900]), p)[1], "expected"),
    "no contract": (lambda p: write_tiny_model(p, contract=None), "expected a contract under the metadata key"),
    "another schema": (lambda p: save(p, with_contract(schema=2)), r"schema: expected 1, found 2\. .* upgrade"),
    "contract not JSON": (lambda p: save(p, with_contract_text("{")), "expected a contract in JSON"),
    "renamed output": (
        lambda p: write_tiny_model(p, names={"dr_probs": "probs"}),
        r"outputs: expected \['dr_probs', 'me_probs'\], found \['probs', 'me_probs'\]",
    ),
    "outputs swapped": (
        lambda p: write_tiny_model(p, names={"dr_probs": "me_probs", "me_probs": "dr_probs"}),
        r"found \['me_probs', 'dr_probs'\]",
    ),
    "maps promised, not there": (lambda p: save(p, with_contract_only(explain=True)), "outputs: expected .*dr_cam"),
    "other number of grades": (
        lambda p: save(p, with_contract_only(dr_grades=(0, 1, 2))),
        r"shape of dr_probs: expected \['N', 3\], found \['N', 5\]",
    ),
    "float input": (
        lambda p: write_tiny_model(p, input_type=TensorProto.FLOAT),
        r"input type: expected .*uint8.*float",
    ),
    "fixed size": (
        lambda p: save(p, fixed_size()),
        r"shape of image: expected \['N', 'H', 'W', 3\], found \['N', 64, 64, 3\]",
    ),
    "second input": (lambda p: save(p, second_input()), r"inputs: expected \['image'\], found \['image', 'age'\]"),
    "input of any shape": (lambda p: save(p, without_shape()), r"axes of image: expected \[4\], found \[0\]"),
    "double output": (
        lambda p: save(p, double_output()),
        r"output types: expected \['tensor\(float\)', 'tensor\(float\)'\], found \['tensor\(double\)', ",
    ),
    "external data": (external, "expected a single file, found weights kept in another one"),
}


def with_contract_only(**changes: Any) -> onnx.ModelProto:
    """A model with a valid contract that does not match its graph."""
    model = tiny_model()
    helper.set_model_props(model, {METADATA_KEY: replace(CONTRACT, **changes).to_json()})
    return model


def fixed_size() -> onnx.ModelProto:
    model = tiny_model()
    for axis in (1, 2):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 64
    return model


def second_input() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N"]))
    return model


def without_shape() -> onnx.ModelProto:
    model = tiny_model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    return model


def double_output() -> onnx.ModelProto:
    model = tiny_model(names={"dr_probs": "single"})
    model.graph.node.append(helper.make_node("Cast", ["single"], ["dr_probs"], to=TensorProto.DOUBLE))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("dr_probs", TensorProto.DOUBLE, ["N", 5]))
    return model


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_keep_the_contract_is_refused(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    path = make(tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=message) as caught:
        RetinaModel(path)
    assert str(path) in str(caught.value)


def test_external_data_is_refused_where_it_could_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="expected a single file"):
        RetinaModel("m.onnx")


def test_a_location_in_text_is_no_external_data(tmp_path: Path) -> None:
    model = tiny_model()
    model.doc_string = "location"
    check(RetinaModel(save(tmp_path / "m.onnx", model)).predict(pixels()), pixels())


def test_of_an_error_the_first_line_is_told_up_to_300_characters() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError(400 * "x")) == 300 * "x"


def test_a_known_digest_is_held_to(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx")
    beside = tmp_path / "m.onnx.sha256"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    beside.write_text(f"{digest}  m.onnx\n")
    assert RetinaModel(path).sha256 == digest
    beside.write_text(digest.upper())  # as PowerShell's Get-FileHash writes it
    assert RetinaModel(path).sha256 == digest
    beside.write_text("")
    with pytest.raises(ModelFileError, match="expected sha256 nothing"):
        RetinaModel(path)
    beside.write_text(f"{digest}  m.onnx\n")
    content = bytearray(path.read_bytes())
    at = content.index(np.float32(6).tobytes())  # a weight, so that only the digest can notice
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"expected sha256 {digest} .* found"):
        RetinaModel(path)
    beside.unlink()
    RetinaModel(path)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.99])
def test_a_file_cut_short_is_refused_without_a_digest(tmp_path: Path, cut: float) -> None:
    path = write_tiny_model(tmp_path / "m.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ModelFileError, match="expected"):
        RetinaModel(path)


@pytest.mark.parametrize(("weight", "found"), [(6, r"found \[nan"), (4, r"and \[nan")], ids=["dr", "me"])
def test_probabilities_that_are_none_are_an_error_not_a_grade(tmp_path: Path, weight: float, found: str) -> None:
    content = write_tiny_model(tmp_path / "m.onnx").read_bytes()
    path = tmp_path / "nan.onnx"
    path.write_bytes(content.replace(np.float32(weight).tobytes(), np.float32("nan").tobytes()))
    with pytest.raises(ModelFileError, match=rf"expected probabilities, .*{found}"):
        RetinaModel(path).predict(pixels())


def test_a_missing_provider_is_named_with_what_is_there(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"--provider cuda: expected one of .*cpu.* pip install onnxruntime-gpu"):
        RetinaModel(path, provider="cuda")
    for spelling in ("CPU", "CPUExecutionProvider"):
        check(RetinaModel(path, provider=spelling).predict(pixels()), pixels())


def test_a_provider_that_computes_elsewhere_or_cannot_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sends the photographs to Azure is in every build; without a GPU onnxruntime falls back to the CPU."""
    path = write_tiny_model(tmp_path / "m.onnx")
    built_in = [f"{name}ExecutionProvider" for name in ("CUDA", "Azure", "CPU")]
    monkeypatch.setattr(ort, "get_available_providers", lambda: built_in)
    monkeypatch.setattr(
        "retina.runtime.session.open_session", lambda content, threads, _: open_session(content, threads)
    )
    with pytest.raises(UsageError, match=r"--provider azure: expected one of cpu, cuda\."):
        RetinaModel(path, provider="azure")
    with pytest.raises(UsageError, match="--provider cuda: installed, but it could not be started on this machine"):
        RetinaModel(path, provider="cuda")
    check(RetinaModel(path).predict(pixels()), pixels())


def test_the_model_is_looked_for_where_export_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETINA_ARTIFACTS", raising=False)
    monkeypatch.setattr("retina.runtime.model_file.RELEASED", tmp_path / "released.onnx")
    with pytest.raises(ModelFileError, match="retina-train DATA and retina-export"):
        find_model()
    write_tiny_model(tmp_path / "released.onnx")
    assert find_model() == tmp_path / "released.onnx"
    (tmp_path / "artifacts").mkdir()
    write_tiny_model(tmp_path / "artifacts" / "retina_multitask.onnx")
    assert find_model() == Path("artifacts/retina_multitask.onnx")
    write_tiny_model(tmp_path / "artifacts" / "retina_multitask.int8.onnx")
    assert find_model() == Path("artifacts/retina_multitask.onnx")
    (tmp_path / "artifacts" / "retina_multitask.onnx").unlink()
    assert find_model() == Path("artifacts/retina_multitask.int8.onnx")
    write_tiny_model(tmp_path / "artifacts" / "retina_multitask.onnx")
    monkeypatch.setenv("RETINA_ARTIFACTS", "elsewhere")
    assert find_model(None, "nowhere") == tmp_path / "released.onnx"
    with pytest.raises(ModelFileError, match="elsewhere: expected the folder that RETINA_ARTIFACTS names, found none"):
        find_model()
    (tmp_path / "elsewhere").mkdir()
    write_tiny_model(tmp_path / "elsewhere" / "retina_multitask.onnx")
    monkeypatch.setenv("RETINA_ARTIFACTS", "elsewhere")
    assert find_model() == Path("elsewhere/retina_multitask.onnx")
    assert find_model("other.onnx") == Path("other.onnx")
    Path("circle").mkdir()
    Path("circle/retina_multitask.onnx").symlink_to("retina_multitask.onnx")
    with pytest.raises(ModelFileError, match=r"circle/retina_multitask\.onnx: expected a model file or none, found: "):
        find_model(None, "circle")
    for name in ("dangling", "folder"):
        Path(name).mkdir()
    Path("dangling/retina_multitask.onnx").symlink_to("unmounted/model.onnx")
    Path("folder/retina_multitask.onnx").mkdir()
    for name, found in (("dangling", "a link to none"), ("folder", "something else")):
        with pytest.raises(ModelFileError, match=rf"{name}/retina_multitask\.onnx: expected .* none, found {found}"):
            find_model(None, name)
    assert find_model(None, "artifacts") == Path("artifacts/retina_multitask.onnx")


def test_a_large_picture_is_decoded_at_a_fraction_unless_exact(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.onnx", contract=replace(CONTRACT, preprocessing=Preprocessing("field", 64)))
    smooth = Image.fromarray(pixels(3, 600, 900)).filter(ImageFilter.GaussianBlur(9))
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    scaled, exact = RetinaModel(path), RetinaModel(path, exact=True)
    assert exact.decode(buffer.getvalue()).shape == (600, 900, 3)
    assert scaled.decode(buffer.getvalue()).shape == (300, 450, 3)  # a half; a quarter is less than 1.8 x 96
    check(exact.predict(buffer.getvalue()), whole)
    check(scaled.predict(buffer.getvalue()), whole, atol=0.01)
    lazy = Image.open(io.BytesIO(buffer.getvalue()))
    scaled.predict(lazy)
    assert lazy.size == (900, 600)


def test_one_model_serves_many_threads(tmp_path: Path) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    images = [pixels(seed, 40 + seed, 50 + seed) for seed in range(40)]
    expected = [model.predict(image) for image in images]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for i in range(len(images)):
            k = (i + offset) % len(images)
            if model.predict(images[k]) != expected[k]:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(7 * t,)) for t in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_score_yields_in_order_and_never_stops_at_a_bad_file(tmp_path: Path) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    paths = []
    for i in range(30):
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(pixels(i)).save(paths[-1])
    paths[11].write_bytes(b"no picture")
    paths.insert(5, tmp_path / "missing.png")
    for workers in (1, 2, 8):
        scored = list(model.score(paths, workers=workers))
        assert [one.source for one in scored] == paths
        assert [one.source for one in scored if one.error] == [tmp_path / "missing.png", tmp_path / "11.png"]
        assert scored[5].error == "no such file"
        for one in scored:
            if one.prediction:
                assert one.prediction == model.predict(one.source)


def test_score_of_one_path_is_refused(tmp_path: Path) -> None:
    """A string is a series of strings as well: its letters."""
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    for one in ("photographs", Path("photographs"), PurePath("photographs")):
        with pytest.raises(TypeError, match="expected several paths, found one: photographs; use predict"):
            model.score(one)  # type: ignore[arg-type]


def test_score_reads_its_input_only_a_little_ahead(tmp_path: Path) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "m.onnx"))
    path = tmp_path / "eye.png"
    Image.fromarray(pixels()).save(path)
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield path

    results = model.score(endless(), workers=2)
    for _ in range(10):
        next(results)
    assert isinstance(results, Generator)
    results.close()
    assert taken <= 10 + 2 * 64


def test_a_session_neither_spins_nor_takes_more_threads_than_asked() -> None:
    options = open_session(tiny_model().SerializeToString(), 3).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.enable_mem_pattern is False, "it would keep a plan of memory for a size that comes again"


def test_onnxruntime_reports_nothing(tmp_path: Path) -> None:
    """It would keep a number of this machine, and the events to be sent, in the home folder."""
    model, eye, home = write_tiny_model(tmp_path / "m.onnx"), tmp_path / "eye.png", tmp_path / "home"
    Image.fromarray(pixels()).save(eye)
    home.mkdir()
    program = "import sys; from retina.runtime import RetinaModel; print(RetinaModel(sys.argv[1]).predict(sys.argv[2]))"
    command = [sys.executable, "-c", program, str(model), str(eye)]
    done = subprocess.run(command, env=bare_environment(home), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Prediction("), done.stderr
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(("asked", "told"), [("0", 0), ("1", 1)])
def test_onnxruntime_is_not_told_to_be_silent_where_reports_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, told: int
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(ort, "disable_telemetry_events", lambda: calls.append(None))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked)
    open_session(tiny_model().SerializeToString())
    assert len(calls) == told


def test_a_close_call_is_decided_on_the_whole_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the threshold at the answer itself, so that the scaled picture's may be on the other side. The memory that
    the whole picture takes is given back.
    """
    given_back: list[str] = []

    def options_of_run() -> ort.RunOptions:
        options = handing_back()
        given_back.append(options.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
        return options

    monkeypatch.setattr("retina.runtime.model.handing_back", options_of_run)
    plain = replace(CONTRACT, preprocessing=Preprocessing("squash", 64))
    smooth = Image.fromarray(pixels(3, 600, 900)).filter(ImageFilter.GaussianBlur(9))
    path = tmp_path / "eye.jpg"
    smooth.save(path, quality=60)
    me_prob = RetinaModel(write_tiny_model(tmp_path / "a.onnx", contract=plain), exact=True).predict(path).me_prob
    for offset, is_close in ((0.0, True), (0.04, False)):
        rules = {**plain.thresholds, "me": Rule("at_least", me_prob + offset)}
        file = write_tiny_model(tmp_path / "b.onnx", contract=replace(plain, thresholds=rules))
        scaled, exact = RetinaModel(file), RetinaModel(file, exact=True)
        from_scaled = scaled.predict_pixels(scaled.decode(path))
        assert from_scaled.me_prob != exact.predict(path).me_prob
        given_back.clear()
        assert scaled.predict(path) == (exact.predict(path) if is_close else from_scaled)
        assert given_back == (["cpu:0"] if is_close else [])


def test_a_small_close_call_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was not reduced; from the side at which it may have been, it is looked at again."""
    looks: list[int | None] = []

    def counted(source: Path, *, at_least: int | None) -> NDArray[np.uint8]:
        looks.append(at_least)
        return decode(source, at_least=at_least)

    monkeypatch.setattr("retina.runtime.picture.decode", counted)
    least = least_side(CONTRACT.preprocessing)
    for side, expected in ((least - 1, [least]), (least, [least, None])):
        path = tmp_path / "eye.png"
        Image.fromarray(pixels(3, side, 2 * least)).save(path)
        me_prob = RetinaModel(write_tiny_model(tmp_path / "a.onnx"), exact=True).predict(path).me_prob
        rules = {**CONTRACT.thresholds, "me": Rule("at_least", me_prob)}
        file = write_tiny_model(tmp_path / "b.onnx", contract=replace(CONTRACT, thresholds=rules))
        looks.clear()
        RetinaModel(file).predict(path)
        assert looks == expected


@pytest.mark.parametrize("one", [1, True, 1.0, np.int64(1)], ids=lambda one: type(one).__name__)
def test_a_label_is_what_equals_it(small_explained: Path, one: Any) -> None:
    """As in Python's own look-ups: True and 1.0 are the class 1. Without a label, the answer's map is given."""
    model, image = RetinaModel(small_explained), pixels()
    answered, asked = model.predict_pixels(image), model.predict_pixels(image, of={"dr": one, "me": one})
    assert answered.maps is not None and asked.maps is not None
    names = ["dr_cam_per_grade", "me_cam_per_label"]
    for head, per_class, answer in zip(
        HEADS,
        ort.InferenceSession(small_explained).run(names, {"image": image[None]}),
        (answered.grade, answered.me_risk),
        strict=True,
    ):
        assert len({each.tobytes() for each in per_class[0]}) == len(per_class[0]), "each class has a map of its own"
        np.testing.assert_allclose(asked.maps[head], per_class[0, 1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answered.maps[head], per_class[0, answer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", [{"dr": 9}, {"me": 2}, {"me": -1}], ids=str)
def test_a_map_of_no_known_label_is_refused(tmp_path: Path, of: dict[Head, int]) -> None:
    model = RetinaModel(write_tiny_model(tmp_path / "a.onnx", contract=replace(CONTRACT, explain=True)))
    with pytest.raises(UsageError, match=rf"of: expected one of 0, 1.* found {next(iter(of.values()))}"):
        model.predict_pixels(pixels(1, 40, 40), of=of)
    with pytest.raises(UsageError, match="of: expected the heads dr and me, found grade"):
        model.predict_pixels(pixels(1, 40, 40), of={"grade": 1})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="workers: expected a number from 1, found 0"):
        model.score([], workers=0)
    with pytest.raises(UsageError, match="threads: expected a number from 1, found 0"):
        RetinaModel(tmp_path / "a.onnx", threads=0)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("decision", ["me", "referable_me", "referable_dr"])
def test_a_probability_near_a_threshold_is_a_close_call(decision: str, side: int) -> None:
    """All other thresholds are far away: 0.2 and 0.6 for ME, 0.4 for DR, whose most probable grade leads by far."""
    rules = {"me": Rule("at_least", 0.6), "referable_me": Rule("at_least", 0.2), "referable_dr": Rule("at_least", 0.4)}
    contract = Contract(dr_grades=(0, 3), thresholds=default_thresholds() | rules)

    def is_close(distance: float) -> bool:
        at = rules[decision].level + side * distance
        dr, me = (at, 0.9) if decision == "referable_dr" else (0.1, at)
        return is_close_call(contract, Prediction.of(contract, np.array([1 - dr, dr]), np.array([1 - me, me])))

    assert is_close(0.024) and not is_close(0.026)


def test_a_first_grade_that_leads_by_little_is_a_close_call() -> None:
    def is_close(lead: float) -> bool:
        dr = np.array([0.4 + lead, 0.2, 0.4])
        return is_close_call(contract, Prediction.of(contract, dr, np.array([0.9, 0.1])))

    contract = Contract(dr_grades=(0, 1, 3), thresholds=default_thresholds() | {"referable_dr": Rule("at_least", 0.7)})
    assert is_close(0.024) and not is_close(0.026)


def test_a_novelty_near_its_level_is_looked_at_again() -> None:
    """The probabilities are far from all thresholds."""
    contract = Contract(unfamiliar_from=10.0)
    dr, me = np.array([1.0, 0, 0, 0, 0]), np.array([1.0, 0])
    large = np.zeros((least_side(contract.preprocessing),) * 2 + (3,), np.uint8)

    def again(novelty: float | None, pixels: NDArray[np.uint8] = large) -> bool:
        return needs_second_look(contract, Prediction.of(contract, dr, me, novelty=novelty), pixels)

    assert again(9.81) and again(10.19)
    assert not any(map(again, (9.79, 10.21, 1.0, None)))
    assert not again(9.9, large[1:])


def test_a_novelty_that_is_no_number_is_refused(tmp_path: Path) -> None:
    model = onnx.load(write_tiny_model(tmp_path / "a.onnx", contract=replace(CONTRACT, unfamiliar_from=10.0)))
    (blue,) = (tensor for tensor in model.graph.initializer if tensor.name == "blue")
    blue.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, np.inf], np.float32), "blue"))
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(ModelFileError, match=r"b\.onnx: expected a finite novelty, found inf"):
        RetinaModel(tmp_path / "b.onnx").predict_pixels(pixels(1, 40, 40))


def test_the_second_look_explains_what_it_decides(tmp_path: Path) -> None:
    plain = replace(CONTRACT, preprocessing=Preprocessing("squash", 64), explain=True)
    path = tmp_path / "eye.jpg"
    Image.fromarray(pixels(3, 600, 900)).filter(ImageFilter.GaussianBlur(9)).save(path, quality=60)
    me_prob = RetinaModel(write_tiny_model(tmp_path / "a.onnx", contract=plain), exact=True).predict(path).me_prob
    rules = {**plain.thresholds, "me": Rule("at_least", me_prob)}
    file = write_tiny_model(tmp_path / "b.onnx", contract=replace(plain, thresholds=rules))
    seen, expected = RetinaModel(file).predict(path), RetinaModel(file, exact=True).predict(path)
    assert seen.maps is not None and expected.maps is not None
    for head in ("dr", "me"):
        np.testing.assert_array_equal(seen.maps[head], expected.maps[head])
    for source in (path, pixels()):
        assert RetinaModel(file).predict(source, maps=False).maps is None
