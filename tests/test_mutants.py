"""Thousands of damaged files of every format: no crash, no hang, a row for each, and bounded memory."""

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_model import write_tiny_model


def sound_files() -> dict[str, bytes]:
    """A small photograph in every format, and in the variants that take other paths through the decoders."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
    deep = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    variants: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "a.jpg": (image, "JPEG", {"exif": exif}),
        "progressive.jpg": (image, "JPEG", {"progressive": True}),
        "gray.jpg": (image.convert("L"), "JPEG", {}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {}),
        "a.png": (image, "PNG", {}),
        "palette.png": (image.quantize(32), "PNG", {}),
        "deep.png": (deep, "PNG", {}),
        "animated.png": (image, "PNG", {"save_all": True, "append_images": [image.rotate(90)]}),
        "a.tif": (image, "TIFF", {}),
        "lzw.tif": (image, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (image, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (image, "TIFF", {"compression": "jpeg"}),
        "deep.tif": (deep, "TIFF", {}),
        "a.bmp": (image, "BMP", {}),
        "a.webp": (image, "WEBP", {}),
        "lossless.webp": (image, "WEBP", {"lossless": True}),
        "animated.webp": (image, "WEBP", {"save_all": True, "append_images": [image.rotate(90)]}),
        "a.jp2": (image, "JPEG2000", {}),
        "a.j2k": (image, "JPEG2000", {"no_jp2": True}),
    }
    files = {}
    for name, (picture, format_, options) in variants.items():
        buffer = io.BytesIO()
        picture.save(buffer, format_, **options)
        files[name] = buffer.getvalue()
    files["a.dcm"] = dicom(np.asarray(image).tobytes(), compressed=False)
    files["jpeg.dcm"] = dicom(files["gray.jpg"], compressed=True)
    return files


def dicom(pixels: bytes, *, compressed: bool) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit if compressed else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.5.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName = "Secret^Person"
    data.Rows, data.Columns, data.SamplesPerPixel = 90, 120, 1 if compressed else 3
    data.PhotometricInterpretation = "MONOCHROME2" if compressed else "RGB"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    if compressed:
        data.PixelData = encapsulate([pixels])
        data["PixelData"].VR = "OB"
    else:
        data.PlanarConfiguration = 0
        data.PixelData = pixels
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def mutant(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Flip bits, truncate, splice in another file's header or middle, repeat, drop or zero parts, or several."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not data:
            break
        # Half of the damage is in the header.
        at = rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))
        length = rng.choice([1, 2, 4, 16, 100, 1000])
        match rng.randrange(7):
            case 0:
                for _ in range(rng.choice([1, 3, 20])):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[rng.randrange(len(data)) :]
            case 3:
                other = rng.choice(others)
                data[:length] = other[:length]
            case 4:
                data[at : at + length] = rng.choice(others)[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[at : at + length] = bytes([rng.choice([0, 0x7F, 0xFF])]) * rng.choice([0, length])
    return bytes(data)


MEASURE = """
import json, sys, time, warnings
from pathlib import Path
from retina.runtime import PictureError, RetinaModel
warnings.simplefilter("ignore")
model, slowest = RetinaModel(sys.argv[1]), (0.0, "")
for path in sorted(Path(sys.argv[2]).iterdir()):
    start = time.perf_counter()
    try:
        model.predict(path)
    except PictureError as err:
        assert "Secret" not in str(err), err
    slowest = max(slowest, (time.perf_counter() - start, path.name))
# Not getrusage: its peak counts what the parent held at the fork, here a whole test session.
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
print(json.dumps({"slowest_s": slowest, "peak_mb": peak}))
"""


class Cost(NamedTuple):
    """What mutants cost in one process, one after the other."""

    slowest_s: float
    slowest: str
    peak_mb: float
    failed: int


def run_mutants(folder: Path, count: int) -> Cost:
    """Score ``count`` mutants with the command, then one by one; returns the slowest and the peak memory."""
    rng = random.Random(11)
    files = sound_files()
    others = list(files.values())
    eyes = folder / "eyes"
    eyes.mkdir()
    names = list(files)
    for i in range(count):
        name = names[i % len(names)]
        (eyes / f"{i:05}_{name}").write_bytes(mutant(rng, files[name], others))
    model = write_tiny_model(folder / "m.onnx")
    command: list[str | Path] = [sys.executable, "-c", "from retina.runtime.cli import main; main()", eyes]
    command += ["--model", model, "--out", folder / "t.csv"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=1200)
    assert done.returncode == 1, done.stderr.decode()[-2000:]
    assert b"Traceback" not in done.stderr
    content = (folder / "t.csv").read_bytes()
    assert b"Secret" not in content + done.stderr + done.stdout
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert [row["Image name"] for row in rows] == sorted(path.name for path in eyes.iterdir())
    for row in rows:
        assert (row["status"] == "ok") == (row["me_prob"] != "") == (row["error"] == "")
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, model, eyes], capture_output=True, check=True, text=True, timeout=1200
    )
    result = json.loads(child.stdout.splitlines()[-1])
    seconds, slowest = result["slowest_s"]
    return Cost(seconds, slowest, result["peak_mb"], sum(row["status"] == "error" for row in rows))


def test_the_sound_files_are_all_read(tmp_path: Path) -> None:
    from retina.runtime.picture import decode

    for name, content in sound_files().items():
        pixels = decode(content)
        assert sorted(pixels.shape[:2]) == [90, 120], name


def test_hundreds_of_mutants(tmp_path: Path) -> None:
    result = run_mutants(tmp_path, 630)
    assert result.peak_mb < 1500


@pytest.mark.slow
@pytest.mark.skipif("RETINA_SLOW" not in os.environ, reason="minutes; set RETINA_SLOW=1")
@pytest.mark.timeout(2400)
def test_ten_thousand_mutants(tmp_path: Path) -> None:
    result = run_mutants(tmp_path, 10_000)
    print(result)
    assert result.slowest_s < 5
    assert result.peak_mb < 1500
