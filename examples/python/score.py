"""Score photographs with onnxruntime and Pillow: the rows of retina-score, from the model file alone.
    python score.py MODEL.onnx eye.jpg ...           the table, on standard output
    python score.py MODEL.onnx --conformance kit/    checks this program against a kit of retina-export --conformance
Exit code 0: all done; 1: a photograph was not readable, or an answer is not the kit's; 2: failed. Not for clinical use.
"""

import csv
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is loaded: it would report to Microsoft
import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps, TiffImagePlugin

Image.MAX_IMAGE_PIXELS = None  # decode applies retina-score's limit instead
RULES = {"dr": ["argmax"], "me": ["argmax", "at_least"], "referable_dr": ["at_least"], "referable_me": ["at_least"]}


class Model:  # an open model file and the contract inside it
    def __init__(self, path: str) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.contract = json.loads(self.session.get_modelmeta().custom_metadata_map.get("retina.contract", "{}"))
        if not isinstance(self.contract, dict) or repr(self.contract.get("schema")) != "1":
            raise ValueError(f"expected a retina.contract of schema 1, found {repr(self.contract)[:60]}")
        self.rules = {"referable_me": {"rule": "at_least", "threshold": 0.5}, **self.contract["thresholds"]}  # if old
        for task, known in RULES.items():
            rule, level = (self.rules.get(task, {}).get(key) for key in ("rule", "threshold"))
            if rule not in known or not (rule == "argmax" or (type(level) in (int, float) and 0 <= level <= 1)):
                raise ValueError(f"contract thresholds.{task}: expected the rule {known} with a threshold from 0 to 1")
        if caution := self.contract.get("caution"):
            print("Caution:", "".join(c if c.isprintable() else repr(c)[1:-1] for c in caution), file=sys.stderr)

    def probabilities(self, pixels: np.ndarray) -> tuple[list[float], list[float]]:
        """(H, W, 3) uint8 RGB -> a probability for each grade, and those of no ME risk and ME risk."""
        return tuple(rows[0].tolist() for rows in self.session.run(["dr_probs", "me_probs"], {"image": pixels[None]}))

    def decide(self, dr: list[float], me: list[float]) -> dict[str, int | bool]:
        """The decisions that the contract's rules make of the probabilities."""
        grades, rules = self.contract["dr_grades"], self.rules
        if len(dr) != len(grades):
            raise ValueError(f"outputs: expected a probability for each of {grades}, found {len(dr)}")
        referred = [p for p, g in zip(dr, grades, strict=True) if g >= rules["referable_dr"].get("from_grade", 2)]
        return {
            "dr_grade": grades[dr.index(max(dr))],
            "me_risk": int(me[1] > me[0] if rules["me"]["rule"] == "argmax" else me[1] >= rules["me"]["threshold"]),
            "referable": sum(referred) >= rules["referable_dr"]["threshold"],
            "referable_me": me[1] >= rules["referable_me"]["threshold"],
        }


def decode(path: str, min_side: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: upright, without transparency, 16 bits of grey rounded to 8."""
    with Image.open(path) as file:
        if min(file.size) < min_side or file.width * file.height > 100_000_000:
            raise ValueError(f"expected {min_side} pixels a side or more, and at most 100 million, found {file.size}")
        if file.mode in ("I", "F"):
            raise ValueError("expected 8 or 16 unsigned bits per sample, found signed, 32-bit or floating-point ones")
        file.info = {key: file.info[key] for key in ("exif", "transparency") if key in file.info}  # XMP turns nothing
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):
            tags = getattr(file, "tag_v2", {})  # of TIFF: bits in use, and whether 0 is white
            top = (1 << tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]) - 1
            grey = ((np.asarray(image).astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
            image = Image.fromarray(255 - grey if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else grey)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))


def score(model: Model, paths: list[str]) -> int:
    failed, probs = 0, [f"dr_prob_{grade}" for grade in model.contract["dr_grades"]]
    named = ["Image name", "Pred DR grade (orig)", "True DR grade (orig)", "Pred ME risk", "True ME risk"]
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # whatever the console's is
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow([*named, *probs, "me_prob", "status", "error"])
    for path in paths:
        try:
            dr, me = model.probabilities(decode(path, model.contract["input"]["min_side"]))
            grade, risk, *_ = model.decide(dr, me).values()
            row = [grade, "", risk, "", *(f"{prob:.6f}" for prob in (*dr, me[1])), "ok", ""]
        except Exception as err:  # noqa: BLE001 - Pillow raises anything on damaged files
            failed, row = 1, ["", "", "", "", *("" for _ in probs), "", "error", str(err) or type(err).__name__]
        table.writerow([path, *row])
    return failed


def conform(model: Model, kit: Path) -> int:
    index, faults, worst = json.loads((kit / "index.json").read_text(encoding="utf-8")), [], 0.0
    for picture in (*index["pictures"], *index["cases"]):
        dr, me = picture["dr_probs"], picture["me_probs"]
        if "file" in picture:
            dr, me = model.probabilities(np.fromfile(kit / picture["file"], np.uint8).reshape(picture["shape"]))
        for output, found in (("dr_probs", dr), ("me_probs", me)):
            for i, (expected, value) in enumerate(zip(picture[output], found, strict=True)):
                worst = max(worst, abs(value - expected))
                if not abs(value - expected) <= index["tolerance"]:
                    faults.append(f"{picture['name']}: {output}[{i}]: expected {expected:.6f}, found {value:.6f}")
        name, wanted, decided = picture["name"], picture["decisions"] or {}, model.decide(dr, me)
        faults += [f"{name}: {k}: expected {v}, found {decided[k]}" for k, v in wanted.items() if decided[k] != v]
    print(*faults, f"{len(index['pictures'])} pictures, largest difference {worst:.1e}, {len(faults)} faults", sep="\n")
    return bool(faults)


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or (arguments[1] == "--conformance" and len(arguments) != 3):
        print("usage: score.py MODEL.onnx PICTURE... | score.py MODEL.onnx --conformance DIR", file=sys.stderr)
        return 2
    try:
        model = Model(arguments[0])
        return conform(model, Path(arguments[2])) if arguments[1] == "--conformance" else score(model, arguments[1:])
    except Exception as err:  # noqa: BLE001 - onnxruntime's exceptions share no other root
        print(f"score.py: {arguments[0]}: {err or type(err).__name__}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
