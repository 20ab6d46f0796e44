"""Small exported models, one with a conformance kit, for all tests that examine them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from invoking import invoke
from PIL import Image
from retina.export.cli import main
from small_checkpoint import small_checkpoint


@dataclass(frozen=True)
class SmallExport:
    """What ``retina-export --conformance kit/`` wrote, with all else as by default."""

    checkpoint: Path
    model: Path
    kit: Path

    @classmethod
    def within(cls, folder: Path) -> SmallExport:
        """The files' places in ``folder``."""
        artifacts = folder / "artifacts"
        return cls(artifacts / "retina_multitask_best.pth", artifacts / "retina_multitask.onnx", folder / "kit")

    def make(self) -> None:
        self.checkpoint.parent.mkdir()
        small_checkpoint(self.checkpoint)
        _export("--artifacts", self.checkpoint.parent, "--conformance", self.kit)


def make_explained(checkpoint: Path, out: Path) -> None:
    """Export with Grad-CAM outputs."""
    _export(checkpoint, "--explain", "--check", small_pictures(out.with_name("mueller")), "--out", out)


def small_pictures(folder: Path) -> Path:
    """Write two small pictures to compare an export on, which is faster than drawing photographs."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(["a.png", "b.png"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def _export(*arguments: object) -> None:
    result = invoke(main, *arguments)
    assert result.exit_code == 0, result.output
