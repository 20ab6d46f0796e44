"""Training's evaluation, export, scoring and Grad-CAM see the same numbers, whatever the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from retina.export.graph import DeployedModel
from retina.export.to_onnx import OnnxFile
from retina.gradcam.explainer import CheckpointExplainer
from retina.runtime.contract import HEADS, Contract, Framing, Preprocessing, Surround
from retina.runtime.model import RetinaModel
from retina.runtime.picture import decode
from retina.train.checkpoint import load_checkpoint
from retina.train.frames import DecodedFrames, look_through
from retina.train.framing import Normalize
from retina.train.synthetic import photograph
from small_checkpoint import small_checkpoint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PNG files, which all decoders read alike: borders, odd sizes, 3:2, portrait, tiny, black, noise."""
    folder = tmp_path_factory.mktemp("pictures")
    eye = photograph(3, 1, 240, seed=5).picture
    borders = np.zeros((401, 637, 3), np.uint8)
    borders[60 : 60 + eye.shape[0], 90 : 90 + eye.shape[1]] = eye
    captioned = np.maximum(borders, 25)
    captioned[10:40, 20:200] = 255
    wide = np.asarray(Image.fromarray(eye).resize((900, 600)))
    made = {
        "borders": borders,
        "captioned": captioned,
        "odd": eye[:201, :233],
        "three_to_two": wide,
        "upright": np.rot90(wide).copy(),
        "tiny": np.asarray(Image.fromarray(eye).resize((32, 32))),
        "black": np.zeros((100, 140, 3), np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (90, 333, 3), dtype=np.uint8),
    }
    for name, pixels in made.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("framing", "surround"), [("field", "black"), ("field", "kept"), ("squash", "kept")])
def test_every_way_to_a_probability_is_the_same(
    framing: Framing, surround: Surround, pictures: list[Path], tmp_path: Path
) -> None:
    preprocessing = Preprocessing(framing=framing, surround=surround, image_size=96)
    contract = Contract(preprocessing)
    checkpoint = replace(load_checkpoint(small_checkpoint(tmp_path / "a.pth")), contract=contract)
    checkpoint.weights["dr_head.3.weight"] *= 4  # until pictures differ by tenths
    checkpoint.save(tmp_path / "a.pth")
    net = checkpoint.build_model()
    OnnxFile.of(DeployedModel(net, contract), contract).write(tmp_path / "a.onnx", contract)

    frames = DecodedFrames(pictures, preprocessing)
    normalize = Normalize(preprocessing.mean, preprocessing.std)
    scorer = RetinaModel(tmp_path / "a.onnx", exact=True)
    explainer = CheckpointExplainer(tmp_path / "a.pth")
    spread = []
    for i, path in enumerate(pictures):
        with torch.inference_mode():
            dr, me = (logits.softmax(1)[0].numpy() for logits in net(normalize(frames[i][None])))
        scored = scorer.predict(path)
        explained = explainer.explain([decode(path)])[0]
        np.testing.assert_allclose(list(scored.dr_probs.values()), dr, atol=1e-4, err_msg=path.name)
        np.testing.assert_allclose(scored.me_prob, me[1], atol=1e-4, err_msg=path.name)
        for head, probs in zip(HEADS, (dr, me), strict=True):
            np.testing.assert_allclose(explained.maps[head].probability, probs.max(), atol=1e-4, err_msg=path.name)
        spread.append(dr)
    assert np.ptp(spread, axis=0).max() > 0.1, "answers too alike to tell a wrong preprocessing"


def test_cached_evaluation_frames_are_the_decoded_ones(pictures: list[Path], tmp_path: Path) -> None:
    preprocessing = Preprocessing(image_size=96)
    cached, _ = look_through(pictures, preprocessing, "float32", "disk", tmp_path)
    decoded = DecodedFrames(pictures, preprocessing)
    for i in range(len(pictures)):
        assert torch.equal(cached[i], decoded[i]), pictures[i].name
